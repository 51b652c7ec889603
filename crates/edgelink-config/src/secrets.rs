//! Secrets that are none (DESIGN §3).

use crate::error::ConfigError;
use edgelink_api::Secret;

/// HS256's secret must be at least this many bytes, the size of its hash (RFC 7518 §3.2).
pub const MIN_JWT_SECRET: usize = 32;

/// The command that makes a good secret.
pub const MAKE_SECRET: &str = "openssl rand -base64 48";

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
