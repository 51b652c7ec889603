//! Where the commands get their answers: from the database itself ([`Database`]), or from a controller's REST API
//! ([`Remote`]). The commands do not know which; both speak in REST objects.

mod database;
mod remote;

pub(crate) use database::Database;
pub(crate) use remote::{Remote, RemoteError};

use crate::error::CtlError;
use edgelink_api::{Secret, rest};
use serde_json::Value;
use std::collections::BTreeMap;

/// Which nodes to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeListing {
    /// Id or name.
    pub(crate) network: Option<String>,
    pub(crate) online: bool,
}

/// Which lines of the audit log to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditListing {
    pub(crate) actor: Option<String>,
    pub(crate) action: Option<String>,
    pub(crate) target_type: Option<String>,
    pub(crate) target_id: Option<u32>,
    pub(crate) limit: u32,
}

type Answer<T> = Result<T, CtlError>;

/// What the commands need. Ids or names are looked up by the `find` methods, everything else takes ids.
pub(crate) trait Backend {
    /// What is asked, for people: `database: PATH` or `controller: URL`.
    fn place(&self) -> (&'static str, String);

    async fn networks(&self) -> Answer<Vec<rest::Network>>;
    async fn find_network(&self, id_or_name: &str) -> Answer<rest::Network>;
    async fn create_network(&self, new: rest::NewNetwork) -> Answer<rest::Network>;
    async fn update_network(&self, id: u32, change: rest::UpdateNetwork) -> Answer<rest::Network>;
    async fn delete_network(&self, id: u32) -> Answer<rest::Deleted>;

    async fn nodes(&self, listing: NodeListing) -> Answer<Vec<rest::Node>>;
    async fn find_node(&self, id_or_name: &str, network: Option<&str>) -> Answer<rest::Node>;
    async fn authorize_node(&self, id: u32) -> Answer<rest::Node>;
    async fn deauthorize_node(&self, id: u32) -> Answer<rest::Node>;
    async fn rename_node(&self, id: u32, name: &str) -> Answer<rest::Node>;
    async fn delete_node(&self, id: u32) -> Answer<rest::Deleted>;

    /// The routing table, of one network (id or name) or of all.
    async fn routes(&self, network: Option<&str>) -> Answer<Vec<rest::RouteGroup>>;
    async fn route(&self, id: u32) -> Answer<rest::NodeRoute>;
    async fn add_route(&self, node: u32, new: rest::NewRoute) -> Answer<rest::NodeRoute>;
    async fn update_route(&self, route: &rest::NodeRoute, change: rest::UpdateRoute) -> Answer<rest::NodeRoute>;
    async fn delete_route(&self, route: &rest::NodeRoute) -> Answer<rest::Deleted>;

    async fn servers(&self) -> Answer<Vec<rest::Server>>;
    async fn find_server(&self, id_or_name: &str) -> Answer<rest::Server>;
    async fn add_server(&self, new: rest::NewServer) -> Answer<rest::ServerToken>;
    async fn server_token(&self, id: u32, new: rest::NewServerToken) -> Answer<rest::ServerToken>;
    async fn enable_server(&self, id: u32, enabled: bool) -> Answer<rest::Server>;
    async fn delete_server(&self, id: u32) -> Answer<rest::Deleted>;

    /// Of one network (id or name) or of all.
    async fn auth_keys(&self, network: Option<&str>) -> Answer<Vec<rest::AuthKey>>;
    async fn create_auth_key(&self, new: rest::CreateAuthKey) -> Answer<rest::NewAuthKey>;
    async fn delete_auth_key(&self, id: u32) -> Answer<rest::Deleted>;
    async fn blacklist(&self) -> Answer<Vec<rest::Revocation>>;
    async fn revoke(&self, revoke: rest::Revoke) -> Answer<rest::Revocation>;

    async fn admins(&self) -> Answer<Vec<rest::Admin>>;
    async fn find_admin(&self, id_or_name: &str) -> Answer<rest::Admin>;
    async fn create_admin(&self, username: &str, password: Secret) -> Answer<rest::Admin>;
    async fn update_admin(&self, id: u32, change: rest::UpdateAdmin) -> Answer<rest::Admin>;
    async fn delete_admin(&self, id: u32) -> Answer<rest::Deleted>;
    /// Whether a change of password takes the present one of whoever asks.
    fn asks_for_password(&self) -> bool;

    async fn audit(&self, listing: AuditListing) -> Answer<Vec<rest::AuditEntry>>;
    /// Measured times, of one network (id or name) or of all.
    async fn latencies(&self, network: Option<&str>) -> Answer<Vec<rest::Latency>>;
    /// Best paths likewise; `None`: only a running controller knows.
    async fn paths(&self, network: Option<&str>) -> Answer<Option<Vec<rest::LatencyPath>>>;
    async fn settings(&self) -> Answer<Vec<rest::Setting>>;
    /// All or none; `null` unsets a key.
    async fn set_settings(&self, change: BTreeMap<String, Value>) -> Answer<Vec<rest::Setting>>;
    async fn overview(&self) -> Answer<rest::Overview>;
}
