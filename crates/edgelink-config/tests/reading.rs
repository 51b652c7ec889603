//! What a person who makes a mistake is told, word for word.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use edgelink_config::*;
use proptest::prelude::*;
use std::path::Path;

fn read<T: Config>(text: &str) -> Result<T, ConfigError> {
    parse(Path::new("/etc/el.json"), text, &Env::default())
}

fn with_env<T: Config>(text: &str, env: &[(&str, &str)]) -> Result<T, ConfigError> {
    parse(Path::new("/etc/el.json"), text, &Env::new(env.iter().copied()))
}

/// Asserts each text's exact error.
macro_rules! refuses {
    ($ty:ty: $($text:expr => $message:expr;)*) => {
        $(match read::<$ty>($text) {
            Ok(_) => panic!("accepted: {}", $text),
            Err(error) => assert_eq!(error.to_string(), $message, "for {}", $text),
        })*
    };
}

#[test]
fn an_unknown_key_is_named_with_the_nearest_known_one() {
    refuses! { ControllerConfig:
        "{\n  \"builtin_relay\": {\n    \"enabeld\": true\n  }\n}" =>
            "/etc/el.json:3: unknown key `builtin_relay.enabeld`; did you mean `builtin_relay.enabled`?";
        r#"{"listn": {}}"# => "/etc/el.json:1: unknown key `listn`; did you mean `listen`?";
        r#"{"require_authorization": true}"# =>
            "/etc/el.json:1: unknown key `require_authorization`; did you mean `security.require_authorization`?";
        r#"{"quux": 1}"# => "/etc/el.json:1: unknown key `quux`";
        r#"{"tls": {"certificate": "x"}}"# => "/etc/el.json:1: unknown key `tls.certificate`";
    }
    refuses! { ClientConfig:
        r#"{"advertise_routes": [{"cidr": "10.0.0.0/8"}, {"cdir": "10.0.0.0/8"}]}"# =>
            "/etc/el.json:1: unknown key `advertise_routes[1].cdir`; did you mean `advertise_routes.cidr`?";
        r#"{"mtu": 1400}"# => "/etc/el.json:1: unknown key `mtu`; did you mean `tun.mtu`?";
    }
}

/// Found by the fuzz target `config`: a key from a file of dubious origin must not command the terminal that shows it.
#[test]
fn control_characters_in_names_are_escaped() {
    refuses! { ClientConfig:
        "{\"\u{7f}x\\u001b[2J\": 1}" => "/etc/el.json:1: unknown key `\\u{7f}x\\u{1b}[2J`";
        r#"{"\u0007": 1, "\u0007": 2}"# => "/etc/el.json:1: `\\u{7}` is given twice";
    }
    let error = with_env::<ClientConfig>("", &[("EDGELINK_\u{1b}[2J", "1")]).unwrap_err();
    assert!(error.to_string().starts_with("unknown environment variable EDGELINK_\\u{1b}[2J"), "{error}");
}

