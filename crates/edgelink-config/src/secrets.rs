//! Secrets that are none (DESIGN §3).

use crate::error::ConfigError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use edgelink_api::Secret;

/// HS256's secret must be at least this many bytes, the size of its hash (RFC 7518 §3.2).
pub const MIN_JWT_SECRET: usize = 32;

/// The command that makes a good secret.
pub const MAKE_SECRET: &str = "openssl rand -base64 48";

/// The command that makes a good pre-shared key.
pub const MAKE_PSK: &str = "openssl rand -base64 32";

/// The 32 bytes of a pre-shared key in base64; white space around it is ignored.
///
/// # Errors
/// Says what is wrong and how to make a good one, not what was there.
pub fn parse_psk(text: &str) -> Result<[u8; 32], String> {
    let problem = |what: &str| format!("{what}; make a good one with `{MAKE_PSK}`");
    if is_placeholder(text) {
        return Err(problem("this is a placeholder"));
    }
    let bytes = BASE64.decode(text.trim()).map_err(|_| problem("a pre-shared key is 44 characters of base64"))?;
    bytes.try_into().map_err(|bytes: Vec<u8>| problem(&format!("it has {} bytes, not 32", bytes.len())))
}

/// Whether `text` is one of the values that examples and copied files carry.
pub fn is_placeholder(text: &str) -> bool {
    let lower = text.trim().to_ascii_lowercase();
    let compact: String = lower.chars().filter(char::is_ascii_alphanumeric).collect();
    ["changeme", "replaceme", "yoursecret"].iter().any(|word| compact.contains(word))
        || ["same-secret-as-controller", "server-token-from-controller"].contains(&lower.as_str())
}

/// Refuses a placeholder or short secret with the command that makes a good one.
pub(crate) fn check_jwt_secret(key: &'static str, secret: &Secret) -> Result<(), ConfigError> {
    let wrong = if is_placeholder(secret.expose()) {
        "this is the placeholder from an example, which everybody knows".to_owned()
    } else if secret.expose().len() < MIN_JWT_SECRET {
        format!("it has {} bytes, and HS256 needs at least {MIN_JWT_SECRET}", secret.expose().len())
    } else {
        return Ok(());
    };
    let problem = format!("{wrong}; make a good one with `{MAKE_SECRET}`");
    Err(ConfigError::Unusable { key, problem })
}
