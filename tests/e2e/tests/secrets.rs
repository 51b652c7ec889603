//! Whatever is logged, at debug level: no secret of the installation is in it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeMap, fs, path::Path};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use edgelink_e2e::{
    Net, NetOptions, SOON, binary, random,
    raw::{Rogue, hello},
};
use edgelink_testbed::{Process, topology::TcpOnly, wait};
use serde_json::{Value, json};

const PASSWORD: &str = "correct horse battery";

/// What must be in no log: what it is, and every way to write it.
type Secrets = BTreeMap<String, Vec<String>>;

/// The ways to write bytes: base64, hexadecimal, and as Rust shows them.
fn written(bytes: &[u8]) -> Vec<String> {
    assert!(bytes.len() >= 32);
    let list = format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    vec![STANDARD.encode(bytes), URL_SAFE_NO_PAD.encode(bytes), hex::encode(bytes), hex::encode_upper(bytes), list]
}

/// Every private key in the files of a directory: machine keys in JSON, TLS keys in PEM.
fn private_keys(dir: &Path, secrets: &mut Secrets) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            private_keys(&path, secrets);
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = path.display().to_string();
        let json: Option<Value> = serde_json::from_str(&text).ok();
        if let Some(seed) = json.as_ref().and_then(|file| file["machine_key"].as_str()) {
            secrets.insert(format!("the machine key in {name}"), written(&STANDARD.decode(seed).unwrap()));
        }
        if let Some((_, body)) = text.split_once("PRIVATE KEY-----\n") {
            let body: Vec<String> = body.lines().take_while(|line| !line.starts_with('-')).map(str::to_owned).collect();
            secrets.insert(format!("the private key in {name}"), body);
        }
    }
}

