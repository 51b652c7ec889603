//! What administrators do: networks, names, routes, servers, the audit log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod common;

use common::*;
use edgelink_model::records::{AnnouncedRoute, EndpointRecord, NodeEndpoints, ServerKind};
use edgelink_model::{NetworkId, ServerId};
use edgelink_store::{Actor, NewNetwork, NewRoute, NewServer, NodeFilter, Store};

fn refusal<T: std::fmt::Debug, E: std::fmt::Display>(result: Result<T, E>) -> String {
    result.map_err(|e| e.to_string()).unwrap_err()
}

async fn create(store: &Store, name: &str, subnet: &str) -> Result<NetworkId, String> {
    let new = NewNetwork { name: name.into(), subnet: subnet.parse().unwrap(), description: "d".into() };
    store.create_network(new).await.map(|n| n.id).map_err(|e| e.to_string())
}

on_both!(networks_are_made_found_and_deleted);

async fn networks_are_made_found_and_deleted(db: Db) {
    let store = db.open().await;
    let id = create(&store, "lab", "10.0.1.0/24").await.unwrap();
    let lab = store.find_network("lab").await.unwrap();
    assert_eq!((lab.record.id, lab.nodes, lab.created_at, lab.updated_at), (id, 0, NOW, NOW));
    assert_eq!(store.find_network(&id.to_string()).await.unwrap(), lab);
    assert_eq!(store.networks().await.unwrap().len(), 2);
    assert_eq!(
        refusal(create(&store, "lab", "10.2.0.0/16").await),
        "there is already a network named lab; choose another name"
    );
    assert_eq!(
        refusal(create(&store, "7", "10.2.0.0/16").await),
        "the network name \"7\" would be mistaken for an id; add a letter"
    );
    assert_eq!(refusal(store.find_network("nowhere").await), "there is no network nowhere");
    store.delete_network(id).await.unwrap();
    assert_eq!(refusal(store.delete_network(id).await), format!("there is no network {id}"));
    assert_eq!(
        refusal(store.delete_network(DEFAULT).await),
        "network default cannot be deleted: nodes that join without an auth key go there"
    );
}

on_both!(what_nodes_say_of_their_nats_and_endpoints_is_kept_and_moves_no_version);

async fn what_nodes_say_of_their_nats_and_endpoints_is_kept_and_moves_no_version(db: Db) {
    let store = db.open().await;
    let key = edgelink_store::NewAuthKey { reusable: true, ..one_shot("k") };
    store.create_auth_key(key).await.unwrap();
    let node = store.enroll(knock_with(1, "k")).await.unwrap().id;
    let version = store.counts().await.unwrap().version;
    let endpoint = |kind: &str, address: &str, priority| EndpointRecord {
        kind: kind.to_owned(),
        address: address.parse().unwrap(),
        priority,
    };
    let told =
        |nat_type: Option<&str>, endpoints| NodeEndpoints { node, nat_type: nat_type.map(str::to_owned), endpoints };
    let both = vec![endpoint("stun", "203.0.113.5:4000", 2), endpoint("lan", "[2001:db8::5]:4000", 1)];
    let nobody = NodeEndpoints { node: edgelink_model::NodeId(999), ..told(None, both.clone()) };
    store.set_endpoints(&[nobody, told(Some("symmetric"), both.clone())]).await.unwrap();
    assert_eq!(store.endpoints(node).await.unwrap(), [both[1].clone(), both[0].clone()], "best first");
    assert_eq!(store.find_node(&node.to_string(), None).await.unwrap().nat_type.as_deref(), Some("symmetric"));
    // What it says next replaces that; a NAT that it does not name stays as it was.
    store.set_endpoints(&[told(None, vec![both[0].clone()])]).await.unwrap();
    assert_eq!(store.endpoints(node).await.unwrap(), [both[0].clone()]);
    assert_eq!(store.find_node(&node.to_string(), None).await.unwrap().nat_type.as_deref(), Some("symmetric"));
    assert_eq!(store.counts().await.unwrap().version, version, "no node must know");
    store.delete_node(node).await.unwrap();
    assert_eq!(store.endpoints(node).await.unwrap(), []);
}

on_both!(a_network_with_nodes_stays);

