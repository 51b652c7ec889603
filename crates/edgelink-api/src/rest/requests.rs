//! What requests carry. Unknown fields are errors.

use crate::Secret;
use serde::{Deserialize, Deserializer, Serialize};

/// Who wants in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The administrator's name.
    #[cfg_attr(feature = "openapi", schema(example = "alice"))]
    pub username: String,
    /// The password.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password, example = "correct horse"))]
    pub password: Secret,
}

/// A network to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewNetwork {
    /// Unique; 1–63 letters, digits, `.`, `_`, `-`.
    #[cfg_attr(feature = "openapi", schema(example = "main"))]
    pub name: String,
    /// IPv4 prefix of 8 to 30 bits.
    #[cfg_attr(feature = "openapi", schema(example = "10.100.0.0/16"))]
    pub subnet: String,
    /// Free text, at most 1024 characters.
    #[serde(default)]
    pub description: String,
}

/// What to change of a network. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateNetwork {
    /// Another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Another prefix, which must hold every address that a node has.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "10.100.0.0/15"))]
    pub subnet: Option<String>,
    /// Another text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// What to change of a node. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateNode {
    /// Another name, unique in the network; 1–63 letters, digits, `.`, `_`, `-`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "web-1"))]
    pub name: Option<String>,
}

/// A route to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewRoute {
    /// IPv4 or IPv6 prefix without host bits.
    #[cfg_attr(feature = "openapi", schema(example = "192.168.1.0/24"))]
    pub cidr: String,
    /// 0–65535, higher wins.
    #[serde(default = "hundred")]
    #[cfg_attr(feature = "openapi", schema(maximum = 65535, default = 100))]
    pub priority: u16,
    /// 1–65535, share among equal priorities.
    #[serde(default = "hundred")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535, default = 100))]
    pub weight: u16,
    /// Approved?
    #[serde(default = "yes")]
    #[cfg_attr(feature = "openapi", schema(default = true))]
    pub enabled: bool,
}

/// What to change of a route. What is left out stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateRoute {
    /// 0–65535, higher wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 65535))]
    pub priority: Option<u16>,
    /// 1–65535, share among equal priorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub weight: Option<u16>,
    /// Approved?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// What a server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Capability {
    /// Relays packets.
    Relay,
    /// Answers STUN.
    Stun,
}

/// A server to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewServer {
    /// Unique; 1–63 letters, digits, `.`, `_`, `-`.
    #[cfg_attr(feature = "openapi", schema(example = "relay-1"))]
    pub name: String,
    /// Where nodes reach it; a relay needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "wss://relay.example.com/ws/data"))]
    pub url: Option<String>,
    /// What it does.
    #[serde(default = "relay")]
    #[cfg_attr(feature = "openapi", schema(default = json!(["relay"])))]
    pub capabilities: Vec<Capability>,
    /// Free text such as `asia`, at most 50 characters.
    #[serde(default)]
    pub region: String,
    /// Its public address; STUN needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "203.0.113.1"))]
    pub stun_ip: Option<String>,
    /// Its second public address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stun_ip2: Option<String>,
    /// Its STUN port.
    #[serde(default = "stun_port")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535, default = 3478))]
    pub stun_port: u16,
    /// The controller's URL as the server reaches it, for the configuration that is returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
}

/// What to change of a server. What is left out stays; `null` takes an address or URL away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateServer {
    /// Another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where nodes reach it.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "wss://relay.example.com/ws/data"))]
    pub url: Option<Option<String>>,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Vec<Capability>>,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Its public address.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "203.0.113.1"))]
    pub stun_ip: Option<Option<String>>,
    /// Its second public address.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "203.0.113.2"))]
    pub stun_ip2: Option<Option<String>>,
    /// Its STUN port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 65535))]
    pub stun_port: Option<u16>,
    /// May nodes use it?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// How to make another token for a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewServerToken {
    /// The controller's URL as the server reaches it, for the configuration that is returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
}

/// A pre-auth key to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateAuthKey {
    /// The network that it opens.
    #[cfg_attr(feature = "openapi", schema(example = 1))]
    pub network_id: u32,
    /// Any number of machines, or one.
    #[serde(default)]
    pub reusable: bool,
    /// Its nodes need no administrator.
    #[serde(default)]
    pub preauthorized: bool,
    /// Routes that its nodes announce need no administrator either.
    #[serde(default)]
    pub approve_routes: bool,
    /// Its life in seconds, at most 3650 days; `null`: it never ends. Left out: 24 hours.
    #[serde(default = "day")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 315360000, default = 86400))]
    pub expires_in: Option<u64>,
}

/// What to revoke: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// One token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "0123456789abcdef0123456789abcdef"))]
    pub jti: Option<String>,
    /// Every token of this node that was issued until now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_id: Option<u32>,
    /// Why, at most 255 characters.
    #[serde(default)]
    pub reason: String,
}

/// An administrator to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewAdmin {
    /// Unique; 1–63 letters, digits, `.`, `_`, `-`.
    #[cfg_attr(feature = "openapi", schema(example = "bob"))]
    pub username: String,
    /// At least 8 characters, at most 1024 bytes.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = Password, min_length = 8, example = "correct horse"))]
    pub password: Secret,
}

/// What to change of an administrator. What is left out stays. His tokens are void after a change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateAdmin {
    /// Another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Another password.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Password))]
    pub password: Option<Secret>,
    /// The present password of whoever asks; needed to change a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, format = Password))]
    pub current_password: Option<Secret>,
    /// May log in?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// Tells a `null` from a field that is not there.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn hundred() -> u16 {
    100
}

fn yes() -> bool {
    true
}

fn relay() -> Vec<Capability> {
    vec![Capability::Relay]
}

fn stun_port() -> u16 {
    3478
}

fn day() -> Option<u64> {
    Some(86_400)
}
