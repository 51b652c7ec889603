//! What each resource does, and that nodes would learn of it.

use crate::{Controller, Db, on_both};
use serde_json::{Value, json};

on_both!(networks);

fn networks(db: Db) {
    let c = Controller::start(db);
    let made = c.post("/api/v1/networks", json!({ "name": "main", "subnet": "10.100.0.0/16" }));
    let location = made.header("location").unwrap().to_owned();
    assert_eq!(made.status, 201);
    let network = made.json();
    assert_eq!(network["nodes"], 0);

    let got = c.get(&location);
    assert_eq!(got.json(), network);
    let etag = got.header("etag").unwrap().to_owned();
    let changed = c.put_if(&location, &etag, json!({ "description": "the first", "subnet": "10.100.0.0/15" }));
    assert_ne!(changed.header("etag"), Some(etag.as_str()));
    assert_eq!(changed.json()["subnet"], "10.100.0.0/15");
    assert_eq!(changed.json()["name"], "main", "what is left out stays");
    let said = c.put_if(&location, &etag, json!({ "description": "the second" })).problem(412, 2002);
    assert!(said.starts_with("it was changed meanwhile"), "{said}");
    assert_eq!(c.get(&location).json()["description"], "the first");
    c.put_if(&location, "*", json!({ "description": "the third" })).json();

    let singular = location.replace("/networks/", "/network/");
    assert_eq!(c.get(&singular).json()["description"], "the third");
    assert_eq!(c.get("/api/v1/network?name=main").json().as_array().unwrap().len(), 1);

    c.delete(&location).json();
    c.get(&location).problem(404, 2002);
    let said = c.delete("/api/v1/networks/1").problem(409, 2002);
    assert!(said.contains("cannot be deleted"), "{said}");
}

on_both!(nodes);