#[test]
fn an_ill_typed_or_malformed_value_is_named_with_what_would_be_right() {
    refuses! { ControllerConfig:
        "[]" => "/etc/el.json: `(the whole file)` must be an object { … }, not a list";
        r#"{"listen": "0.0.0.0:443"}"# => "/etc/el.json:1: `listen` must be an object { … }, not a string";
        r#"{"listen": null}"# => "/etc/el.json:1: `listen` must be an object { … }, not null";
        r#"{"builtin_relay": {"enabled": "yes"}}"# =>
            "/etc/el.json:1: `builtin_relay.enabled` must be true or false, not a string";
        r#"{"listen": {"http": "443"}}"# =>
            "/etc/el.json:1: `listen.http` must be an IP address and port such as \"0.0.0.0:443\" or \"[::]:443\", not \"443\"";
        r#"{"listen": {"http": "0.0.0.0:65536"}}"# =>
            "/etc/el.json:1: `listen.http` must be an IP address and port such as \"0.0.0.0:443\" or \"[::]:443\", not \"0.0.0.0:65536\"";
        r#"{"listen": {"ws_control": "ws/control"}}"# =>
            "/etc/el.json:1: `listen.ws_control` must be a URL path such as \"/ws/data\", not \"ws/control\"";
        r#"{"database": {"type": "postgres"}}"# =>
            "/etc/el.json:1: `database.type` must be \"sqlite\" or \"mariadb\", not \"postgres\"";
        r#"{"jwt": {"algorithm": "none"}}"# =>
            "/etc/el.json:1: `jwt.algorithm` must be \"EdDSA\", \"RS256\" or \"HS256\", not \"none\"";
        r#"{"tokens": {"auth_expire_hours": "24"}}"# =>
            "/etc/el.json:1: `tokens.auth_expire_hours` must be a number of hours, not a string";
        r#"{"tokens": {"auth_expire_hours": -1}}"# =>
            "/etc/el.json:1: `tokens.auth_expire_hours` must be a number of hours, not -1";
        r#"{"security": {"node_key_rotate_hours": 169}}"# =>
            "/etc/el.json:1: `security.node_key_rotate_hours` must be a number from 0.0027 to 168, not 169";
        r#"{"builtin_stun": {"external_ip": "relay.example.com"}}"# =>
            "/etc/el.json:1: `builtin_stun.external_ip` must be an IP address such as \"198.18.0.1\", not \"relay.example.com\"";
        r#"{"trusted_proxies": ["10.0.0.0/8", "10.0.0.1/8"]}"# =>
            "/etc/el.json:1: `trusted_proxies[1]` must be a network in CIDR notation such as \"192.168.1.0/24\", \
             not \"10.0.0.1/8\" (bits are set behind the prefix; do you mean 10.0.0.0/8?)";
        r#"{"public_url": "https://c.example"}"# =>
            "/etc/el.json:1: `public_url` must be a URL such as \"wss://controller.example.com\", \
             not \"https://c.example\" (write wss:// instead of https:// (ws:// for plain HTTP))";
        r#"{"state_dir": ""}"# =>
            "/etc/el.json:1: `state_dir` must be the path of a file or directory, not \"\" (it is empty)";
    }
    refuses! { ClientConfig:
        r#"{"tun": {"mtu": 70000}}"# => "/etc/el.json:1: `tun.mtu` must be a whole number from 0 to 65535, not 70000";
        r#"{"tun": {"mtu": 1279}}"# => "/etc/el.json:1: `tun.mtu` must be a number from 1280 to 9000, not 1279";
        r#"{"tun": {"mtu": 1400.5}}"# => "/etc/el.json:1: `tun.mtu` must be a whole number from 0 to 65535, not 1400.5";
        r#"{"tun": {"name": "a-name-too-long0"}}"# =>
            "/etc/el.json:1: `tun.name` must be an interface name of 1 to 15 letters, digits and -_., not \"a-name-too-long0\"";
        r#"{"advertise_routes": [{"priority": 1}]}"# => "/etc/el.json:1: `advertise_routes[0].cidr` is missing";
        r#"{"advertise_routes": [{"cidr": "10.0.0.0/8", "weight": 0}]}"# =>
            "/etc/el.json:1: `advertise_routes[0].weight` must be a number from 1 to 65535, not 0";
        r#"{"advertise_routes": {}}"# => "/etc/el.json:1: `advertise_routes` must be a list [ … ], not an object";
        r#"{"pin": "sha256:abcd"}"# =>
            "/etc/el.json:1: `pin` must be `sha256:` and 44 characters of base64, as the controller prints it, not \"sha256:abcd\"";
        r#"{"trust": {"pinned": ["sha256:12"]}}"# =>
            "/etc/el.json:1: `trust.pinned[0]` must be `sha256:` and 64 hex digits, not \"sha256:12\"";
        r#"{"trust": "nobody"}"# =>
            "/etc/el.json:1: `trust` must be \"tofu\", \"controller\" or { \"pinned\": [\"sha256:…\"] }, not \"nobody\"";
        r#"{"headers": {"Sec-WebSocket-Key": "x"}}"# =>
            "/etc/el.json:1: `headers.Sec-WebSocket-Key` must be a header that the WebSocket handshake does not need itself, not sec-websocket-key";
        r#"{"key_file": "~bob/keys.json"}"# =>
            "/etc/el.json:1: `key_file` must be the path of a file or directory, not \"~bob/keys.json\" \
             (`~user` is not supported; write the full path)";
        r#"{"key_file": "~/keys.json"}"# =>
            "/etc/el.json:1: `key_file` must be the path of a file or directory, not \"~/keys.json\" \
             (`~` needs the environment variable HOME)";
    }
}

