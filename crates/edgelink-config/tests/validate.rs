//! What belongs together, and secrets that are none.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use edgelink_config::*;
use std::path::{Path, PathBuf};

fn validate<T: Config>(text: &str) -> Result<Vec<String>, String> {
    let config: T = parse(Path::new("f"), text, &Env::default()).unwrap();
    config.validate().map_err(|error| error.to_string())
}

#[test]
fn placeholder_and_short_jwt_secrets_are_refused_with_the_cure() {
    let jwt = |secret: &str| validate::<ControllerConfig>(&format!(r#"{{"jwt": {{"secret": "{secret}"}}}}"#));
    let placeholder = "configuration key `jwt.secret`: this is the placeholder from an example, which everybody knows; \
                       make a good one with `openssl rand -base64 48`";
    for secret in [
        "your-secret-key-change-me",
        "CHANGE_ME",
        "CHANGE_ME_0123456789abcdef0123456789abcdef",
        "  change-me-please-change-me-please-now  ",
        "YOUR_SECRET_KEY_0123456789abcdef0123456789",
    ] {
        assert_eq!(jwt(secret), Err(placeholder.to_owned()), "{secret}");
    }
    assert_eq!(
        jwt(&"x".repeat(31)),
        Err("configuration key `jwt.secret`: it has 31 bytes, and HS256 needs at least 32; \
             make a good one with `openssl rand -base64 48`"
            .to_owned())
    );
    assert_eq!(jwt(&"x".repeat(32)), Ok(vec![]));
    assert!(
        validate::<ServerConfig>(
            r#"{"controller": {"url": "wss://c", "token": "t"}, "jwt": {"secret": "same-secret-as-controller"}}"#
        )
        .unwrap_err()
        .contains("openssl rand -base64 48")
    );
}

#[test]
fn one_algorithm_takes_one_kind_of_key() {
    let secret = "x".repeat(40);
    let refused = |jwt: String| validate::<ControllerConfig>(&format!(r#"{{"jwt": {jwt}}}"#)).is_err();
    assert!(refused(format!(r#"{{"algorithm": "EdDSA", "secret": "{secret}"}}"#)));
    assert!(refused(format!(r#"{{"algorithm": "RS256", "secret": "{secret}"}}"#)));
    assert!(refused(format!(r#"{{"secret": "{secret}", "private_key": "/k"}}"#)));
    assert!(refused(r#"{"algorithm": "HS256", "private_key": "/k"}"#.into()));
    assert!(!refused(r#"{"algorithm": "RS256", "private_key": "/k"}"#.into()));
    assert!(!refused(r#"{"algorithm": "HS256"}"#.into()), "the controller makes a secret");
    assert!(!refused("null".into()));
    assert!(!refused("{}".into()));
}

#[test]
fn documentation_addresses_draw_warnings() {
    let stun = |ip: &str, second: &str| {
        validate::<ControllerConfig>(&format!(
            r#"{{"builtin_stun": {{"external_ip": "{ip}", "secondary_ip": "{second}"}}}}"#
        ))
    };
    let warnings = stun("203.0.113.1", "2001:db8::1").unwrap();
    assert_eq!(warnings.len(), 2);
    assert!(
        warnings.first().unwrap().starts_with("builtin_stun.external_ip is 203.0.113.1, an address for documentation")
    );
    assert!(warnings.last().unwrap().starts_with("builtin_stun.secondary_ip is 2001:db8::1"));
    assert_eq!(stun("203.0.114.0", "8.8.8.8"), Ok(vec![]));
    assert!(stun("8.8.8.8", "8.8.8.8").unwrap_err().contains("secondary_ip must be another address"));
    let off = r#"{"builtin_stun": {"enabled": false, "external_ip": "203.0.113.1"}}"#;
    assert_eq!(validate::<ControllerConfig>(off), Ok(vec![]));
}

#[test]
fn what_cannot_be_used_together_is_refused() {
    for (text, key) in [
        (r#"{"database": {"type": "mariadb"}}"#, "`database.url`"),
        (r#"{"database": {"url": "mysql://h/d"}}"#, "`database.url`"),
        (r#"{"listen": {"ws_server": "/ws/control"}}"#, "`listen`"),
        (r#"{"builtin_relay": {"ws_mesh": "/ws/control"}}"#, "`listen`"),
        (r#"{"builtin_stun": {"secondary_ip": "8.8.8.8"}}"#, "`builtin_stun`"),
    ] {
        let error = validate::<ControllerConfig>(text).unwrap_err();
        assert!(error.starts_with(&format!("configuration key {key}: ")), "{error}");
    }
    let controller = r#""controller": {"url": "wss://c", "token": "t"}"#;
    for (text, key) in [
        ("{}".to_owned(), "`controller.url`"),
        (r#"{"controller": {"url": "wss://c"}}"#.to_owned(), "`controller.token`"),
        (
            format!(r#"{{{controller}, "relay": {{"enabled": false}}, "stun": {{"enabled": false}}}}"#),
            "`relay.enabled`",
        ),
        (format!(r#"{{{controller}, "relay": {{"ws_mesh": "/ws/data"}}}}"#), "`relay.ws_mesh`"),
        (format!(r#"{{{controller}, "relay": {{"tls": {{"key": "/k"}}}}}}"#), "`relay.tls`"),
    ] {
        let error = validate::<ServerConfig>(&text).unwrap_err();
        assert!(error.starts_with(&format!("configuration key {key}: ")), "{error}");
    }
    assert_eq!(validate::<ServerConfig>(&format!("{{{controller}}}")), Ok(vec![]));
    let pin = format!("sha256:{}=", "A".repeat(43));
    for (text, key) in [
        (r#"{"auth_key": "elk_x", "auth_key_file": "/f"}"#.to_owned(), "`auth_key_file`"),
        (r#"{"auth_key": "CHANGE_ME"}"#.to_owned(), "`auth_key`"),
        (r#"{"hostname": " "}"#.to_owned(), "`hostname`"),
        (r#"{"advertise_routes": [{"cidr": "10.0.0.0/8"}, {"cidr": "10.0.0.0/8"}]}"#.to_owned(), "`advertise_routes`"),
        (format!(r#"{{"controller": "ws://c", "pin": "{pin}"}}"#), "`pin`"),
    ] {
        let error = validate::<ClientConfig>(&text).unwrap_err();
        assert!(error.starts_with(&format!("configuration key {key}: ")), "{error}");
    }
    let idle = validate::<ClientConfig>(r#"{"gateway_mode": {"enabled": true}}"#).unwrap();
    assert_eq!(idle, ["gateway_mode is enabled but advertise_routes is empty, so it serves nothing"]);
}

#[test]
fn state_directories_and_socket() {
    let env = |pairs: &[(&str, &str)]| Env::new(pairs.iter().copied());
    let (none, home) = (env(&[]), env(&[("HOME", "/home/a")]));
    assert_eq!(default_controller_state_dir(&home, true), PathBuf::from("/var/lib/edgelink/controller"));
    assert_eq!(default_client_state_dir(&home, false), PathBuf::from("/home/a/.local/state/edgelink/client"));
    assert_eq!(
        default_server_state_dir(&env(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]), false),
        PathBuf::from("/s/edgelink/server")
    );
    assert_eq!(default_client_state_dir(&env(&[("STATE_DIRECTORY", "/sd")]), true), PathBuf::from("/sd"));
    assert_eq!(default_client_state_dir(&none, false), PathBuf::from("/var/lib/edgelink/client"));
    assert_eq!(socket_path(&none), PathBuf::from(DEFAULT_SOCKET));
    assert_eq!(socket_path(&env(&[("EDGELINK_SOCKET", "/tmp/s")])), PathBuf::from("/tmp/s"));

    let config = ClientConfig { state_dir: Some("/x".into()), ..ClientConfig::default() };
    assert_eq!(config.key_file(&home, true), PathBuf::from("/x/keys.json"));
    let controller = ControllerConfig::default();
    assert_eq!(controller.database_path(&home, true), PathBuf::from("/var/lib/edgelink/controller/mesh.db"));
}

#[test]
fn a_pre_shared_key_is_32_bytes() {
    let good = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let with = |psk: &str| validate::<ClientConfig>(&format!(r#"{{"psk": "{psk}"}}"#));
    assert_eq!(with(good), Ok(vec![]));
    assert_eq!(parse_psk(&format!(" {good}\n")).unwrap()[31], 31);
    for (bad, words) in [
        ("CHANGE_ME", "this is a placeholder"),
        ("AAECAw==", "it has 4 bytes, not 32"),
        ("not base64!", "44 characters of base64"),
        ("", "it has 0 bytes"),
    ] {
        let error = with(bad).unwrap_err();
        assert!(
            error.contains("`psk`") && error.contains(words) && error.contains("openssl rand -base64 32"),
            "{error}"
        );
        assert!(bad.len() < 5 || !error.contains(bad), "{error}");
    }
    let both = validate::<ClientConfig>(&format!(r#"{{"psk": "{good}", "psk_file": "/k"}}"#));
    assert!(both.unwrap_err().contains("not both"));
}
