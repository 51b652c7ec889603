//! The commands on the database itself, whether a controller runs or not.

use super::{Answer, AuditListing, Backend, NodeListing};
use crate::error::CtlError;
use crate::{introduce, rows, settings};
use edgelink_api::rest::{Capability, Timestamp};
use edgelink_api::{Secret, rest};
use edgelink_auth::{auth_key, password};
use edgelink_config::{Env, WsUrl};
use edgelink_model::records::{ServerKind, ServerRecord};
use edgelink_model::{NetworkId, NodeId, ServerId};
use edgelink_store::{
    AdminChange, AuditFilter, AuthKeyFilter, NetworkChange, NewAuthKey, NewNetwork, NewRoute, NewServer, NodeFilter,
    Page, RouteChange, RouteFilter, SHARED_CA, Store, StoreError, parse_subnet,
};
use ipnet::IpNet;
use rand_core::UnwrapErr;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// A database, and what is known of its controller.
pub(crate) struct Database {
    pub(crate) store: Store,
    /// Where the database is, for people.
    pub(crate) place: String,
    /// The controller's configuration file, if it was named.
    pub(crate) file: Option<PathBuf>,
    pub(crate) env: Env,
    /// The configuration's `public_url`.
    pub(crate) public_url: Option<WsUrl>,
    /// Where the controller keeps its own CA's certificate, if it has one.
    pub(crate) ca: Option<PathBuf>,
}

impl Backend for Database {
    fn place(&self) -> (&'static str, String) {
        ("database", self.place.clone())
    }

    async fn networks(&self) -> Answer<Vec<rest::Network>> {
        Ok(self.store.networks().await?.into_iter().map(rows::network).collect())
    }

    async fn find_network(&self, id_or_name: &str) -> Answer<rest::Network> {
        Ok(rows::network(self.store.find_network(id_or_name).await?))
    }

    async fn create_network(&self, new: rest::NewNetwork) -> Answer<rest::Network> {
        let new = NewNetwork { name: new.name, subnet: parse_subnet(&new.subnet)?, description: new.description };
        let id = self.store.create_network(new).await?.id;
        Ok(rows::network(self.store.network(id).await?))
    }

    async fn update_network(&self, id: u32, change: rest::UpdateNetwork) -> Answer<rest::Network> {
        let subnet = change.subnet.as_deref().map(parse_subnet).transpose()?;
        let change = NetworkChange { name: change.name, subnet, description: change.description };
        Ok(rows::network(self.store.update_network(NetworkId(id), change, |_| true).await?))
    }

    async fn delete_network(&self, id: u32) -> Answer<rest::Deleted> {
        self.store.delete_network(NetworkId(id)).await?;
        Ok(rows::deleted(id))
    }

    async fn nodes(&self, listing: NodeListing) -> Answer<Vec<rest::Node>> {
        let network = self.network_id(listing.network.as_deref()).await?;
        let filter = NodeFilter { network, online: listing.online };
        Ok(self.store.nodes(filter).await?.into_iter().map(rows::node).collect())
    }

    async fn find_node(&self, id_or_name: &str, network: Option<&str>) -> Answer<rest::Node> {
        let network = self.network_id(network).await?;
        let node = rows::node(self.store.find_node(id_or_name, network).await?);
        let endpoints = self.store.endpoints(NodeId(node.id)).await?.into_iter().map(rows::endpoint).collect();
        // What nodes say of their peers is in the controller's memory alone.
        Ok(rest::Node { p2p: Some(rest::NodeP2p { endpoints, peers: Vec::new() }), ..node })
    }

    async fn authorize_node(&self, id: u32) -> Answer<rest::Node> {
        self.store.authorize_node(NodeId(id)).await?;
        self.node(id).await
    }

    async fn deauthorize_node(&self, id: u32) -> Answer<rest::Node> {
        self.store.deauthorize_node(NodeId(id)).await?;
        self.node(id).await
    }

    async fn rename_node(&self, id: u32, name: &str) -> Answer<rest::Node> {
        self.store.rename_node(NodeId(id), name).await?;
        self.node(id).await
    }

    async fn delete_node(&self, id: u32) -> Answer<rest::Deleted> {
        self.store.delete_node(NodeId(id)).await?;
        Ok(rows::deleted(id))
    }

    async fn routes(&self, network: Option<&str>) -> Answer<Vec<rest::RouteGroup>> {
        let filter = RouteFilter { network: self.network_id(network).await?, ..RouteFilter::default() };
        Ok(rows::route_groups(self.store.list_routes(&filter, Page::default()).await?.items))
    }

    async fn route(&self, id: u32) -> Answer<rest::NodeRoute> {
        Ok(rows::route(self.store.route(id).await?))
    }

    async fn add_route(&self, node: u32, new: rest::NewRoute) -> Answer<rest::NodeRoute> {
        let bad = |_| StoreError::Invalid(format!("{:?} is not a prefix such as 192.168.1.0/24", new.cidr));
        let cidr: IpNet = new.cidr.parse().map_err(bad)?;
        let rest::NewRoute { priority, weight, enabled, .. } = new;
        let record = self.store.add_route(NewRoute { node_id: NodeId(node), cidr, priority, weight, enabled }).await?;
        self.route(record.id).await
    }