async fn a_network_with_nodes_stays(db: Db) {
    let store = db.open().await;
    let lab = network(&store, "lab", "10.9.0.0/24").await;
    let key = edgelink_store::NewAuthKey { network_id: lab, reusable: true, ..one_shot("k") };
    store.create_auth_key(key).await.unwrap();
    let node = store.enroll(knock_with(1, "k")).await.unwrap();
    assert_eq!(
        refusal(store.delete_network(lab).await),
        "network lab still has 1 node; delete it first (`edgelink-ctl node list --network lab`)"
    );
    store.delete_node(node.id).await.unwrap();
    store.delete_network(lab).await.unwrap();
    assert_eq!(store.auth_keys().await.unwrap(), [], "its keys go with it");
}

on_both!(nodes_are_found_by_id_before_name_and_ambiguity_is_told);

async fn nodes_are_found_by_id_before_name_and_ambiguity_is_told(db: Db) {
    let store = db.open().await;
    let lab = network(&store, "lab", "10.9.0.0/24").await;
    store.create_auth_key(edgelink_store::NewAuthKey { network_id: lab, ..one_shot("k") }).await.unwrap();
    let here = store.enroll(knock(1)).await.unwrap();
    let there = store.enroll(knock_with(2, "k")).await.unwrap();
    for id in [here.id, there.id] {
        store.rename_node(id, "web").await.unwrap();
    }
    assert_eq!(
        refusal(store.find_node("web", None).await),
        format!("several networks have a node named web (ids {}, {}); give the id", here.id, there.id)
    );
    assert_eq!(store.find_node("web", Some(lab)).await.unwrap().record.id, there.id);
    assert_eq!(store.find_node(&here.id.to_string(), None).await.unwrap().record.id, here.id);
    assert_eq!(refusal(store.find_node("99", None).await), "there is no node 99");
    assert_eq!(refusal(store.find_node("99999999999", None).await), "there is no node 99999999999");
    let in_lab = store.nodes(NodeFilter { network: Some(lab), online: false }).await.unwrap();
    assert_eq!(in_lab.iter().map(|n| n.record.id).collect::<Vec<_>>(), [there.id]);

    let third = store.enroll(knock(3)).await.unwrap();
    assert_eq!(
        refusal(store.rename_node(third.id, "web").await),
        "the network already has a node named web; choose another name"
    );
    assert_eq!(
        refusal(store.rename_node(third.id, "a b").await),
        "the node name \"a b\" may hold letters, digits, '.', '_' and '-' only"
    );
    assert_eq!(store.rename_node(third.id, "web2").await.unwrap().name, "web2");
}

on_both!(routes_belong_to_nodes);

async fn routes_belong_to_nodes(db: Db) {
    let store = db.open().await;
    let node_id = store.enroll(knock(1)).await.unwrap().id;
    let new = NewRoute { node_id, cidr: "192.168.1.0/24".parse().unwrap(), priority: 100, weight: 100, enabled: false };
    let route = store.add_route(new.clone()).await.unwrap();
    assert_eq!(refusal(store.add_route(new.clone()).await), "node host-1 already has a route to 192.168.1.0/24");
    let with_host_bits = NewRoute { cidr: "192.168.1.9/24".parse().unwrap(), ..new.clone() };
    assert_eq!(
        refusal(store.add_route(with_host_bits).await),
        "the route 192.168.1.9/24 has host bits set; did you mean 192.168.1.0/24?"
    );
    assert_eq!(refusal(store.add_route(NewRoute { weight: 0, ..new }).await), "a route's weight is 1 to 65535");
    assert!(store.set_route_enabled(route.id, true).await.unwrap().enabled);
    assert_eq!(store.routes().await.unwrap(), [edgelink_model::records::RouteRecord { enabled: true, ..route }]);
    store.delete_node(node_id).await.unwrap();
    assert_eq!(store.routes().await.unwrap(), []);
}

/// (prefix, priority, enabled, announced) of all routes, by id.
async fn routes(store: &edgelink_store::Store) -> Vec<(String, u16, bool, bool)> {
    let routes = store.routes().await.unwrap();
    routes.into_iter().map(|r| (r.cidr.to_string(), r.priority, r.enabled, r.announced)).collect()
}

fn announced(cidr: &str, priority: u16) -> AnnouncedRoute {
    AnnouncedRoute { cidr: cidr.parse().unwrap(), priority, weight: 50, snat: true }
}

on_both!(announced_routes_wait_for_approval_follow_the_node_and_are_taken_back);