#[test]
fn no_secret_is_in_any_log_at_debug_level() {
    let jwt_secret = STANDARD.encode(random::<36>().unwrap());
    let jwt = json!({ "algorithm": "HS256", "secret": jwt_secret });
    let options = NetOptions { controller: Some(json!({ "log": "debug", "jwt": jwt })), ..NetOptions::default() };
    let Some(mut net) = Net::lab(&["a", "b"], options).unwrap() else { return };
    let dir = net.lab_ref().dir().to_owned();
    // A second relay on the controller's host, at another port.
    let at = TcpOnly::RELAY;
    net.topology
        .router
        .nft(&format!(
            "table inet lab_filter\ndelete table inet lab_filter\ntable inet lab_filter {{\n  chain forward {{\n    \
             type filter hook forward priority 0; policy drop;\n    ct state established,related accept\n    \
             ip daddr {at} tcp dport {{ 443, 8443 }} accept\n  }}\n}}\n"
        ))
        .unwrap();
    net.start_controller().unwrap();
    let controller_url = net.url().unwrap().to_owned();
    let url = format!("wss://{at}:8443/ws/data");
    let added =
        net.ctl_json(&["server", "add", "--name", "r", "--url", &url, "--controller", &controller_url]).unwrap();
    let mut config = added["config"].clone();
    config["state_dir"] = json!(dir.join("relay"));
    config["relay"] = json!({ "listen": "0.0.0.0:8443", "public_url": url });
    config["jwt"] = jwt.clone();
    let file = dir.join("r.json");
    fs::write(&file, config.to_string()).unwrap();
    let command = net.topology.relay.command(binary("edgelink-server").unwrap()).env("EDGELINK_LOG", "debug");
    let relay = command.arg("--config").arg(&file).spawn_logged().unwrap();
    relay.wait_line("ready server ", SOON).unwrap();

    // Nodes with a pre-shared key, which reach each other over either relay.
    let key = net.auth_key("default", &["--preauthorize", "--reusable"]).unwrap();
    let pin = net.join_flag("--pin").unwrap().to_owned();
    let psk = random::<32>().unwrap();
    for node in &mut net.nodes {
        let ca = dir.join("relay").join("ca.pem");
        node.configure(&json!({ "ca_file": ca, "psk": STANDARD.encode(psk) })).unwrap();
        let command = node.daemon().unwrap().env("EDGELINK_LOG", "debug");
        node.run_as(command).unwrap();
        let up = node.up(&[&controller_url, "--key", &key, "--pin", &pin]).unwrap();
        assert!(up.status.success(), "{}", up.stderr);
    }
    for node in &net.nodes {
        node.wait_status("both relays", SOON, |s| s.relays.iter().filter(|r| r.connected).count() == 2).unwrap();
    }
    net.nodes[0].wait_ping(net.nodes[1].overlay().unwrap(), SOON).unwrap();

    // An administrator, with a mistake.
    let ctl = |password: &str, arguments: &[&str]| {
        let command = net.nodes[0].host.command(binary("edgelink-ctl").unwrap()).env("HOME", &dir);
        let url = controller_url.replace("wss://", "https://");
        let command = command.env("EDGELINK_PASSWORD", password).args(["--json", "--url", &url, "--pin", &pin]);
        command.args(arguments).timeout(SOON).output().unwrap()
    };
    let create = net.ctl(&["admin", "create", "--username", "root"]).unwrap();
    create.env("EDGELINK_PASSWORD", PASSWORD).run().unwrap();
    let typed = "typed-by-mistake-0815";
    let login = ["login", "--username", "root"];
    assert!(!ctl(typed, &login).status.success());
    for arguments in [&login[..], &["node", "list"]] {
        let output = ctl(PASSWORD, arguments);
        assert!(output.status.success(), "{}", output.stderr);
    }

    // A machine whose tokens we see, and which shows each at wrong doors.
    let door = net.door(0).unwrap();
    let (rogue, channel) = Rogue::enrol(&door, &key).unwrap();
    let tokens = [("auth_token", &rogue.tokens.auth_token), ("relay_token", &rogue.tokens.relay_token)];
    for (_, token) in tokens {
        for path in ["/ws/server", "/ws/mesh"] {
            let mut wrong = door.dial(path).unwrap();
            wrong.say(hello(&rogue.machine, token)).unwrap();
            assert_eq!(wrong.wait_error().unwrap().code, 1001);
        }
    }
    drop(rogue.relay(&door).unwrap());
    drop(channel);

    let mut secrets = Secrets::new();
    secrets.insert("jwt.secret".to_owned(), written(jwt_secret.as_bytes()));
    secrets.insert("jwt.secret as it is".to_owned(), vec![jwt_secret]);
    secrets.insert("the auth key".to_owned(), vec![key]);
    secrets.insert("the pre-shared key".to_owned(), written(&psk));
    secrets.insert("the password".to_owned(), vec![PASSWORD.to_owned(), typed.to_owned(), "$argon2id".to_owned()]);
    let server_token = config["controller"]["token"].as_str().expect("the server_token").to_owned();
    let parts = |token: &str| -> Vec<String> { token.split('.').skip(1).map(str::to_owned).collect() };
    secrets.insert("the server_token".to_owned(), parts(&server_token));
    for (kind, token) in tokens {
        assert_eq!(parts(token).len(), 2, "{kind}");
        secrets.insert(format!("the {kind}"), parts(token));
    }
    private_keys(&dir, &mut secrets);
    let found = |word: &str| secrets.keys().filter(|what| what.contains(word)).count();
    assert_eq!(found("machine key"), 2, "{:?}", secrets.keys());
    assert!(found("private key") >= 2, "the controller's and the relay's: {:?}", secrets.keys());

    // The logs, all that was said being written.
    let logs = || -> Vec<(String, String)> {
        let nodes = net.nodes.iter().map(|node| node.process().unwrap());
        let all: Vec<&Process> = [net.controller().unwrap(), &relay].into_iter().chain(nodes).collect();
        all.into_iter().map(|process| (process.name().to_owned(), process.stdout() + &process.stderr())).collect()
    };
    let at_debug = || logs().iter().all(|(_, log)| log.contains("DEBUG")).then_some(());
    wait::until("debug lines of all", SOON, at_debug).unwrap();
    // Printed once, for the person at the terminal, and no other key ever.
    let printed = net.join_flag("--key").unwrap();
    for (name, log) in logs() {
        for (what, forms) in &secrets {
            for form in forms {
                let line = log.lines().find(|line| line.contains(form.as_str()));
                assert_eq!(line, None, "{what} is in the log of {name}");
            }
        }
        let token = log.lines().find(|line| line.contains("eyJ"));
        assert_eq!(token, None, "a token is in the log of {name}: all begin so");
        let keys = log.lines().filter(|line| line.contains("elk_")).collect::<Vec<_>>();
        assert!(keys.iter().all(|line| line.contains("edgelink up ") && line.contains(printed)), "{name}: {keys:?}");
        assert!(keys.len() <= 1, "{name}: {keys:?}");
        assert!(!log.contains("panicked"), "{name}");
    }
}