    async fn update_route(&self, route: &rest::NodeRoute, change: rest::UpdateRoute) -> Answer<rest::NodeRoute> {
        let change = RouteChange { priority: change.priority, weight: change.weight, enabled: change.enabled };
        Ok(rows::route(self.store.update_route(NodeId(route.node_id), route.id, change, |_| true).await?))
    }

    async fn delete_route(&self, route: &rest::NodeRoute) -> Answer<rest::Deleted> {
        self.store.delete_route(route.id).await?;
        Ok(rows::deleted(route.id))
    }

    async fn servers(&self) -> Answer<Vec<rest::Server>> {
        Ok(self.store.servers().await?.into_iter().map(rows::server).collect())
    }

    async fn find_server(&self, id_or_name: &str) -> Answer<rest::Server> {
        Ok(rows::server(self.store.find_server(id_or_name).await?))
    }

    async fn add_server(&self, new: rest::NewServer) -> Answer<rest::ServerToken> {
        let has = |capability| new.capabilities.contains(&capability);
        let (relay, stun) = (has(Capability::Relay), has(Capability::Stun));
        let stun_ip = new.stun_ip.as_deref().map(address).transpose()?;
        let stun_ip2 = new.stun_ip2.as_deref().map(address).transpose()?;
        if stun && stun_ip.is_none() {
            return Err(CtlError::Usage("a STUN server needs its public address: --stun-ip IP".into()));
        }
        let url = new.url.as_deref().map(ws_url).transpose()?.map(|url| url.or_path("/ws/data").to_string());
        let controller = new.controller.as_deref().map(ws_url).transpose()?;
        let (name, region, stun_port) = (new.name, new.region, new.stun_port);
        let new = NewServer { name, url, region, relay, stun, stun_ip, stun_ip2, stun_port };
        let record = self.store.add_server(new).await?;
        self.introduce(&record, controller).await
    }

    async fn server_token(&self, id: u32, new: rest::NewServerToken) -> Answer<rest::ServerToken> {
        let controller = new.controller.as_deref().map(ws_url).transpose()?;
        let record = self.store.server(ServerId(id)).await?.record;
        if record.kind == ServerKind::Builtin {
            let why = "the built-in server is part of the controller and needs no token";
            return Err(StoreError::InUse(why.into()).into());
        }
        self.introduce(&record, controller).await
    }

    async fn enable_server(&self, id: u32, enabled: bool) -> Answer<rest::Server> {
        self.store.set_server_enabled(ServerId(id), enabled).await?;
        Ok(rows::server(self.store.server(ServerId(id)).await?))
    }

    async fn delete_server(&self, id: u32) -> Answer<rest::Deleted> {
        self.store.delete_server(ServerId(id)).await?;
        Ok(rows::deleted(id))
    }

    async fn auth_keys(&self, network: Option<&str>) -> Answer<Vec<rest::AuthKey>> {
        let filter = AuthKeyFilter { network: self.network_id(network).await? };
        Ok(self.store.list_auth_keys(&filter, Page::default()).await?.map(rows::auth_key).items)
    }

    async fn create_auth_key(&self, new: rest::CreateAuthKey) -> Answer<rest::NewAuthKey> {
        // Asked once for its errors, so that the generator need not panic.
        getrandom::fill(&mut [0; 1])?;
        let key = auth_key::generate(&mut UnwrapErr(getrandom::SysRng));
        let rest::CreateAuthKey { network_id, reusable, preauthorized, approve_routes, expires_in } = new;
        let expires_at = expires_in.map(|seconds| unix_ms().saturating_add(seconds.saturating_mul(1000)));
        let (key_hash, network) = (auth_key::hash(&key), NetworkId(network_id));
        let new = NewAuthKey { key_hash, network_id: network, reusable, preauthorized, approve_routes, expires_at };
        let record = self.store.create_auth_key(new).await?;
        let expires_at = record.expires_at.map(Timestamp::from_unix_ms);
        Ok(rest::NewAuthKey { key, id: record.id, network_id, reusable, preauthorized, expires_at })
    }

    async fn delete_auth_key(&self, id: u32) -> Answer<rest::Deleted> {
        self.store.delete_auth_key(id).await?;
        Ok(rows::deleted(id))
    }

    async fn blacklist(&self) -> Answer<Vec<rest::Revocation>> {
        Ok(self.store.revocations().await?.into_iter().map(rows::revocation).collect())
    }

    async fn revoke(&self, revoke: rest::Revoke) -> Answer<rest::Revocation> {
        let record = match (&revoke.jti, revoke.node_id) {
            (Some(jti), None) => self.store.revoke_token(jti, &revoke.reason).await?,
            (None, Some(node)) => self.store.revoke_node(NodeId(node), &revoke.reason).await?,
            _ => return Err(CtlError::Usage("give either a jti or a node".into())),
        };
        let found = self.store.revocations().await?.into_iter().find(|r| r.record.id == record.id);
        let missing = || CtlError::Store(StoreError::NotFound { what: "revocation", key: record.id.clone() });
        found.map(rows::revocation).ok_or_else(missing)
    }

