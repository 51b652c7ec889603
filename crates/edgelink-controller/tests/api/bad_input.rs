//! Every bad input: the right status and code, a clear word, and nothing half done.

use crate::{Answer, Controller, Db, on_both};
use serde_json::{Value, json};
use std::io::Write as _;

on_both!(malformed_and_impossible_values);

fn malformed_and_impossible_values(db: Db) {
    let c = Controller::start(db);
    let node = c.knock(1);
    let version = |c: &Controller| c.get("/api/v1/stats/overview").json()["config_version"].clone();
    let before = version(&c);
    let networks = c.get("/api/v1/networks").json();
    for (path, body, status, want) in [
        ("networks", json!({ "name": "a", "subnet": "10.0.0.0" }), 422, "is not an IPv4 subnet"),
        ("networks", json!({ "name": "a", "subnet": "10.0.0.1/8" }), 422, "did you mean 10.0.0.0/8?"),
        ("networks", json!({ "name": "a", "subnet": "10.0.0.0/31" }), 422, "is too small"),
        ("networks", json!({ "name": "default", "subnet": "10.0.0.0/8" }), 409, "already a network named default"),
        ("networks", json!({ "name": "x'; DROP TABLE nodes; --", "subnet": "10.0.0.0/8" }), 422, "letters, digits"),
        ("networks", json!({ "name": "", "subnet": "10.0.0.0/8" }), 422, "is empty"),
        ("networks", json!({ "name": 7, "subnet": "10.0.0.0/8" }), 400, "name: invalid type: integer `7`"),
        ("networks", json!({ "subnet": "10.0.0.0/8" }), 400, "missing field `name`"),
        ("networks", json!({ "name": "a", "subnet": "10.0.0.0/8", "colour": 1 }), 400, "unknown field `colour`"),
        ("networks", json!({ "name": "a", "subnet": "10.0.0.0/8", "description": "x".repeat(1025) }), 422, "1024"),
        ("networks", json!([]), 400, "invalid"),
        ("nodes/1/routes", json!({ "cidr": "192.168.1.1/24" }), 422, "did you mean 192.168.1.0/24?"),
        ("nodes/1/routes", json!({ "cidr": "nonsense" }), 422, "is not a prefix"),
        ("nodes/1/routes", json!({ "cidr": "192.168.1.0/24", "priority": 65536 }), 400, "priority: "),
        ("nodes/1/routes", json!({ "cidr": "192.168.1.0/24", "weight": 0 }), 422, "1 to 65535"),
        ("nodes/99/routes", json!({ "cidr": "192.168.1.0/24" }), 404, "there is no node 99"),
        ("servers", json!({ "name": "a" }), 422, "a relay needs a URL"),
        ("servers", json!({ "name": "a", "url": "https://x" }), 422, "url: "),
        ("servers", json!({ "name": "a", "capabilities": ["fly"] }), 400, "unknown variant `fly`"),
        ("servers", json!({ "name": "a", "capabilities": [] }), 422, "needs a capability"),
        ("servers", json!({ "name": "a", "capabilities": ["stun"] }), 422, "needs its public address"),
        ("servers", json!({ "name": "a", "capabilities": ["stun"], "stun_ip": "x" }), 422, "is not an IP address"),
        ("auth-keys", json!({ "network_id": 99 }), 404, "there is no network 99"),
        ("auth-keys", json!({ "network_id": 1, "expires_in": 0 }), 400, "expires_in"),
        ("auth-keys", json!({ "network_id": -1 }), 400, "network_id"),
        ("admins", json!({ "username": "bob", "password": "short" }), 422, "at least 8 characters"),
        ("admins", json!({ "username": "alice", "password": "long enough" }), 409, "already an administrator"),
        ("admins", json!({ "username": "a b", "password": "long enough" }), 422, "letters, digits"),
    ] {
        let code = if status == 404 && path.starts_with("nodes") { 3001 } else { 2002 };
        let said = c.post(&format!("/api/v1/{path}"), body.clone()).problem(status, code);
        assert!(said.contains(want), "{body}: {said}");
    }
    for path in [
        "nodes/abc",
        "nodes/-1",
        "nodes/4294967296",
        "nodes?limit=0",
        "nodes?limit=1001",
        "nodes?limit=x",
        "nodes?colour=1",
        "nodes?online=maybe",
        "audit?target_id=x",
        "blacklist?node_id=x",
    ] {
        c.get(&format!("/api/v1/{path}")).problem(400, 2002);
    }
    for path in ["nodes/0", "nodes/99", "nodes/4294967295"] {
        c.get(&format!("/api/v1/{path}")).problem(404, 3001);
    }
    c.get("/api/v1/audit?since=yesterday").problem(422, 2002);
    c.get("/api/v1/nodes?network=nowhere").problem(404, 2002);
    c.get("/api/v1/nothing").problem(404, 2002);
    let answer = c.delete("/api/v1/networks");
    answer.problem(405, 2002);
    let allow = answer.header("allow").unwrap();
    assert!(allow.contains("GET") && allow.contains("POST") && !allow.contains("DELETE"), "{allow}");
    // Deleting a network with nodes.
    c.delete("/api/v1/networks/1").problem(409, 2002);

    assert_eq!(version(&c), before, "nothing was changed");
    assert_eq!(c.get("/api/v1/networks").json(), networks);
    assert_eq!(c.get(&format!("/api/v1/nodes/{}/routes", node.id)).json(), json!([]));
    assert_eq!(c.get("/api/v1/servers").json().as_array().unwrap().len(), 1);
    assert_eq!(c.get("/api/v1/admins").json().as_array().unwrap().len(), 1);
    assert!(!c.log().contains("ERROR"), "{}", c.log());
}

