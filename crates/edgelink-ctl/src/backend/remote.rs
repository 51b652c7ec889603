//! The commands over a controller's REST API.

use super::{Answer, AuditListing, Backend, NodeListing};
use crate::error::CtlError;
use bytes::Bytes;
use edgelink_api::rest::Problem;
use edgelink_api::{Secret, rest};
use edgelink_net::conn::Conn;
use edgelink_net::ws::{Dial, DialError, ask, ask_over};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use tokio::net::UnixStream;

/// Longest answer that is read, in bytes; a page has at most 1000 entries.
const MAX_ANSWER: usize = 8 << 20;

/// A controller, and the token that opens it.
pub(crate) struct Remote {
    way: Way,
    token: Option<Secret>,
}

/// How to reach it.
enum Way {
    Network(Box<Dial>),
    /// Its Unix socket, where the user counts and no token.
    Socket(PathBuf),
}

/// Why a controller gave no answer, or which.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// It was not reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Nor its socket.
    #[error("cannot connect to {}: {source}{}", path.display(), advice(source))]
    Socket {
        /// The socket.
        path: PathBuf,
        /// From the operating system.
        source: io::Error,
    },
    /// It refused. The text is its own.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// Something else answered.
    #[error("the answer (HTTP {0}) is not a controller's; check the URL")]
    Foreign(StatusCode),
    /// A value cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

/// What to do when a socket does not answer.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "; is the controller running, and is this its socket? It says at its start where that is"
        }
        io::ErrorKind::PermissionDenied => "; it is for root and the user that the controller runs as: try sudo",
        _ => "",
    }
}

impl Remote {
    pub(crate) fn new(dial: Dial, token: Option<Secret>) -> Self {
        Self { way: Way::Network(Box::new(dial)), token }
    }

    pub(crate) fn local(socket: PathBuf) -> Self {
        Self { way: Way::Socket(socket), token: None }
    }

    /// Logs in.
    pub(crate) async fn login(&self, username: &str, password: Secret) -> Answer<rest::Login> {
        let request = rest::LoginRequest { username: username.to_owned(), password };
        self.send(Method::POST, "auth/login", Some(&request)).await
    }

    /// Voids the token.
    pub(crate) async fn logout(&self) -> Answer<()> {
        self.exchange(Method::POST, "auth/logout", None::<&()>).await.map(|_| ())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn act<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        self.send(Method::POST, path, None::<&()>).await
    }

    async fn delete(&self, path: &str) -> Answer<rest::Deleted> {
        self.send(Method::DELETE, path, None::<&()>).await
    }

    /// Every page of a list.
    async fn list<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Answer<Vec<T>> {
        let mut next = Some(with_query(path, &[query, &[("limit", "1000")]].concat()));
        let mut all = Vec::new();
        while let Some(path) = next {
            let (headers, body) = self.exchange(Method::GET, &path, None::<&()>).await?;
            all.extend(parse::<Vec<T>>(&body)?);
            let link = headers.get(header::LINK).and_then(|link| link.to_str().ok());
            let path = link.and_then(|link| link.strip_prefix("</api/v1/")?.split_once('>'));
            next = path.map(|(path, _)| path.to_owned());
        }
        Ok(all)
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Answer<T> {
        parse(&self.exchange(method, path, body).await?.1)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(http::HeaderMap, Bytes), CtlError> {
        let mut request = Request::builder().method(method).uri(format!("/api/v1/{path}"));
        if let Some(token) = &self.token {
            let bad = |_| RemoteError::Request("the token holds characters that no token has".into());
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(bad)?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                serde_json::to_vec(body)?
            }
            None => Vec::new(),
        };
        let request = request.body(Full::new(Bytes::from(bytes)));
        let request = request.map_err(|error| RemoteError::Request(error.to_string()))?;
        let answer = match &self.way {
            Way::Network(dial) => ask(dial, request, MAX_ANSWER).await.map_err(RemoteError::from)?,
            Way::Socket(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(|source| RemoteError::Socket { path: path.clone(), source })?;
                let target = path.display().to_string();
                ask_over(Conn::other(stream), &target, request, MAX_ANSWER).await.map_err(RemoteError::from)?
            }
        };
        let (head, body) = answer.into_parts();
        if head.status.is_success() {
            return Ok((head.headers, body));
        }
        Err(match serde_json::from_slice(&body) {
            Ok(problem) => RemoteError::Problem(problem),
            Err(_) => RemoteError::Foreign(head.status),
        }
        .into())
    }
}

impl Backend for Remote {
    fn place(&self) -> (&'static str, String) {
        let place = match &self.way {
            Way::Network(dial) => dial.url.clone(),
            Way::Socket(path) => path.display().to_string(),
        };
        ("controller", place)
    }

    async fn networks(&self) -> Answer<Vec<rest::Network>> {
        self.list("networks", &[]).await
    }

    async fn find_network(&self, id_or_name: &str) -> Answer<rest::Network> {
        self.find("network", "networks", id_or_name, &[]).await
    }