async fn announced_routes_wait_for_approval_follow_the_node_and_are_taken_back(db: Db) {
    let store = db.open().await;
    let node_id = store.enroll(knock(1)).await.unwrap().id;
    let one = [announced("192.168.1.0/24", 100)];
    store.announce_routes(node_id, &one, false).await.unwrap();
    assert_eq!(routes(&store).await, [("192.168.1.0/24".into(), 100, false, true)]);
    let version = store.counts().await.unwrap().version;
    store.announce_routes(node_id, &one, false).await.unwrap();
    assert_eq!(store.counts().await.unwrap().version, version, "nothing new costs no change");

    let id = store.routes().await.unwrap()[0].id;
    store.set_route_enabled(id, true).await.unwrap();
    let two = [announced("192.168.1.0/24", 200), announced("192.168.2.0/24", 100)];
    store.announce_routes(node_id, &two, false).await.unwrap();
    let want = [("192.168.1.0/24".into(), 200, true, true), ("192.168.2.0/24".into(), 100, false, true)];
    assert_eq!(routes(&store).await, want, "approval stays, values follow");

    store.announce_routes(node_id, &two[1..], false).await.unwrap();
    assert_eq!(routes(&store).await, [("192.168.2.0/24".into(), 100, false, true)]);
    store.announce_routes(node_id, &two, false).await.unwrap();
    assert!(routes(&store).await.iter().all(|(_, _, enabled, _)| !enabled), "what was taken back waits again");
}

on_both!(routes_of_administrators_stay_as_they_made_them);

async fn routes_of_administrators_stay_as_they_made_them(db: Db) {
    let store = db.open().await;
    let node_id = store.enroll(knock(1)).await.unwrap().id;
    let cidr = "10.50.0.0/16".parse().unwrap();
    let made = NewRoute { node_id, cidr, priority: 7, weight: 3, enabled: true };
    store.add_route(made).await.unwrap();
    let direct = [AnnouncedRoute { snat: false, ..announced("10.50.0.0/16", 100) }];
    store.announce_routes(node_id, &direct, false).await.unwrap();
    let [route] = &store.routes().await.unwrap()[..] else { panic!() };
    assert_eq!((route.priority, route.weight, route.enabled, route.announced), (7, 3, true, false));
    assert!(!route.snat, "only the node knows how it serves it");
    store.announce_routes(node_id, &[], false).await.unwrap();
    assert_eq!(routes(&store).await, [("10.50.0.0/16".into(), 7, true, false)]);
}

on_both!(routes_are_approved_by_setting_network_or_auth_key);

async fn routes_are_approved_by_setting_network_or_auth_key(db: Db) {
    let store = db.open().await;
    store.create_auth_key(edgelink_store::NewAuthKey { approve_routes: true, ..one_shot("k") }).await.unwrap();
    let [plain, keyed, late] =
        [store.enroll(knock(1)).await, store.enroll(knock_with(2, "k")).await, store.enroll(knock(3)).await]
            .map(|node| node.unwrap().id);
    store.announce_routes(plain, &[announced("10.1.0.0/16", 1)], true).await.unwrap();
    store.announce_routes(keyed, &[announced("10.2.0.0/16", 2)], false).await.unwrap();
    store.set_network_route_approval(NetworkId(1), true).await.unwrap();
    store.announce_routes(late, &[announced("10.3.0.0/16", 3)], false).await.unwrap();
    assert!(routes(&store).await.iter().all(|(_, _, enabled, _)| *enabled), "{:?}", routes(&store).await);
    store.set_network_route_approval(NetworkId(1), false).await.unwrap();
    store.announce_routes(late, &[announced("0.0.0.0/0", 3)], false).await.unwrap();
    assert_eq!(routes(&store).await.last().unwrap(), &("0.0.0.0/0".into(), 3, false, true));
}

on_both!(what_is_no_route_is_not_kept);

async fn what_is_no_route_is_not_kept(db: Db) {
    let store = db.open().await;
    let node_id = store.enroll(knock(1)).await.unwrap().id;
    let bad = ["192.168.1.5/24", "127.0.0.0/8", "::ffff:10.0.0.0/104", "10.0.1.0/25", "169.254.0.0/16", "224.0.0.0/4"];
    let mut all: Vec<AnnouncedRoute> = bad.iter().map(|cidr| announced(cidr, 1)).collect();
    all.push(AnnouncedRoute { weight: 0, ..announced("10.9.0.0/16", 1) });
    store.announce_routes(node_id, &all, true).await.unwrap();
    assert_eq!(routes(&store).await, []);
    for cidr in bad {
        let new = NewRoute { node_id, cidr: cidr.parse().unwrap(), priority: 1, weight: 1, enabled: true };
        assert!(store.add_route(new).await.is_err(), "{cidr}");
    }
}