on_both!(a_full_pool_authorizes_nobody);

fn a_full_pool_authorizes_nobody(db: Db) {
    let c = Controller::start(db);
    let network = c.post("/api/v1/networks", json!({ "name": "tiny", "subnet": "10.7.0.0/30" })).json();
    let path = format!("/api/v1/networks/{}", network["id"]);
    let key = c.post("/api/v1/auth-keys", json!({ "network_id": network["id"], "reusable": true })).json();
    let nodes: Vec<u32> = (1..=3).map(|machine| c.knock_with(machine, key["key"].as_str()).id.0).collect();
    let authorize = |node: u32| c.act(&format!("/api/v1/nodes/{node}/authorize"));
    assert_eq!(authorize(nodes[0]).json()["virtual_ip"], "10.7.0.1");
    assert_eq!(authorize(nodes[1]).json()["virtual_ip"], "10.7.0.2");
    let said = authorize(nodes[2]).problem(409, 2002);
    assert!(said.contains("no free address is left in the network's subnet 10.7.0.0/30"), "{said}");
    assert_eq!(c.get(&format!("/api/v1/nodes/{}", nodes[2])).json()["authorized"], false);
    let said = c.put(&path, json!({ "subnet": "10.8.0.0/24" })).problem(409, 2002);
    assert!(said.contains("10.7.0.1, which is no host of 10.8.0.0/24"), "{said}");
    c.put(&path, json!({ "subnet": "10.7.0.0/29" })).json();
    assert_eq!(authorize(nodes[2]).json()["virtual_ip"], "10.7.0.3");
    c.delete(&path).problem(409, 2002);
}

#[test]
fn bodies_that_are_too_large_not_json_or_never_end() {
    let c = Controller::start(Db::Sqlite);
    let bearer = format!("Bearer {}", c.token);
    let post = |kind: &str, body: &str| {
        c.send("POST", "/api/v1/networks", &[("authorization", &bearer), ("content-type", kind)], body)
    };
    let json = r#"{"name": "a", "subnet": "10.0.0.0/8"}"#;
    post("text/plain", json).problem(415, 2002);
    post("application/jsonish", json).problem(415, 2002);
    assert_eq!(post("application/json; charset=utf-8", json).status, 201);
    for bad in ["{", "nonsense", "{\"name\": \"\u{1}\"}", "\u{feff}{}"] {
        post("application/json", bad).problem(400, 2002);
    }

    // 10 MB, announced: refused before it is read.
    let mut stream = c.connect();
    let head = format!(
        "POST /api/v1/networks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The controller may close while this is written.
    let _ = stream.write_all(&vec![b' '; 256 * 1024]);
    Answer::read(stream).problem(413, 2003);

    // 10 MB in chunks, not announced.
    let mut stream = c.connect();
    let head = format!(
        "POST /api/v1/networks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    for _ in 0..3 {
        let _ = stream.write_all(chunk.as_bytes());
    }
    Answer::read(stream).problem(413, 2003);

    // One that does not arrive.
    let mut stream = c.connect();
    let head = format!(
        "POST /api/v1/networks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {bearer}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).unwrap();
    Answer::read(stream).problem(408, 2002);
    assert_eq!(c.get("/api/v1/networks").json().as_array().unwrap().len(), 2);
}

#[test]
fn one_address_cannot_take_all_connections() {
    let c = Controller::start(Db::Sqlite);
    let mut crowd: Vec<_> = (0..256).map(|_| c.connect()).collect();
    // Closed before a byte: accepted by the kernel, refused by the controller.
    let mut refused = c.connect();
    let _ = refused.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut byte = [0];
    let answer = std::io::Read::read(&mut refused, &mut byte);
    assert!(matches!(answer, Ok(0) | Err(_)), "{answer:?}");
    // Whoever goes makes room.
    crowd.truncate(200);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let mut stream = c.connect();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        if std::io::Read::read(&mut stream, &mut byte).is_ok_and(|n| n == 1) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "still kept out");
    }
}