    async fn create_network(&self, new: rest::NewNetwork) -> Answer<rest::Network> {
        self.send(Method::POST, "networks", Some(&new)).await
    }

    async fn update_network(&self, id: u32, change: rest::UpdateNetwork) -> Answer<rest::Network> {
        self.send(Method::PUT, &format!("networks/{id}"), Some(&change)).await
    }

    async fn delete_network(&self, id: u32) -> Answer<rest::Deleted> {
        self.delete(&format!("networks/{id}")).await
    }

    async fn nodes(&self, listing: NodeListing) -> Answer<Vec<rest::Node>> {
        let mut query: Vec<(&str, &str)> = listing.network.iter().map(|n| ("network", n.as_str())).collect();
        if listing.online {
            query.push(("online", "true"));
        }
        self.list("nodes", &query).await
    }

    async fn find_node(&self, id_or_name: &str, network: Option<&str>) -> Answer<rest::Node> {
        let query: Vec<(&str, &str)> = network.iter().map(|n| ("network", *n)).collect();
        let node: rest::Node = self.find("node", "nodes", id_or_name, &query).await?;
        // A list does not tell of direct paths.
        if node.p2p.is_some() { Ok(node) } else { self.get(&format!("nodes/{}", node.id)).await }
    }

    async fn authorize_node(&self, id: u32) -> Answer<rest::Node> {
        self.act(&format!("nodes/{id}/authorize")).await
    }

    async fn deauthorize_node(&self, id: u32) -> Answer<rest::Node> {
        self.act(&format!("nodes/{id}/deauthorize")).await
    }

    async fn rename_node(&self, id: u32, name: &str) -> Answer<rest::Node> {
        let change = rest::UpdateNode { name: Some(name.to_owned()) };
        self.send(Method::PUT, &format!("nodes/{id}"), Some(&change)).await
    }

    async fn delete_node(&self, id: u32) -> Answer<rest::Deleted> {
        self.delete(&format!("nodes/{id}")).await
    }

    async fn routes(&self, network: Option<&str>) -> Answer<Vec<rest::RouteGroup>> {
        self.get(&with_query("routes", &network.map(|n| ("network", n)).into_iter().collect::<Vec<_>>())).await
    }

    async fn route(&self, id: u32) -> Answer<rest::NodeRoute> {
        self.get(&format!("routes/{id}")).await
    }

    async fn add_route(&self, node: u32, new: rest::NewRoute) -> Answer<rest::NodeRoute> {
        self.send(Method::POST, &format!("nodes/{node}/routes"), Some(&new)).await
    }

    async fn update_route(&self, route: &rest::NodeRoute, change: rest::UpdateRoute) -> Answer<rest::NodeRoute> {
        self.send(Method::PUT, &format!("nodes/{}/routes/{}", route.node_id, route.id), Some(&change)).await
    }

    async fn delete_route(&self, route: &rest::NodeRoute) -> Answer<rest::Deleted> {
        self.delete(&format!("nodes/{}/routes/{}", route.node_id, route.id)).await
    }

    async fn servers(&self) -> Answer<Vec<rest::Server>> {
        self.list("servers", &[]).await
    }

    async fn find_server(&self, id_or_name: &str) -> Answer<rest::Server> {
        self.find("server", "servers", id_or_name, &[]).await
    }

    async fn add_server(&self, new: rest::NewServer) -> Answer<rest::ServerToken> {
        self.send(Method::POST, "servers", Some(&new)).await
    }

    async fn server_token(&self, id: u32, new: rest::NewServerToken) -> Answer<rest::ServerToken> {
        self.send(Method::POST, &format!("servers/{id}/token"), Some(&new)).await
    }

    async fn enable_server(&self, id: u32, enabled: bool) -> Answer<rest::Server> {
        self.act(&format!("servers/{id}/{}", if enabled { "enable" } else { "disable" })).await
    }

    async fn delete_server(&self, id: u32) -> Answer<rest::Deleted> {
        self.delete(&format!("servers/{id}")).await
    }

    async fn auth_keys(&self, network: Option<&str>) -> Answer<Vec<rest::AuthKey>> {
        self.list("auth-keys", &network.map(|n| ("network", n)).into_iter().collect::<Vec<_>>()).await
    }

    async fn create_auth_key(&self, new: rest::CreateAuthKey) -> Answer<rest::NewAuthKey> {
        self.send(Method::POST, "auth-keys", Some(&new)).await
    }

    async fn delete_auth_key(&self, id: u32) -> Answer<rest::Deleted> {
        self.delete(&format!("auth-keys/{id}")).await
    }

    async fn blacklist(&self) -> Answer<Vec<rest::Revocation>> {
        self.list("blacklist", &[]).await
    }

    async fn revoke(&self, revoke: rest::Revoke) -> Answer<rest::Revocation> {
        self.send(Method::POST, "blacklist", Some(&revoke)).await
    }

    async fn admins(&self) -> Answer<Vec<rest::Admin>> {
        self.list("admins", &[]).await
    }

