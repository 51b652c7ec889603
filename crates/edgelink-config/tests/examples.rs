//! The examples in `config/` are those of specification §12, and every key of theirs arrives.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use edgelink_config::*;
use std::path::Path;

fn example<T: Config>(name: &str) -> T {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name);
    load(Some(&file), &Env::new([("HOME", "/home/alice")])).unwrap()
}

#[test]
fn controller_example() {
    let config: ControllerConfig = example("controller.example.json");
    assert_eq!(config.listen.http, "0.0.0.0:443".parse().unwrap());
    assert_eq!((config.listen.ws_control.as_str(), config.listen.ws_server.as_str()), ("/ws/control", "/ws/server"));
    let Tls::Files(files) = &config.tls else { panic!("{:?}", config.tls) };
    assert_eq!(
        (files.cert.as_path(), files.key.as_path()),
        ("/etc/wss-mesh/cert.pem".as_ref(), "/etc/wss-mesh/key.pem".as_ref())
    );
    assert_eq!(config.database.kind, DatabaseType::Sqlite);
    assert_eq!(config.database.path, Some("/var/lib/wss-mesh/mesh.db".into()));
    let jwt = config.jwt.as_ref().unwrap();
    assert_eq!(jwt.secret, Some(Secret::new("your-secret-key-change-me")));
    assert_eq!(jwt.algorithm, Some(Algorithm::Hs256));
    assert_eq!(config.tokens.auth_expire_hours.duration().as_secs(), 24 * 3600);
    assert_eq!(config.tokens.relay_expire_hours.duration().as_secs(), 5400);
    assert_eq!(config.security.node_key_rotate_hours.duration().as_secs(), 86400);
    assert!(config.security.require_authorization);
    let relay = &config.builtin_relay;
    assert_eq!((relay.enabled, relay.ws_data.as_str(), relay.ws_mesh.as_str()), (true, "/ws/data", "/ws/mesh"));
    let stun = &config.builtin_stun;
    assert_eq!((stun.enabled, stun.listen), (true, "0.0.0.0:3478".parse().unwrap()));
    assert_eq!(stun.external_ip, Some("203.0.113.1".parse().unwrap()));
    assert_eq!(stun.secondary_ip, Some("203.0.113.2".parse().unwrap()));

    // Copying the example and running it must not work: everybody knows its secret.
    let refused = config.validate().unwrap_err().to_string();
    assert!(refused.contains("`jwt.secret`") && refused.contains("openssl rand -base64 48"), "{refused}");
    assert!(!refused.contains("your-secret-key-change-me"));
}

#[test]
fn server_example() {
    let config: ServerConfig = example("server.example.json");
    assert_eq!(config.controller.url.as_ref().unwrap().to_string(), "wss://controller.example.com/ws/server");
    assert_eq!(config.controller.token, Some(Secret::new("server-token-from-controller")));
    assert_eq!(config.jwt.as_ref().unwrap().secret, Some(Secret::new("same-secret-as-controller")));
    assert_eq!(config.jwt.as_ref().unwrap().algorithm(), Algorithm::Hs256);
    let relay = &config.relay;
    assert_eq!((relay.enabled, relay.listen), (true, "0.0.0.0:443".parse().unwrap()));
    assert_eq!((relay.ws_data.as_str(), relay.ws_mesh.as_str()), ("/ws/data", "/ws/mesh"));
    assert!(matches!(&relay.tls, Tls::Files(files) if files.key == Path::new("/etc/wss-mesh/key.pem")));
    assert_eq!((config.stun.enabled, config.stun.listen), (true, "0.0.0.0:3478".parse().unwrap()));
    assert_eq!(config.stun.external_ip, Some("203.0.113.100".parse().unwrap()));
    assert_eq!(config.stun.secondary_ip, Some("203.0.113.101".parse().unwrap()));
    assert_eq!(config.mesh.peers, ["wss://relay2.example.com/ws/mesh".parse().unwrap()]);
    let refused = config.validate().unwrap_err().to_string();
    assert!(refused.contains("`controller.token`") && refused.contains("edgelink-ctl server add"), "{refused}");
}

#[test]
fn client_example() {
    let config: ClientConfig = example("client.example.json");
    assert_eq!(config.controller.as_ref().unwrap().to_string(), "wss://controller.example.com/ws/control");
    assert_eq!(config.hostname.as_deref(), Some("my-laptop"));
    assert_eq!(config.key_file, Some("/home/alice/.wss-mesh/keys.json".into()));
    assert_eq!((config.tun.name.as_str(), config.tun.mtu), ("wss-mesh0", 1400));
    let route = AdvertisedRoute { cidr: "192.168.1.0/24".parse().unwrap(), priority: 100, weight: 50 };
    assert_eq!(config.advertise_routes, [route]);
    assert!(config.accept_routes);
    let gateway = &config.gateway_mode;
    assert_eq!((gateway.enabled, gateway.snat), (false, true));
    assert_eq!(gateway.lan_interface.as_ref().unwrap().as_str(), "eth0");
    assert!(config.p2p.enabled);
    assert_eq!(config.p2p.keepalive_interval_seconds.duration().as_secs(), 25);
    assert!(config.relay.connect_all);
    assert_eq!(config.relay.latency_report_interval_seconds.duration().as_secs(), 30);
    assert_eq!(config.validate().unwrap(), Vec::<String>::new());
}

/// The starter says what happens anyway, and each commented-out example in it is one that works.
#[test]
fn starters_are_the_defaults_and_their_examples_parse() {
    fn check<T: Config + PartialEq + std::fmt::Debug>() {
        let env = Env::new([("HOME", "/home/alice")]);
        let text = starter::<T>();
        let read: T = parse(Path::new("starter"), &text, &env).unwrap();
        assert_eq!(read, T::default());
        for variable in T::PROGRAM.variables() {
            assert!(text.contains(&variable), "{variable} is not told");
        }
        let uncommented = text.replace("// \"", "\"");
        assert_ne!(uncommented, text);
        let full: T =
            parse(Path::new("uncommented"), &uncommented, &env).unwrap_or_else(|e| panic!("{e}\n{uncommented}"));
        assert_ne!(full, T::default());
        assert!(text.lines().all(|line| line.len() <= 140), "a line is too long to read");
    }
    check::<ControllerConfig>();
    check::<ServerConfig>();
    check::<ClientConfig>();
}

#[test]
fn the_defaults_are_those_of_the_specification() {
    let controller = ControllerConfig::default();
    assert_eq!(controller.listen.http, "0.0.0.0:443".parse().unwrap());
    assert_eq!(controller.tls, Tls::OwnCertificate);
    assert_eq!((controller.jwt.is_none(), controller.database.kind), (true, DatabaseType::Sqlite));
    assert!(controller.security.require_authorization && controller.security.require_route_approval);
    assert!(controller.builtin_relay.enabled && controller.builtin_stun.enabled);
    assert_eq!(controller.validate().unwrap(), Vec::<String>::new());
    for path in [&controller.listen.ws_control, &controller.builtin_relay.ws_data] {
        assert_eq!(HttpPath::new(path.as_str()).as_ref(), Some(path));
    }

    let client = ClientConfig::default();
    assert_eq!((client.tun.name.as_str(), client.tun.mtu), ("wss-mesh0", 1400));
    assert!(client.p2p.enabled && client.accept_routes && client.relay.connect_all);
    assert!(!client.gateway_mode.enabled && client.gateway_mode.snat);
    assert_eq!(client.trust, Trust::Tofu);
    assert_eq!(client.validate().unwrap(), Vec::<String>::new());
}