on_both!(no_secret_is_in_any_answer_or_log);

fn no_secret_is_in_any_answer_or_log(db: Db) {
    let c = Controller::start(db);
    c.post("/api/v1/admins", json!({ "username": "bob", "password": "bob's password" })).json();
    let key = c.post("/api/v1/auth-keys", json!({ "network_id": 1 })).json();
    let server = c.post("/api/v1/servers", json!({ "name": "r", "url": "wss://r.example.com" })).json();
    c.login("alice", "a wrong password").problem(401, 1001);
    let node = c.knock_with(1, key["key"].as_str());
    c.act(&format!("/api/v1/nodes/{}/authorize", node.id)).json();
    c.post(&format!("/api/v1/nodes/{}/routes", node.id), json!({ "cidr": "192.168.1.0/24" })).json();
    let token_keys: Value =
        serde_json::from_str(&c.store(async |store| store.setting(edgelink_store::TOKEN_KEYS).await.unwrap().unwrap()))
            .unwrap();
    let hashes = c.store(async |store| store.credentials("bob").await.unwrap().unwrap().password_hash);
    let mut secrets = vec![
        "bob's password".to_owned(),
        crate::controller::PASSWORD.to_owned(),
        "a wrong password".to_owned(),
        c.token.clone(),
        key["key"].as_str().unwrap().to_owned(),
        edgelink_auth::auth_key::hash(key["key"].as_str().unwrap()),
        server["token"].as_str().unwrap().to_owned(),
        "$argon2".to_owned(),
        hashes,
    ];
    collect_strings(&token_keys, &mut secrets);
    assert!(secrets.len() > 10, "the token keys are among them");

    let document = c.get("/api/v1/openapi.json").json();
    let mut asked = 0;
    let mut texts = vec![c.log()];
    for (path, item) in document["paths"].as_object().unwrap() {
        if item.get("get").is_none() || path.ends_with("openapi.json") {
            continue;
        }
        let answer = c.get(&path.replace("{id}", "1").replace("{rid}", "1"));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        texts.push(answer.text);
        asked += 1;
    }
    assert!(asked >= 18, "{asked}");
    for secret in &secrets {
        for text in &texts {
            assert!(!text.contains(secret.as_str()), "{secret} in {text}");
        }
    }
}

fn collect_strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) if text.len() >= 32 => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect_strings(item, into)),
        Value::Object(map) => map.values().for_each(|item| collect_strings(item, into)),
        _ => {}
    }
}

#[test]
fn only_trusted_proxies_say_whose_request_it_is() {
    let asks = |more: &str| {
        let c = Controller::start_with(Db::Sqlite, more);
        let body = r#"{"username": "bob", "password": "wrong password"}"#;
        let headers = [("content-type", "application/json"), ("x-forwarded-for", "192.0.2.66, 198.51.100.7")];
        c.send("POST", "/api/v1/auth/login", &headers, body).problem(401, 1001);
        c.store(async |store| store.audit_log(1).await.unwrap()[0].ip_address.clone().unwrap())
    };
    assert_eq!(asks(""), "127.0.0.1");
    assert_eq!(asks(r#""trusted_proxies": ["127.0.0.0/8"],"#), "198.51.100.7");
}