    async fn find_admin(&self, id_or_name: &str) -> Answer<rest::Admin> {
        let all = self.admins().await?;
        let found = all.iter().find(|a| a.id.to_string() == id_or_name);
        let found = found.or_else(|| all.iter().find(|a| a.username == id_or_name));
        found.cloned().ok_or_else(|| missing("administrator", id_or_name))
    }

    async fn create_admin(&self, username: &str, password: Secret) -> Answer<rest::Admin> {
        let new = rest::NewAdmin { username: username.to_owned(), password };
        self.send(Method::POST, "admins", Some(&new)).await
    }

    async fn update_admin(&self, id: u32, change: rest::UpdateAdmin) -> Answer<rest::Admin> {
        self.send(Method::PUT, &format!("admins/{id}"), Some(&change)).await
    }

    async fn delete_admin(&self, id: u32) -> Answer<rest::Deleted> {
        self.delete(&format!("admins/{id}")).await
    }

    fn asks_for_password(&self) -> bool {
        matches!(self.way, Way::Network(_))
    }

    async fn audit(&self, listing: AuditListing) -> Answer<Vec<rest::AuditEntry>> {
        let (limit, target_id) = (listing.limit.min(1000).to_string(), listing.target_id.map(|id| id.to_string()));
        let texts = [
            ("actor_id", &listing.actor),
            ("action", &listing.action),
            ("target_type", &listing.target_type),
            ("target_id", &target_id),
        ];
        let mut query: Vec<(&str, &str)> =
            texts.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))).collect();
        query.push(("limit", &limit));
        self.get(&with_query("audit", &query)).await
    }

    async fn latencies(&self, network: Option<&str>) -> Answer<Vec<rest::Latency>> {
        self.get(&with_query("latency/matrix", &network.map(|n| ("network", n)).into_iter().collect::<Vec<_>>())).await
    }

    async fn paths(&self, network: Option<&str>) -> Answer<Option<Vec<rest::LatencyPath>>> {
        let query = network.map(|n| ("network", n)).into_iter().collect::<Vec<_>>();
        self.get(&with_query("latency/paths", &query)).await.map(Some)
    }

    async fn settings(&self) -> Answer<Vec<rest::Setting>> {
        self.get("settings").await
    }

    async fn set_settings(&self, change: BTreeMap<String, Value>) -> Answer<Vec<rest::Setting>> {
        self.send(Method::PUT, "settings", Some(&change)).await
    }

    async fn overview(&self) -> Answer<rest::Overview> {
        self.get("stats/overview").await
    }
}

impl Remote {
    /// By id, else by name: an id wins.
    async fn find<T: DeserializeOwned + Named>(
        &self,
        what: &'static str,
        path: &str,
        id_or_name: &str,
        query: &[(&str, &str)],
    ) -> Answer<T> {
        if id_or_name.bytes().all(|b| b.is_ascii_digit()) && query.is_empty() {
            match self.get(&format!("{path}/{id_or_name}")).await {
                Err(CtlError::Remote(RemoteError::Problem(problem))) if matches!(problem.status, 400 | 404) => {}
                found => return found,
            }
        }
        let mut found: Vec<T> = match query.is_empty() {
            true => self.list(path, &[("name", id_or_name)]).await?,
            // Within a network an id counts as well.
            false => {
                let all: Vec<T> = self.list(path, query).await?;
                let by_id = all.iter().position(|thing| thing.id().to_string() == id_or_name);
                match by_id {
                    Some(at) => all.into_iter().skip(at).take(1).collect(),
                    None => all.into_iter().filter(|thing| thing.name() == id_or_name).collect(),
                }
            }
        };
        if found.len() > 1 {
            let ids: Vec<String> = found.iter().map(|thing| thing.id().to_string()).collect();
            return Err(CtlError::Usage(format!(
                "several networks have a {what} named {id_or_name} (ids {}); give the id",
                ids.join(", ")
            )));
        }
        found.pop().ok_or_else(|| missing(what, id_or_name))
    }
}

/// What is found by id or name.
trait Named {
    fn id(&self) -> u32;
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($ty:ident)*) => {
        $(impl Named for rest::$ty {
            fn id(&self) -> u32 {
                self.id
            }

            fn name(&self) -> &str {
                &self.name
            }
        })*
    };
}

named! { Network Node Server }

fn missing(what: &'static str, key: &str) -> CtlError {
    edgelink_store::StoreError::NotFound { what, key: key.to_owned() }.into()
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body).map_err(|_| RemoteError::Foreign(StatusCode::OK).into())
}

/// `path?name=value&…`, percent-encoded.
fn with_query(path: &str, query: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    for (i, (name, value)) in query.iter().enumerate() {
        out.push(if i == 0 { '?' } else { '&' });
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(with_query("nodes", &[]), "nodes");
        assert_eq!(
            with_query("nodes", &[("network", "网 络&x"), ("a", "1")]),
            "nodes?network=%E7%BD%91%20%E7%BB%9C%26x&a=1"
        );
    }
}
