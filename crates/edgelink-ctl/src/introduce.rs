//! What makes a server ours: its token, and the configuration that holds it.

use edgelink_auth::token::{Issuer, ServerClaims, TokenKeys, new_jti};
use edgelink_config::WsUrl;
use edgelink_model::records::ServerRecord;
use edgelink_store::{Store, StoreError, TOKEN_KEYS};
use rand_core::UnwrapErr;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// Lifetime of server_tokens (specification §4.1), seconds.
const TOKEN_LIFETIME: u64 = 365 * 24 * 3600;

/// Why a server got no token.
#[derive(Debug, thiserror::Error)]
pub enum IntroduceError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody changed them by hand.
    #[error("the token keys in the database are damaged; restore a backup")]
    DamagedKeys,
    /// The signature failed.
    #[error("the token could not be signed")]
    Unsigned,
}

/// A new server_token, good for a year, and a line in the audit log.
pub async fn server_token(store: &Store, record: &ServerRecord) -> Result<String, IntroduceError> {
    let mut rng = UnwrapErr(getrandom::SysRng);
    let make = || TokenKeys::generate(&mut UnwrapErr(getrandom::SysRng)).serialise().to_string();
    let kept = store.setting_or_insert_with(TOKEN_KEYS, make).await?;
    let keys = TokenKeys::deserialise(&kept).map_err(|_| IntroduceError::DamagedKeys)?;
    let iat = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let claims = ServerClaims::new(record, iat, iat + TOKEN_LIFETIME, new_jti(&mut rng));
    let token = Issuer::new(&keys).server(&claims).map_err(|_| IntroduceError::Unsigned)?;
    store.audit("server.token", Some(("server", record.id.0)), Some(format!("jti {}", claims.jti))).await?;
    Ok(token)
}

/// A configuration for `edgelink-server` that holds `token`.
pub fn server_configuration(
    record: &ServerRecord,
    token: &str,
    controller: Option<WsUrl>,
    pin: Option<String>,
) -> Value {
    let url = controller.map(|url| url.or_path("/ws/server").to_string());
    let mut connection = json!({
        "url": url.unwrap_or_else(|| "wss://CONTROLLER/ws/server".to_owned()),
        "token": token,
    });
    if let (Some(map), Some(pin)) = (connection.as_object_mut(), pin) {
        map.insert("pin".to_owned(), pin.into());
    }
    let mut relay = json!({ "enabled": record.relay });
    let data: Option<WsUrl> = record.url.as_deref().and_then(|url| url.parse().ok());
    if let (Some(map), Some(data)) = (relay.as_object_mut(), data.filter(|_| record.relay)) {
        // `[::]` takes IPv4 too, and does not exist where IPv6 is turned off.
        let any = if data.host().starts_with('[') { "[::]" } else { "0.0.0.0" };
        map.insert("listen".to_owned(), format!("{any}:{}", data.port()).into());
        map.insert("ws_data".to_owned(), data.path().into());
        map.insert("public_url".to_owned(), data.to_string().into());
        let files = json!({ "cert": "/etc/edgelink/cert.pem", "key": "/etc/edgelink/key.pem" });
        map.insert("tls".to_owned(), if data.is_tls() { files } else { Value::Null });
    }
    let mut stun = json!({ "enabled": record.stun });
    if let (Some(map), true) = (stun.as_object_mut(), record.stun) {
        let any = if record.stun_ip.is_some_and(|ip| ip.is_ipv6()) { "[::]" } else { "0.0.0.0" };
        map.insert("listen".to_owned(), format!("{any}:{}", record.stun_port).into());
        map.insert("external_ip".to_owned(), record.stun_ip.map(|ip| ip.to_string()).into());
        if let Some(second) = record.stun_ip2 {
            map.insert("secondary_ip".to_owned(), second.to_string().into());
        }
    }
    json!({ "controller": connection, "relay": relay, "stun": stun })
}