fn nodes(db: Db) {
    let c = Controller::start(db);
    let node = c.knock(1);
    let path = format!("/api/v1/nodes/{}", node.id);
    assert_eq!(c.get(&path).json()["authorized"], false);
    let authorized = c.act(&format!("{path}/authorize")).json();
    assert_eq!((&authorized["authorized"], &authorized["virtual_ip"]), (&json!(true), &json!("10.0.1.1")));
    let renamed = c.put(&path, json!({ "name": "web-1" })).json();
    assert_eq!(renamed["name"], "web-1");
    assert_eq!(c.get("/api/v1/nodes?name=web-1&network=default&authorized=true&online=false").json(), json!([renamed]));
    assert_eq!(c.get("/api/v1/nodes?online=true").json(), json!([]));
    let endpoint = edgelink_model::records::EndpointRecord {
        kind: "stun".into(),
        address: "203.0.113.5:4000".parse().unwrap(),
        priority: 2,
    };
    let told = edgelink_model::records::NodeEndpoints { node: node.id, nat_type: None, endpoints: vec![endpoint] };
    c.store(async |store| store.set_endpoints(&[told]).await.unwrap());
    let p2p = json!({
        "endpoints": [{ "type": "stun", "address": "203.0.113.5:4000", "priority": 2 }], "peers": []
    });
    assert_eq!(c.get(&path).json()["p2p"], p2p);
    assert_eq!(c.get("/api/v1/nodes").json()[0].get("p2p"), None, "not in lists");
    assert_eq!(c.act(&format!("{path}/deauthorize")).json()["authorized"], false);
    let revoked = c.get(&format!("/api/v1/blacklist?node_id={}", node.id)).json();
    assert_eq!(revoked[0]["reason"], "deauthorized");
    assert_eq!(c.delete(&path).json(), json!({ "id": node.id.0, "deleted": true }));
    c.get(&path).problem(404, 3001);

    let log = c.get("/api/v1/audit?target_type=node").json();
    let actions: Vec<&str> = log.as_array().unwrap().iter().map(|l| l["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["node.delete", "node.deauthorize", "node.rename", "node.authorize", "node.knock"]);
    for line in log.as_array().unwrap().iter().take(4) {
        assert_eq!((&line["actor_type"], &line["actor_id"]), (&json!("admin"), &json!("alice")));
        assert_eq!((&line["target_id"], &line["ip_address"]), (&json!(node.id.0), &json!("127.0.0.1")));
    }
}

on_both!(routes);

fn routes(db: Db) {
    let c = Controller::start(db);
    for machine in 1..=3 {
        let node = c.knock(machine);
        c.act(&format!("/api/v1/nodes/{}/authorize", node.id)).json();
    }
    let add = |node: u32, body: Value| c.post(&format!("/api/v1/nodes/{node}/routes"), body);
    let first = add(1, json!({ "cidr": "192.168.1.0/24" }));
    let location = first.header("location").unwrap().to_owned();
    let first = first.json();
    assert_eq!((&first["priority"], &first["weight"], &first["enabled"]), (&json!(100), &json!(100), &json!(true)));
    add(2, json!({ "cidr": "192.168.1.0/24", "priority": 200, "enabled": false })).json();
    add(3, json!({ "cidr": "fd00:1::/64", "weight": 1 })).json();

    let table = c.get("/api/v1/routes").json();
    assert_eq!(table.as_array().unwrap().len(), 2);
    assert_eq!(table[0]["cidr"], "192.168.1.0/24");
    let gateways: Vec<_> = table[0]["gateways"].as_array().unwrap().iter().map(|g| g["node_id"].clone()).collect();
    assert_eq!(gateways, [json!(2), json!(1)], "the higher priority first");
    assert_eq!(c.get("/api/v1/routes?cidr=fd00:1::/64&network=1").json()[0]["gateways"][0]["weight"], 1);
    assert_eq!(c.get("/api/v1/routes?enabled=false").json()[0]["gateways"][0]["node_id"], 2);

    let etag = c.get(&location).header("etag").unwrap().to_owned();
    assert_eq!(c.put_if(&location, &etag, json!({ "priority": 7 })).json()["priority"], 7);
    c.put_if(&location, &etag, json!({ "priority": 8 })).problem(412, 2002);
    assert_eq!(c.act(&format!("{location}/disable")).json()["enabled"], false);
    assert_eq!(c.act(&format!("{location}/approve")).json()["enabled"], true);
    assert_eq!(c.get(&format!("/api/v1/routes/{}", first["id"])).json()["priority"], 7);
    assert_eq!(c.get("/api/v1/nodes/1/routes").json().as_array().unwrap().len(), 1);
    c.get("/api/v1/nodes/2/routes/1").problem(404, 3003);
    c.put("/api/v1/nodes/2/routes/1", json!({ "priority": 1 })).problem(404, 3003);
    c.delete("/api/v1/nodes/2/routes/1").problem(404, 3003);
    c.act("/api/v1/nodes/2/routes/1/disable").problem(404, 3003);
    c.get("/api/v1/nodes/9/routes").problem(404, 3001);
    c.delete(&location).json();
    c.get(&location).problem(404, 3003);
}

on_both!(servers);

fn servers(db: Db) {
    let c = Controller::start(db);
    let new = json!({ "name": "relay-1", "url": "wss://relay.example.com", "region": "asia",
        "capabilities": ["relay", "stun"], "stun_ip": "203.0.113.7", "controller": "wss://c.example.com" });
    let added = c.post("/api/v1/servers", new);
    let location = added.header("location").unwrap().to_owned();
    let added = added.json();
    assert_eq!(added["config"]["controller"]["token"], added["token"]);
    assert_eq!(added["config"]["controller"]["url"], "wss://c.example.com/ws/server");
    let server = c.get(&location).json();
    assert_eq!(server["url"], "wss://relay.example.com/ws/data");
    assert_eq!((&server["online"], &server["capabilities"]), (&json!(false), &json!(["relay", "stun"])));

    let changed = c.put(&location, json!({ "capabilities": ["relay"], "stun_ip": null, "region": "europe" })).json();
    assert_eq!((&changed["stun_ip"], &changed["region"]), (&Value::Null, &json!("europe")));
    c.put(&location, json!({ "url": null })).problem(422, 2002);
    assert_eq!(c.act(&format!("{location}/disable")).json()["enabled"], false);
    assert_eq!(c.get("/api/v1/servers?enabled=false").json(), json!([c.get(&location).json()]));
    assert_eq!(c.act(&format!("{location}/enable")).json()["enabled"], true);
    let again = c.act(&format!("{location}/token")).json();
    assert_ne!(again["token"], added["token"]);
    c.post(&format!("{location}/token"), json!({ "controller": "nonsense" })).problem(422, 2002);

    c.put("/api/v1/servers/1", json!({ "url": "wss://elsewhere.example.com" })).problem(409, 2002);
    assert_eq!(c.put("/api/v1/servers/1", json!({ "region": "home" })).json()["region"], "home");
    c.act("/api/v1/servers/1/token").problem(409, 2002);
    c.delete("/api/v1/servers/1").problem(409, 2002);
    c.delete(&location).json();
    c.get(&location).problem(404, 2002);
}

on_both!(tokens_and_keys);

fn tokens_and_keys(db: Db) {
    let c = Controller::start(db);
    let key = c.post("/api/v1/auth-keys", json!({ "network_id": 1, "preauthorized": true, "expires_in": 60 })).json();
    let node = c.knock_with(1, key["key"].as_str());
    assert!(node.authorized);
    let listed = c.get("/api/v1/auth-keys?network=default").json();
    let listed = listed.as_array().unwrap().iter().find(|k| k["id"] == key["id"]).unwrap();
    assert!(listed["used_at"].is_string() && listed.get("key").is_none());
    let forever = c.post("/api/v1/auth-keys", json!({ "network_id": 1, "expires_in": null })).json();
    assert_eq!(forever["expires_at"], Value::Null);
    c.delete(&format!("/api/v1/auth-keys/{}", key["id"])).json();
    c.delete(&format!("/api/v1/auth-keys/{}", key["id"])).problem(404, 2002);

    let jti = c.post("/api/v1/blacklist", json!({ "jti": "0123abcd", "reason": "stolen" }));
    assert_eq!((jti.status, &jti.json()["jti"]), (201, &json!("0123abcd")));
    let whole = c.post("/api/v1/blacklist", json!({ "node_id": node.id.0 })).json();
    assert_eq!(whole["node_id"], node.id.0);
    assert_eq!(c.get("/api/v1/blacklist").json().as_array().unwrap().len(), 2);
    for bad in [json!({}), json!({ "jti": "x", "node_id": 1 }), json!({ "jti": "" }), json!({ "jti": "node:1:2" })] {
        c.post("/api/v1/blacklist", bad).problem(422, 2002);
    }
    c.post("/api/v1/blacklist", json!({ "node_id": 99 })).problem(404, 3001);
}

on_both!(lists_come_in_pages);

fn lists_come_in_pages(db: Db) {
    let c = Controller::start(db);
    for machine in 1..=7 {
        c.knock(machine);
    }
    let mut path = "/api/v1/nodes?limit=3&network=default".to_owned();
    let mut pages = Vec::new();
    loop {
        let answer = c.get(&path);
        assert_eq!(answer.header("x-total-count"), Some("7"));
        let ids = answer.json().as_array().unwrap().iter().map(|n| n["id"].as_u64().unwrap()).collect::<Vec<_>>();
        pages.push(ids);
        let Some(link) = answer.header("link") else { break };
        path = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap().to_owned();
    }
    assert_eq!(pages, [vec![1, 2, 3], vec![4, 5, 6], vec![7]]);

    let newest = c.get("/api/v1/audit?limit=2");
    let ids: Vec<u64> = newest.json().as_array().unwrap().iter().map(|l| l["id"].as_u64().unwrap()).collect();
    assert!(ids[0] > ids[1]);
    assert!(newest.header("link").unwrap().contains(&format!("after={}", ids[1])));
    for jti in ["a1", "a2", "a3"] {
        c.post("/api/v1/blacklist", json!({ "jti": jti })).json();
    }
    let second = c.get("/api/v1/blacklist?limit=2");
    assert!(second.header("link").unwrap().contains("after=2"));
    assert_eq!(c.get("/api/v1/blacklist?limit=2&after=2").json().as_array().unwrap().len(), 1);
}

on_both!(overview_and_latency);

fn overview_and_latency(db: Db) {
    let c = Controller::start(db);
    c.knock(1);
    let overview = c.get("/api/v1/stats/overview").json();
    assert_eq!((&overview["nodes"]["total"], &overview["networks"]), (&json!(1), &json!(1)));
    // The built-in relay is known to be connected within a second or so.
    assert!(overview["servers"]["total"] == 1 && overview["servers"]["online"].is_u64());
    assert_eq!(c.get("/api/v1/latency/matrix").json(), json!([]));
    assert_eq!(c.get("/api/v1/latency/paths?network=default").json(), json!([]));
    c.get("/api/v1/latency/matrix?network=nowhere").problem(404, 2002);
}

on_both!(settings);

fn settings(db: Db) {
    let c = Controller::start(db);
    let value = |listed: &Value, key: &str| {
        listed.as_array().unwrap().iter().find(|s| s["key"] == key).unwrap_or_else(|| panic!("{key}")).clone()
    };
    let lifetime = value(&c.get("/api/v1/settings").json(), "tokens.relay_expire_hours");
    assert_eq!((lifetime["value"].as_f64(), &lifetime["setting"]), (Some(1.5), &Value::Null));
    assert_eq!(lifetime["takes"], "now");

    // By their names in specification §9.2 too.
    let change = json!({ "relay_token_expire_hours": 2, "security.require_route_approval": false });
    let after = c.put("/api/v1/settings", change).json();
    let lifetime = value(&after, "tokens.relay_expire_hours");
    assert_eq!((lifetime["value"].as_f64(), &lifetime["setting"]), (Some(2.0), &json!("2")));
    assert_eq!(value(&after, "security.require_route_approval")["value"], false);
    for bad in [
        json!({ "colour": 1 }),
        json!({ "jwt.secret": "0123456789012345678901234567890123456789" }),
        json!({ "database.path": "/elsewhere" }),
        json!({ "tokens.relay_expire_hours": "long" }),
        json!({ "tokens.relay_expire_hours": 3, "tokens.auth_expire_hours": -1 }),
        json!({ "tokens.relay_expire_hours": 3, "colour": 1 }),
    ] {
        c.put("/api/v1/settings", bad).problem(422, 2002);
    }
    assert_eq!(c.get("/api/v1/settings").json(), after, "all or none");
    // Nobody overwrites what he has not seen.
    let seen = c.get("/api/v1/settings").header("etag").unwrap().to_owned();
    let changed = c.put_if("/api/v1/settings", &seen, json!({ "log": "debug" }));
    assert_ne!(changed.header("etag"), Some(seen.as_str()));
    c.put_if("/api/v1/settings", &seen, json!({ "log": "info" })).problem(412, 2002);
    assert_eq!(value(&c.get("/api/v1/settings").json(), "log")["value"], "debug");
    c.put_if("/api/v1/settings", changed.header("etag").unwrap(), json!({ "log": null })).json();
    let unset = c.put("/api/v1/settings", json!({ "tokens.relay_expire_hours": null })).json();
    assert_eq!(value(&unset, "tokens.relay_expire_hours")["value"].as_f64(), Some(1.5));
    let log = c.get("/api/v1/audit?action=config.set").json();
    assert_eq!((log.as_array().unwrap().len(), &log[0]["actor_id"]), (3, &json!("alice")));
}

on_both!(what_ctl_does_beside_the_controller_is_seen_and_the_other_way_round);

fn what_ctl_does_beside_the_controller_is_seen_and_the_other_way_round(db: Db) {
    let c = Controller::start(db);
    let new = edgelink_store::NewNetwork {
        name: "beside".into(),
        subnet: "10.9.0.0/24".parse().unwrap(),
        description: String::new(),
    };
    c.store(async |store| store.create_network(new).await.unwrap());
    assert_eq!(c.get("/api/v1/networks?name=beside").json()[0]["subnet"], "10.9.0.0/24");
    c.post("/api/v1/networks", json!({ "name": "by-rest", "subnet": "10.9.0.0/24" })).json();
    assert_eq!(c.store(async |store| store.find_network("by-rest").await.unwrap().nodes), 0);
}
