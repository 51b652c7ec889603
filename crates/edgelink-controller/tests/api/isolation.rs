//! Several networks on one controller, with the same prefix, the same names and the same routes: none shows in another.

use crate::{Controller, Db, on_both};
use serde_json::{Value, json};

on_both!(equal_networks_do_not_meet);

fn equal_networks_do_not_meet(db: Db) {
    let c = Controller::start(db);
    let mut networks = Vec::new();
    for (name, first) in [("red", 1u8), ("blue", 11)] {
        let network = c.post("/api/v1/networks", json!({ "name": name, "subnet": "10.50.0.0/24" })).json();
        let key = json!({ "network_id": network["id"], "reusable": true, "preauthorized": true });
        let key = c.post("/api/v1/auth-keys", key).json();
        let mut nodes = Vec::new();
        for n in 0..3 {
            let node = c.knock_with(first + n, key["key"].as_str());
            c.put(&format!("/api/v1/nodes/{}", node.id), json!({ "name": format!("web{n}") })).json();
            nodes.push(node.id.0);
        }
        let route = json!({ "cidr": "192.168.1.0/24" });
        let route = c.post(&format!("/api/v1/nodes/{}/routes", nodes[0]), route).json();
        networks.push((network["id"].as_u64().unwrap(), name, nodes, route["id"].clone()));
    }
    let [red, blue] = networks.as_slice() else { panic!() };

    for (mine, other) in [(red, blue), (blue, red)] {
        let by = |path: &str| c.get(&format!("/api/v1/{path}network={}", mine.1)).json();
        let ids: Vec<u64> = by("nodes?").as_array().unwrap().iter().map(|n| n["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, mine.2.iter().map(|id| u64::from(*id)).collect::<Vec<_>>());
        let addresses: Vec<Value> = by("nodes?").as_array().unwrap().iter().map(|n| n["virtual_ip"].clone()).collect();
        assert_eq!(addresses, ["10.50.0.1", "10.50.0.2", "10.50.0.3"], "each network has its own pool");
        assert_eq!(by("nodes?name=web1&")[0]["id"], mine.2[1]);
        let table = by("routes?");
        assert_eq!(table.as_array().unwrap().len(), 1);
        assert_eq!((&table[0]["network_id"], &table[0]["gateways"][0]["route_id"]), (&json!(mine.0), &mine.3));
        assert_eq!(by("auth-keys?").as_array().unwrap().len(), 1);
        // A route of the other's node is not mine.
        c.get(&format!("/api/v1/nodes/{}/routes/{}", mine.2[0], other.3)).problem(404, 3003);
        c.delete(&format!("/api/v1/nodes/{}/routes/{}", mine.2[0], other.3)).problem(404, 3003);
        c.put(&format!("/api/v1/nodes/{}/routes/{}", mine.2[0], other.3), json!({ "weight": 1 })).problem(404, 3003);
    }
    let both = c.get("/api/v1/routes?cidr=192.168.1.0/24").json();
    assert_eq!(both.as_array().unwrap().len(), 2, "equal prefixes of two networks are two entries: {both}");

    // What is done to one leaves the other alone.
    c.act(&format!("/api/v1/nodes/{}/deauthorize", red.2[1])).json();
    c.delete(&format!("/api/v1/nodes/{}", red.2[2])).json();
    for id in &blue.2 {
        assert_eq!(c.get(&format!("/api/v1/nodes/{id}")).json()["authorized"], true);
    }
    let revoked = c.get("/api/v1/blacklist").json();
    assert!(revoked.as_array().unwrap().iter().all(|r| red.2.iter().any(|id| r["node_id"] == *id)), "{revoked}");
}