on_both!(servers_are_added_and_the_builtin_one_stays);

async fn servers_are_added_and_the_builtin_one_stays(db: Db) {
    let store = db.open().await;
    let new = NewServer {
        name: "relay-1".into(),
        url: Some("wss://relay.example.com/ws/data".into()),
        region: "asia".into(),
        relay: true,
        stun: false,
        stun_ip: None,
        stun_ip2: None,
        stun_port: 3478,
    };
    let server = store.add_server(new.clone()).await.unwrap();
    assert_eq!((server.kind, server.relay, server.stun), (ServerKind::External, true, false));
    assert_eq!(
        refusal(store.add_server(new.clone()).await),
        "there is already a server named relay-1; choose another name"
    );
    assert_eq!(
        refusal(store.add_server(NewServer { name: "r2".into(), url: None, ..new }).await),
        "a relay needs a URL, such as wss://relay.example.com/ws/data"
    );
    assert_eq!(store.find_server("relay-1").await.unwrap().record, server);
    assert!(refusal(store.delete_server(ServerId(1)).await).starts_with("the built-in server cannot be deleted"));
    store.delete_server(server.id).await.unwrap();

    let builtin = store.find_server("builtin").await.unwrap().record;
    let version = store.counts().await.unwrap().version;
    store.update_server(&builtin).await.unwrap();
    assert_eq!(store.counts().await.unwrap().version, version, "no difference, no change");
    let moved = edgelink_model::records::ServerRecord { stun_ip: Some("198.51.100.7".parse().unwrap()), ..builtin };
    store.update_server(&moved).await.unwrap();
    assert_eq!(store.find_server("1").await.unwrap().record, moved);
    assert_eq!(store.counts().await.unwrap().version, version + 1);
}

on_both!(the_audit_log_tells_who_did_what);

async fn the_audit_log_tells_who_did_what(db: Db) {
    let store = db.open().await;
    let node = store.enroll(knock(1)).await.unwrap();
    store.acting_as(Actor::cli(Some("alice".into()))).authorize_node(node.id).await.unwrap();
    let log = store.audit_log(10).await.unwrap();
    let lines: Vec<_> =
        log.iter().map(|e| (e.actor_type.as_str(), e.actor_id.as_deref(), e.action.as_str(), e.target_id)).collect();
    assert_eq!(lines, [("cli", Some("alice"), "node.authorize", Some(1)), ("system", None, "node.knock", Some(1))]);
    assert_eq!(log[0].created_at, NOW);
}

#[tokio::test]
async fn configuration_is_set_and_unset_and_followed() {
    let (_dir, store) = temp_store().await;
    let pairs = |pairs: &[(&str, Option<&str>)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect::<Vec<_>>()
    };
    // What programs keep for themselves is none of it.
    store.set_setting("token_keys", "secret").await.unwrap();
    let before = store.counts().await.unwrap().version;
    store.set_configuration(pairs(&[("log", Some("debug")), ("tokens.auth_expire_hours", Some("12"))])).await.unwrap();
    let kept = store.configuration().await.unwrap();
    let expected = [("log", "debug"), ("tokens.auth_expire_hours", "12")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(kept, expected.into());
    let edgelink_store::Changes::Some { version, changes } = store.changes_after(before).await.unwrap() else {
        panic!()
    };
    let changed: Vec<_> = changes.into_iter().map(|(_, change)| change).collect();
    let setting = |key: &str| edgelink_model::records::Change::Setting(key.to_owned());
    assert_eq!(changed, [setting("log"), setting("tokens.auth_expire_hours")]);
    // The same again is no change; one that is not there cannot be unset any more.
    store.set_configuration(pairs(&[("log", Some("debug")), ("never", None)])).await.unwrap();
    assert_eq!(store.counts().await.unwrap().version, version);
    store.set_configuration(pairs(&[("log", None)])).await.unwrap();
    assert_eq!(store.configuration().await.unwrap().len(), 1);
    assert!(store.counts().await.unwrap().version > version);
    let log: Vec<_> = store.audit_log(3).await.unwrap().into_iter().map(|e| (e.action, e.details.unwrap())).collect();
    let line = |action: &str, details: &str| (action.to_owned(), details.to_owned());
    let expected = [
        line("config.unset", "log"),
        line("config.set", "tokens.auth_expire_hours = 12"),
        line("config.set", "log = debug"),
    ];
    assert_eq!(log, expected);
}