    async fn admins(&self) -> Answer<Vec<rest::Admin>> {
        Ok(self.store.admins(Page::default()).await?.map(rows::admin).items)
    }

    async fn find_admin(&self, id_or_name: &str) -> Answer<rest::Admin> {
        Ok(rows::admin(self.store.find_admin(id_or_name).await?))
    }

    async fn create_admin(&self, username: &str, password: Secret) -> Answer<rest::Admin> {
        Ok(rows::admin(self.store.create_admin(username, hash(&password)?).await?))
    }

    async fn update_admin(&self, id: u32, change: rest::UpdateAdmin) -> Answer<rest::Admin> {
        let password_hash = change.password.as_ref().map(hash).transpose()?;
        let change = AdminChange { username: change.username, password_hash, enabled: change.enabled };
        Ok(rows::admin(self.store.update_admin(id, change, |_| true).await?))
    }

    async fn delete_admin(&self, id: u32) -> Answer<rest::Deleted> {
        self.store.delete_admin(id).await?;
        Ok(rows::deleted(id))
    }

    fn asks_for_password(&self) -> bool {
        false
    }

    async fn audit(&self, listing: AuditListing) -> Answer<Vec<rest::AuditEntry>> {
        let AuditListing { actor: actor_id, action, target_type, target_id, limit } = listing;
        let filter = AuditFilter { actor_id, action, target_type, target_id, ..AuditFilter::default() };
        let page = Page { after: None, limit: Some(limit.into()) };
        Ok(self.store.list_audit(&filter, page).await?.map(rows::audit).items)
    }

    async fn latencies(&self, network: Option<&str>) -> Answer<Vec<rest::Latency>> {
        let network = self.network_id(network).await?;
        Ok(self.store.latencies(network).await?.into_iter().map(rows::latency).collect())
    }

    async fn paths(&self, _: Option<&str>) -> Answer<Option<Vec<rest::LatencyPath>>> {
        Ok(None)
    }

    async fn settings(&self) -> Answer<Vec<rest::Setting>> {
        Ok(settings::list(self.file.as_deref(), &self.store.configuration().await?, &self.env)?)
    }

    async fn set_settings(&self, change: BTreeMap<String, Value>) -> Answer<Vec<rest::Setting>> {
        let kept = self.store.configuration().await?;
        let changes = settings::check(self.file.as_deref(), &kept, &self.env, &change)?;
        self.store.set_configuration(changes).await?;
        self.settings().await
    }

    async fn overview(&self) -> Answer<rest::Overview> {
        Ok(rows::overview(self.store.counts().await?))
    }
}

impl Database {
    async fn network_id(&self, id_or_name: Option<&str>) -> Answer<Option<NetworkId>> {
        match id_or_name {
            Some(network) => Ok(Some(self.store.find_network(network).await?.record.id)),
            None => Ok(None),
        }
    }

    async fn node(&self, id: u32) -> Answer<rest::Node> {
        Ok(rows::node(self.store.node(NodeId(id)).await?))
    }

    /// A token, and the configuration that uses it.
    async fn introduce(&self, record: &ServerRecord, controller: Option<WsUrl>) -> Answer<rest::ServerToken> {
        let token = introduce::server_token(&self.store, record).await?;
        let controller = controller.or_else(|| self.public_url.clone());
        let config = introduce::server_configuration(record, &token, controller, self.pin().await?);
        Ok(rest::ServerToken { id: record.id.0, token, config })
    }

    /// What to pin when the controller has a certificate of its own making.
    async fn pin(&self) -> Answer<Option<String>> {
        let pem = match &self.ca {
            Some(ca) => std::fs::read(ca).ok(),
            // Controllers that share a database share the CA in it.
            None => {
                let kept = self.store.setting(SHARED_CA).await?;
                let kept = kept.and_then(|json| serde_json::from_str::<serde_json::Value>(&json).ok());
                kept.and_then(|ca| ca.get("certificate")?.as_str().map(|pem| pem.as_bytes().to_vec()))
            }
        };
        let Some(pem) = pem else { return Ok(None) };
        let unusable = |error| CtlError::Damaged(format!("the controller's CA: {error}"));
        Ok(Some(edgelink_net::tls::spki_pin(&pem).map_err(unusable)?.to_string()))
    }
}

fn hash(password: &Secret) -> Answer<String> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt)?;
    password::hash(password.expose(), salt).map_err(|error| CtlError::Usage(error.to_string()))
}

fn address(text: &str) -> Answer<IpAddr> {
    text.parse().map_err(|_| CtlError::Usage(format!("{text:?} is not an IP address")))
}

fn ws_url(text: &str) -> Answer<WsUrl> {
    text.parse().map_err(|error| CtlError::Usage(format!("{text}: {error}")))
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