#[test]
fn urls_say_what_is_wrong_with_them() {
    for (url, why) in [
        ("controller.example.com", "it does not begin with wss://"),
        ("wss://", "it is not a URL"),
        ("wss://user:pw@c.example", "it contains a user name; nothing here uses one"),
        ("wss://c.example/?a=b", "it has a query or fragment"),
        ("wss://c.example:0", "its port is not a number from 1 to 65535"),
        ("wss://c.example:99999", "its port is not a number from 1 to 65535"),
        ("wss://c.example:x", "its port is not a number from 1 to 65535"),
    ] {
        assert_eq!(url.parse::<WsUrl>(), Err(why.to_owned()), "{url}");
    }
    let url: WsUrl = "wss://[2001:db8::1]:8443/ws/x".parse().unwrap();
    assert_eq!((url.host(), url.port(), url.path(), url.is_tls()), ("[2001:db8::1]", 8443, "/ws/x", true));
    assert_eq!(
        (url.origin(), url.to_string()),
        ("wss://[2001:db8::1]:8443".into(), "wss://[2001:db8::1]:8443/ws/x".into())
    );
    let bare: WsUrl = "ws://c.example".parse().unwrap();
    assert_eq!((bare.port(), bare.path(), bare.is_tls()), (80, "/", false));
    assert_eq!(bare.clone().or_path("/ws/control").to_string(), "ws://c.example/ws/control");
    assert_eq!(url.clone().or_path("/ws/control"), url);
}

#[test]
fn broken_json_is_located_and_liberties_are_not_taken() {
    refuses! { ClientConfig:
        "{\n  \"tun\": {\n" => "/etc/el.json:2: not valid JSON: Unterminated object (line 2, column 10)";
        "{\"a\": 1} {}" => "/etc/el.json:1: not valid JSON: Text cannot contain more than one JSON value (line 1, column 10)";
        "{\"hostname\": \"a\",\n \"hostname\": \"b\"}" => "/etc/el.json:2: `hostname` is given twice";
    }
    for text in [
        "{hostname: \"a\"}",
        "{'hostname': 'a'}",
        "{\"tun\": {\"mtu\": 0x578}}",
        "{\"tun\": {\"mtu\": +1400}}",
        "{\"accept_routes\": true \"hostname\": \"a\"}",
    ] {
        assert!(matches!(read::<ClientConfig>(text), Err(ConfigError::Syntax { .. })), "{text}");
    }
    let deep = "[".repeat(100_000);
    assert!(matches!(read::<ClientConfig>(&deep), Err(ConfigError::Syntax { .. })));
}

#[test]
fn comments_trailing_commas_bom_and_an_empty_file_are_fine() {
    let text = "\u{feff}// a comment\n{ /* another */ \"hostname\": \"a\", \"tun\": { \"mtu\": 1300, }, }\n";
    let config: ClientConfig = read(text).unwrap();
    assert_eq!((config.hostname.as_deref(), config.tun.mtu, config.tun.name.as_str()), (Some("a"), 1300, "wss-mesh0"));
    assert_eq!(read::<ClientConfig>("").unwrap(), ClientConfig::default());
    assert_eq!(read::<ClientConfig>("// nothing\n").unwrap(), ClientConfig::default());
}

