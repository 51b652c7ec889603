//! Settings in the controller's database, and what a changed configuration changes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use edgelink_config::{
    Config as _, ControllerConfig, Env, Setting, Settings, Takes, hidden_by_environment, load_controller, parse,
};
use std::path::{Path, PathBuf};

fn file(text: &str) -> ControllerConfig {
    parse(Path::new("c.json"), text, &Env::default()).unwrap()
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect()
}

fn written(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("edgelink-settings-{}-{name}.json", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn settings_are_checked_like_keys_of_a_file() {
    let set = |key, text| Setting::new(key, text).map(|s| (s.key, s.takes)).map_err(|e| e.to_string());
    assert_eq!(set("tokens.relay_expire_hours", "0.5"), Ok(("tokens.relay_expire_hours".into(), Takes::Now)));
    assert_eq!(set("builtin_relay.enabled", "false"), Ok(("builtin_relay.enabled".into(), Takes::Restart)));
    assert_eq!(set("trusted_proxies", "10.0.0.0/8, 192.168.0.0/16"), Ok(("trusted_proxies".into(), Takes::Now)));
    assert_eq!(set("log", "edgelink_relay=debug,info"), Ok(("log".into(), Takes::Now)));
    // The names of specification §9.2.
    for (alias, key) in [
        ("auth_token_expire_hours", "tokens.auth_expire_hours"),
        ("relay_token_expire_hours", "tokens.relay_expire_hours"),
        ("node_key_rotate_hours", "security.node_key_rotate_hours"),
        ("keepalive_interval_seconds", "keepalive_interval_seconds"),
    ] {
        assert_eq!(set(alias, "24"), Ok((key.to_owned(), Takes::Now)), "{alias}");
    }
    for (key, text, complaint) in [
        ("tokens.relay_expire_hour", "1", "did you mean `tokens.relay_expire_hours`?"),
        ("tokens", "{}", "unknown key `tokens`"),
        ("", "1", "unknown key"),
        ("tokens.relay_expire_hours", "soon", "`tokens.relay_expire_hours`"),
        ("tokens.relay_expire_hours", "-1", "must be"),
        ("tokens.relay_expire_hours", "0", "must be a number from"),
        ("security.require_authorization", "yes", "`security.require_authorization`"),
        ("trusted_proxies", "10.0.0.1/8", "bits are set behind the prefix"),
        ("keepalive_interval_seconds", "1", "must be a number from 5 to 120"),
        ("log", "loud", "must be a level"),
        ("log", "edgelink[span]=info", "must be a level"),
        ("database.path", "/tmp/x", "can only stand in the configuration file"),
        ("state_dir", "/tmp/x", "can only stand in the configuration file"),
        ("listen.http", "0.0.0.0:1", "can only stand in the configuration file"),
        ("jwt.secret", "0123456789", "can only stand in the configuration file"),
    ] {
        let error = set(key, text).unwrap_err();
        assert!(error.contains(complaint), "{key}={text}: {error}");
        assert!(!error.contains("0123456789"), "no secret is quoted: {error}");
    }
}

#[test]
fn every_setting_is_listed_once_and_can_be_found() {
    let all = Setting::all();
    for info in &all {
        assert_eq!(Setting::key(&info.key).unwrap(), info.key);
        assert!(!info.doc.is_empty(), "{}", info.key);
        assert_eq!(all.iter().filter(|other| other.key == info.key).count(), 1);
    }
    assert!(all.iter().any(|info| info.key == "tokens.auth_expire_hours" && info.takes == Takes::Now));
    assert!(!all.iter().any(|info| info.key.starts_with("jwt") || info.key.starts_with("database")));
}

#[test]
fn the_database_outranks_the_file_and_the_environment_both() {
    let path = written("rank", r#"{"tokens": {"relay_expire_hours": 2, "auth_expire_hours": 20}}"#);
    let kept = settings(&[("tokens.relay_expire_hours", "3"), ("security.require_authorization", "false")]);
    let (config, _) = load_controller(Some(&path), &kept, &Env::default()).unwrap();
    assert_eq!((config.tokens.relay_expire_hours.0, config.tokens.auth_expire_hours.0), (3.0, 20.0));
    assert!(!config.security.require_authorization);
    let env = Env::new([("EDGELINK_TOKENS__RELAY_EXPIRE_HOURS", "4")]);
    let (config, _) = load_controller(Some(&path), &kept, &env).unwrap();
    assert_eq!(config.tokens.relay_expire_hours.0, 4.0);
    let hidden = ("tokens.relay_expire_hours".to_owned(), "EDGELINK_TOKENS__RELAY_EXPIRE_HOURS".to_owned());
    assert_eq!(hidden_by_environment(&kept, &env), [hidden]);
    // What a database holds is checked again: another program may have written it.
    let bad = settings(&[("tokens.relay_expire_hours", "never")]);
    let error = load_controller(Some(&path), &bad, &Env::default()).unwrap_err().to_string();
    assert!(error.starts_with("setting: ") && error.contains("tokens.relay_expire_hours"), "{error}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn what_belongs_together_is_checked_with_the_file() {
    let path = written("together", "{}");
    // By itself fine; without `tls.key` it is not.
    Setting::new("tls.cert", "/etc/cert.pem").unwrap();
    let kept = settings(&[("tls.cert", "/etc/cert.pem")]);
    let error = load_controller(Some(&path), &kept, &Env::default()).unwrap_err().to_string();
    assert!(error.contains("`cert` and `key` are both needed"), "{error}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn changes_name_keys_values_and_when_they_are_in_force() {
    let old = file(r#"{"tokens": {"relay_expire_hours": 1.5}, "tls": {"cert": "/a", "key": "/b"}}"#);
    let new = file(
        r#"{"tokens": {"relay_expire_hours": 0.5}, "tls": {"cert": "/c", "key": "/b"},
            "builtin_relay": {"enabled": false}, "trusted_proxies": ["10.0.0.0/8"]}"#,
    );
    let shown: Vec<(String, Takes)> = old.changes(&new).iter().map(|c| (c.to_string(), c.takes)).collect();
    assert_eq!(
        shown,
        [
            ("builtin_relay.enabled true → false".to_owned(), Takes::Restart),
            ("tls.cert \"/a\" → \"/c\"".to_owned(), Takes::Now),
            ("tokens.relay_expire_hours 1.5 → 0.5".to_owned(), Takes::Now),
            ("trusted_proxies [] → [\"10.0.0.0/8\"]".to_owned(), Takes::Now),
        ]
    );
    assert_eq!(old.changes(&old), []);
    // Another way of doing TLS needs a restart, and so does another secret, which is not shown.
    let plain = file(r#"{"tokens": {"relay_expire_hours": 1.5}, "tls": null}"#);
    let shown: Vec<String> = old.changes(&plain).iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["tls files → null"]);
    let secret = |text: &str| file(&format!(r#"{{"jwt": {{"secret": "{text}-0123456789-0123456789-0123456789"}}}}"#));
    let changed = secret("one").changes(&secret("two"));
    assert_eq!(changed.len(), 1);
    assert_eq!((changed[0].key.as_str(), changed[0].takes), ("jwt.secret", Takes::Restart));
    assert!(!changed[0].to_string().contains("two"));
}

/// The list of keys that take effect at once and the function that takes them over say the same.
#[test]
fn exactly_what_is_promised_can_change_at_run_time() {
    let other = |key: &str| match key {
        "trusted_proxies" => "10.0.0.0/8".to_owned(),
        "log" => "debug".to_owned(),
        "security.require_authorization" | "security.require_route_approval" | "builtin_relay.enabled" => {
            "false".to_owned()
        }
        "builtin_relay.allow_local_addresses" => "true".to_owned(),
        "keepalive_interval_seconds" => "30".to_owned(),
        "public_url" => "wss://other.example.com".to_owned(),
        key if key.ends_with("_hours") => "7".to_owned(),
        _ => "/other".to_owned(),
    };
    let text = r#"{"tls": {"cert": "/a", "key": "/b"}}"#;
    let base = file(text);
    for info in Setting::all() {
        let path = written("one", text);
        let kept = settings(&[(&info.key, &other(&info.key))]);
        let (new, _) = load_controller(Some(&path), &kept, &Env::default()).unwrap();
        assert_eq!(base.changes(&new).len(), 1, "{}: {:?}", info.key, base.changes(&new));
        let mut running = base.clone();
        running.take_run_time(&new);
        assert_eq!(running == new, info.takes == Takes::Now, "{}", info.key);
        std::fs::remove_file(path).unwrap();
    }
    assert!(base.validate().is_ok());
}