#[test]
fn tls_absent_null_and_files_are_three_things() {
    assert_eq!(read::<ControllerConfig>("{}").unwrap().tls, Tls::OwnCertificate);
    assert_eq!(read::<ControllerConfig>(r#"{"tls": null}"#).unwrap().tls, Tls::Plain);
    let half: ControllerConfig = read(r#"{"tls": {"cert": "/c"}}"#).unwrap();
    assert!(half.validate().unwrap_err().to_string().contains("`cert` and `key` are both needed"));
}

#[test]
fn the_environment_overrides_the_file_key_by_key() {
    let file = r#"{"listen": {"http": "0.0.0.0:8443"}, "tls": {"cert": "/c", "key": "/k"}, "public_url": "wss://a"}"#;
    let env = [
        ("EDGELINK_LISTEN__HTTP", "[::1]:9443"),
        ("EDGELINK_BUILTIN_STUN__ENABLED", "false"),
        ("EDGELINK_TOKENS__RELAY_EXPIRE_HOURS", "0.25"),
        ("EDGELINK_TLS__CERT", "/other"),
        ("EDGELINK_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8"),
        ("EDGELINK_PUBLIC_URL", "wss://b:444,wss://c"),
        ("EDGELINK_DATABASE__URL", "mysql://u:p@h/d"),
        ("EDGELINK_JWT__ALGORITHM", "RS256"),
        ("EDGELINK_STATE_DIR", ""),
        ("EDGELINK_LOG", "debug"),
        ("EDGELINK_TESTBED_KEEP", "1"),
        ("PATH", "/bin"),
    ];
    let config: ControllerConfig = with_env(file, &env).unwrap();
    assert_eq!(config.listen.http, "[::1]:9443".parse().unwrap());
    assert_eq!(config.listen.ws_control.as_str(), "/ws/control");
    assert!(!config.builtin_stun.enabled);
    assert_eq!(config.tokens.relay_expire_hours, Hours(0.25));
    assert!(matches!(&config.tls, Tls::Files(f) if f.cert == Path::new("/other") && f.key == Path::new("/k")));
    assert_eq!(config.trusted_proxies, ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
    assert_eq!(config.public_url.0.iter().map(WsUrl::origin).collect::<Vec<_>>(), ["wss://b:444", "wss://c"]);
    assert_eq!(config.database.url, Some(Secret::new("mysql://u:p@h/d")));
    assert_eq!(config.jwt.unwrap().algorithm, Some(Algorithm::Rs256));
    assert_eq!(config.state_dir, None, "an empty variable is not set");

    let plain: ControllerConfig = with_env(file, &[("EDGELINK_TLS", "null")]).unwrap();
    assert_eq!(plain.tls, Tls::Plain);
    let both = [("EDGELINK_TLS__KEY", "/member"), ("EDGELINK_TLS", r#"{"cert": "/x", "key": "/y"}"#)];
    let both: ControllerConfig = with_env("{}", &both).unwrap();
    assert!(matches!(both.tls, Tls::Files(f) if f.cert == Path::new("/x") && f.key == Path::new("/member")));

    let routes = [("EDGELINK_ADVERTISE_ROUTES", r#"[{"cidr": "10.1.0.0/16"}]"#), ("EDGELINK_TRUST", "controller")];
    let client: ClientConfig = with_env("{}", &routes).unwrap();
    assert_eq!(client.advertise_routes.first().unwrap().weight, 100);
    assert_eq!(client.trust, Trust::Controller);
}

#[test]
fn a_wrong_variable_is_named() {
    let error = |env: &[(&str, &str)]| with_env::<ClientConfig>("{}", env).unwrap_err().to_string();
    assert_eq!(
        error(&[("EDGELINK_TUN_MTU", "1400")]),
        "unknown environment variable EDGELINK_TUN_MTU; did you mean `EDGELINK_TUN__MTU`?"
    );
    assert_eq!(error(&[("EDGELINK_QQQQQQQQ", "1")]), "unknown environment variable EDGELINK_QQQQQQQQ");
    assert_eq!(
        error(&[("EDGELINK_TUN__MTU", "big")]),
        "environment variable EDGELINK_TUN__MTU: not valid JSON: Unexpected word (line 1, column 1)"
    );
    assert_eq!(
        error(&[("EDGELINK_TUN__MTU", "100")]),
        "environment variable EDGELINK_TUN__MTU: `tun.mtu` must be a number from 1280 to 9000, not 100"
    );
    assert_eq!(
        error(&[("EDGELINK_P2P__ENABLED", "1")]),
        "environment variable EDGELINK_P2P__ENABLED: `p2p.enabled` must be true or false, not a number"
    );
    // Another EdgeLink program's variable may stand in a shared environment file.
    assert!(with_env::<ClientConfig>("{}", &[("EDGELINK_BUILTIN_RELAY__ENABLED", "false")]).is_ok());
}

/// Every key has exactly one variable and no two keys share one.
#[test]
fn variables_are_unambiguous() {
    for program in Program::ALL {
        let mut all = program.variables();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count, "{program:?}");
    }
    assert!(Program::Controller.variables().contains(&"EDGELINK_BUILTIN_RELAY__WS_DATA".to_owned()));
    assert!(Program::Client.variables().contains(&"EDGELINK_RELAY__LATENCY_REPORT_INTERVAL_SECONDS".to_owned()));
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_an_error_not_a_panic() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let env = Env::new([(OsStr::new("EDGELINK_HOSTNAME"), OsStr::from_bytes(b"\xff"))]);
    let error = parse::<ClientConfig>(Path::new("f"), "", &env).unwrap_err().to_string();
    assert_eq!(error, "environment variable EDGELINK_HOSTNAME: not valid JSON: the value is not UTF-8");
    let other = Env::new([(OsStr::from_bytes(b"\xff"), OsStr::from_bytes(b"\xff"))]);
    assert!(parse::<ClientConfig>(Path::new("f"), "", &other).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("none.json");
    let error = load::<ClientConfig>(Some(&file), &Env::default()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot read the configuration {}: ", file.display())), "{error}");
    std::fs::write(&file, "{\"hostname\": \"x\"}").unwrap();
    assert_eq!(load::<ClientConfig>(Some(&file), &Env::default()).unwrap().hostname.as_deref(), Some("x"));
}

#[test]
fn no_secret_reaches_debug_or_an_error() {
    let secret = "s3cr3t-s3cr3t-s3cr3t-s3cr3t-s3cr3t";
    let client =
        format!(r#"{{"auth_key": "{secret}", "proxy": "http://u:{secret}@p:1", "headers": {{"x-a": "{secret}"}}}}"#);
    let client: ClientConfig = read(&client).unwrap();
    assert_eq!(client.proxy.as_ref().unwrap().expose(), format!("http://u:{secret}@p:1"));
    assert_eq!(client.headers.0.get("x-a").unwrap(), secret);
    assert!(!format!("{client:?}").contains(secret));
    let controller = format!(r#"{{"jwt": {{"secret": "{secret}"}}, "database": {{"url": "{secret}"}}}}"#);
    assert!(!format!("{:?}", read::<ControllerConfig>(&controller).unwrap()).contains(secret));
    for text in [
        format!(r#"{{"auth_key": ["{secret}"]}}"#),
        format!(r#"{{"proxy": "{secret}"}}"#),
        format!(r#"{{"headers": {{"x-a": "{secret}\n"}}}}"#),
        format!(r#"{{"auth_key": "{secret}" oops}}"#),
    ] {
        let error = read::<ClientConfig>(&text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret), "{error}");
    }
}

proptest! {
    /// Whatever stands in the file, the reader answers and does not panic.
    #[test]
    fn arbitrary_text_is_answered(text in "\\PC{0,200}") {
        let _answered = read::<ClientConfig>(&text);
    }

    /// Any JSON value under any key is taken or refused; a refusal names that key.
    #[test]
    fn arbitrary_values_are_answered(
        key in prop::sample::select(vec!["controller", "pin", "trust", "tun", "advertise_routes", "p2p", "headers", "proxy", "key_file"]),
        value in prop::sample::select(vec!["null", "true", "0", "-1", "1e999", "\"\"", "\"x\"", "[]", "[null]", "[[]]", "{}", "{\"\": 1}", "{\"a\": {}}"]),
    ) {
        if let Err(error) = read::<ClientConfig>(&format!("{{\"{key}\": {value}}}")) {
            let named = error.to_string().contains(&format!("`{key}"));
            let located = matches!(error, ConfigError::Syntax { .. });
            prop_assert!(named || located, "{error}");
        }
    }
}

#[test]
fn further_networks_stand_for_themselves() {
    let text = r#"{
  "controller": "wss://a.example", "accept_routes": false, "tun": { "mtu": 1300 },
  "networks": [
    { "name": "lab", "controller": "wss://b.example", "tun": { "mtu": 1380 } },
    { "name": "home", "controller": "wss://c.example", "tun": { "name": "home0" } },
    { "name": "last", "controller": "wss://d.example" }
  ]
}"#;
    let config: ClientConfig = parse(Path::new("/etc/el.json"), text, &Env::default()).unwrap();
    assert_eq!(config.validate().unwrap(), Vec::<String>::new());
    let all: Vec<_> = config
        .further_networks()
        .into_iter()
        .map(|n| (n.name, n.config.tun.name.as_str().to_owned(), n.config.tun.mtu, n.config.accept_routes))
        .collect();
    // What the top level says of the first network is not taken over.
    let expected = [("lab", "wss-mesh1", 1380, true), ("home", "home0", 1400, true), ("last", "wss-mesh3", 1400, true)];
    assert_eq!(all, expected.map(|(name, tun, mtu, accept)| (name.to_owned(), tun.to_owned(), mtu, accept)));
}

#[test]
fn mistakes_in_further_networks_are_named_with_their_place() {
    let read = |networks: &str| {
        let text = format!("{{ \"networks\":\n{networks} }}");
        parse::<ClientConfig>(Path::new("f"), &text, &Env::default())
            .and_then(|config| config.validate().map(drop))
            .map_err(|error| error.to_string())
            .unwrap_err()
    };
    let lab = r#""name": "lab", "controller": "wss://b.example""#;
    for (networks, words) in [
        (r#"[{ "controller": "wss://b.example" }]"#.to_owned(), "`networks[0].name`"),
        (r#"[{ "name": "lab" }]"#.to_owned(), "`networks[0].controller`"),
        (
            r#"[{ "name": "../x", "controller": "wss://b.example" }]"#.to_owned(),
            "f:2: `networks[0].name` must be 1 to 64",
        ),
        (format!(r#"[{{ {lab}, "tun": {{ "mtu": 70 }} }}]"#), "`networks[0].tun.mtu` must be a number from 1280"),
        (format!(r#"[{{ {lab}, "state_dir": "/x" }}]"#), "`networks[0].state_dir`"),
        (format!(r#"[{{ {lab}, "networks": [] }}]"#), "`networks[0].networks`"),
        (format!("[{{ {lab} }}, {{ {lab} }}]"), "\"lab\" is there twice"),
        (format!(r#"[{{ {lab}, "tun": {{ "name": "wss_mesh0" }} }}]"#), "another network has the interface wss_mesh0"),
        (format!(r#"[{{ {lab}, "auth_key": "CHANGE_ME" }}]"#), "\"lab\", `auth_key`: this is a placeholder"),
    ] {
        let error = read(&networks);
        assert!(error.contains(words), "{networks}: {error}");
    }
}
