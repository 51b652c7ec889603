//! What the REST API asks: administrators, pages and filters, partial updates, latencies, the audit log.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::*;
use edgelink_model::{NodeId, ServerId};
use edgelink_store::{
    Actor, AdminChange, AuditFilter, AuthKeyFilter, LatencyRecord, NetworkChange, NetworkFilter, NewAuthKey, NewRoute,
    NewServer, NodeQuery, NodeTouch, Page, RouteChange, RouteFilter, ServerChange, ServerFilter, Session, Store,
    StoreError,
};

fn refusal<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    result.unwrap_err().to_string()
}

fn limit(n: u64) -> Page {
    Page { limit: Some(n), ..Page::default() }
}

fn relay(name: &str) -> NewServer {
    NewServer {
        name: name.into(),
        url: Some(format!("wss://{name}.example.com/ws/data")),
        region: String::new(),
        relay: true,
        stun: false,
        stun_ip: None,
        stun_ip2: None,
        stun_port: 3478,
    }
}

async fn nodes(store: &Store, machines: std::ops::RangeInclusive<u8>) -> Vec<NodeId> {
    let mut ids = Vec::new();
    for machine in machines {
        ids.push(store.enroll(knock(machine)).await.unwrap().id);
    }
    ids
}

on_both!(administrators_come_change_and_never_all_go);

async fn administrators_come_change_and_never_all_go(db: Db) {
    let store = db.open().await;
    let version = store.counts().await.unwrap().version;
    let alice = store.create_admin("alice", "hash-a".into()).await.unwrap();
    assert_eq!(
        (alice.username.as_str(), alice.enabled, alice.last_login, alice.created_at),
        ("alice", true, None, NOW)
    );
    assert_eq!(refusal(store.create_admin("alice", "x".into()).await), "there is already an administrator named alice");
    assert!(refusal(store.create_admin("a b", "x".into()).await).contains("administrator"));
    assert!(refusal(store.delete_admin(alice.id).await).contains("last administrator"));
    let off = || AdminChange { enabled: Some(false), ..AdminChange::default() };
    assert!(refusal(store.update_admin(alice.id, off(), |_| true).await).contains("last administrator"));

    let bob = store.create_admin("bob", "hash-b".into()).await.unwrap();
    let found = store.credentials("bob").await.unwrap().unwrap();
    assert_eq!((found.password_hash.as_str(), &found.admin), ("hash-b", &bob));
    // Names are exact: MariaDB's default collation would take BOB for bob.
    for stranger in ["nobody", "BOB", "bob ", "bób", "' OR '1'='1"] {
        assert!(store.credentials(stranger).await.unwrap().is_none(), "{stranger:?}");
    }
    assert_eq!(store.find_admin("bob").await.unwrap(), store.find_admin(&bob.id.to_string()).await.unwrap());
    assert_eq!(refusal(store.find_admin("carol").await), "there is no administrator carol");

    let iat = NOW / 1000 + 1;
    assert_eq!(store.admin_session(bob.id, "jti", iat).await.unwrap(), Session::Valid(bob.clone()));
    assert_eq!(store.admin_session(bob.id, "jti", NOW / 1000 - 1).await.unwrap(), Session::Void, "before it was made");
    assert_eq!(store.admin_session(77, "jti", iat).await.unwrap(), Session::Void);
    store.revoke_token("jti", "logout").await.unwrap();
    assert_eq!(store.admin_session(bob.id, "jti", iat).await.unwrap(), Session::Revoked);
    assert_eq!(store.admin_logged_in(bob.id).await.unwrap().last_login, Some(NOW));

    let later = store.with_clock(|| NOW + 60_000);
    let change = AdminChange { username: Some("bobby".into()), password_hash: Some("new".into()), enabled: None };
    assert!(matches!(later.update_admin(bob.id, change.clone(), |_| false).await, Err(StoreError::Stale)));
    assert_eq!(store.credentials("bob").await.unwrap().unwrap().password_hash, "hash-b", "nothing half done");
    let changed = later.update_admin(bob.id, change, |before| before.username == "bob").await.unwrap();
    assert_eq!((changed.username.as_str(), changed.updated_at, changed.created_at), ("bobby", NOW + 60_000, NOW));
    assert_eq!(later.admin_session(bob.id, "other", iat).await.unwrap(), Session::Void, "a changed one logs in anew");
    let clash = AdminChange { username: Some("alice".into()), ..AdminChange::default() };
    assert!(refusal(later.update_admin(bob.id, clash, |_| true).await).contains("already"));
    later.update_admin(alice.id, off(), |_| true).await.unwrap();
    assert!(refusal(later.delete_admin(bob.id).await).contains("last administrator"));
    later.delete_admin(alice.id).await.unwrap();
    let all = store.admins(Page::default()).await.unwrap();
    assert_eq!((all.total, all.items[0].username.as_str()), (1, "bobby"));
    assert_eq!(refusal(store.admin(alice.id).await), format!("there is no administrator {}", alice.id));
    // The revocation alone is something that nodes must know.
    assert_eq!(store.counts().await.unwrap().version, version + 1);
}

on_both!(lists_come_in_pages_and_by_filter);

async fn lists_come_in_pages_and_by_filter(db: Db) {
    let store = db.open().await;
    for n in 0..4 {
        network(&store, &format!("lab{n}"), "10.9.0.0/24").await;
    }
    let first = store.list_networks(&NetworkFilter::default(), limit(2)).await.unwrap();
    assert_eq!((first.total, first.items.len()), (5, 2));
    let after = Page { after: Some(first.items[1].record.id.0), limit: Some(9) };
    let rest = store.list_networks(&NetworkFilter::default(), after).await.unwrap();
    assert_eq!(rest.items.iter().map(|n| n.record.name.as_str()).collect::<Vec<_>>(), ["lab1", "lab2", "lab3"]);
    let beyond = Page { after: Some(u32::MAX), limit: None };
    assert_eq!(store.list_networks(&NetworkFilter::default(), beyond).await.unwrap().items.len(), 0);
    let named = NetworkFilter { name: Some("lab2".into()) };
    assert_eq!(store.list_networks(&named, Page::default()).await.unwrap().items[0].record.name, "lab2");
    let hostile = NetworkFilter { name: Some("lab2' OR '1'='1".into()) };
    assert_eq!(store.list_networks(&hostile, Page::default()).await.unwrap().total, 0);

    let ids = nodes(&store, 1..=3).await;
    store.authorize_node(ids[1]).await.unwrap();
    store.touch_nodes(&[NodeTouch { id: ids[1], online: true, last_seen: NOW }]).await.unwrap();
    let of = async |filter: NodeQuery| {
        let listed = store.list_nodes(&filter, Page::default()).await.unwrap();
        listed.items.into_iter().map(|node| node.record.id).collect::<Vec<_>>()
    };
    assert_eq!(of(NodeQuery::default()).await, ids);
    assert_eq!(of(NodeQuery { authorized: Some(true), ..NodeQuery::default() }).await, [ids[1]]);
    assert_eq!(of(NodeQuery { online: Some(true), ..NodeQuery::default() }).await, [ids[1]]);
    assert_eq!(of(NodeQuery { online: Some(false), ..NodeQuery::default() }).await, [ids[0], ids[2]], "never seen too");
    assert_eq!(of(NodeQuery { name: Some("host-3".into()), ..NodeQuery::default() }).await, [ids[2]]);
    assert_eq!(of(NodeQuery { network: Some(edgelink_model::NetworkId(2)), ..NodeQuery::default() }).await, []);

    let mut routes = Vec::new();
    for (node, cidr, enabled) in [(ids[0], "192.168.1.0/24", true), (ids[1], "192.168.1.0/24", false)] {
        let new = NewRoute { node_id: node, cidr: cidr.parse().unwrap(), priority: 100, weight: 100, enabled };
        routes.push(store.add_route(new).await.unwrap().id);
    }
    let of = async |filter: RouteFilter| {
        let listed = store.list_routes(&filter, Page::default()).await.unwrap();
        listed.items.into_iter().map(|route| route.record.id).collect::<Vec<_>>()
    };
    assert_eq!(of(RouteFilter { cidr: Some("192.168.1.0/24".into()), ..RouteFilter::default() }).await, routes);
    assert_eq!(of(RouteFilter { enabled: Some(false), ..RouteFilter::default() }).await, [routes[1]]);
    assert_eq!(of(RouteFilter { node: Some(ids[0]), ..RouteFilter::default() }).await, [routes[0]]);
    assert_eq!(of(RouteFilter { network: Some(DEFAULT), ..RouteFilter::default() }).await, routes);
    let route = store.route(routes[0]).await.unwrap();
    assert_eq!((route.node_name.as_str(), route.network_id, route.node_online), ("host-1", DEFAULT, false));

    let server = store.add_server(NewServer { region: "eu".into(), ..relay("r1") }).await.unwrap().id;
    let of = async |filter: ServerFilter| {
        let listed = store.list_servers(&filter, Page::default()).await.unwrap();
        listed.items.into_iter().map(|server| server.record.id).collect::<Vec<_>>()
    };
    assert_eq!(of(ServerFilter::default()).await, [ServerId(1), server]);
    assert_eq!(of(ServerFilter { region: Some("eu".into()), ..ServerFilter::default() }).await, [server]);
    store.set_server_enabled(server, false).await.unwrap();
    assert_eq!(of(ServerFilter { enabled: Some(false), ..ServerFilter::default() }).await, [server]);
    assert!(!store.server(server).await.unwrap().record.enabled);

    let lab = store.find_network("lab0").await.unwrap().record.id;
    for (key, network_id) in [("k1", DEFAULT), ("k2", lab), ("k3", lab)] {
        store.create_auth_key(NewAuthKey { network_id, ..one_shot(key) }).await.unwrap();
    }
    let keys = store.list_auth_keys(&AuthKeyFilter { network: Some(lab) }, limit(1)).await.unwrap();
    assert_eq!((keys.total, keys.items.len()), (2, 1));
    store.delete_auth_key(keys.items[0].id).await.unwrap();
    assert_eq!(store.list_auth_keys(&AuthKeyFilter { network: Some(lab) }, limit(1)).await.unwrap().total, 1);

    store.revoke_token("jti-1", "lost").await.unwrap();
    store.revoke_node(ids[0], "stolen").await.unwrap();
    let revoked = store.list_revocations(None, 0, None).await.unwrap();
    assert_eq!((revoked.total, revoked.items.len()), (2, 2));
    assert_eq!(revoked.items.len(), store.revocations().await.unwrap().len());
}

on_both!(what_is_not_given_stays_and_what_was_not_seen_is_not_overwritten);

async fn what_is_not_given_stays_and_what_was_not_seen_is_not_overwritten(db: Db) {
    let store = db.open().await;
    let lab = network(&store, "lab", "10.9.0.0/24").await;
    let version = async || store.counts().await.unwrap().version;
    let before = version().await;

    let change = NetworkChange { description: Some("a lab".into()), ..NetworkChange::default() };
    assert!(matches!(store.update_network(lab, change.clone(), |_| false).await, Err(StoreError::Stale)));
    assert_eq!(version().await, before);
    let after = store.update_network(lab, change.clone(), |_| true).await.unwrap();
    let record = &after.record;
    assert_eq!((record.name.as_str(), record.subnet.to_string().as_str()), ("lab", "10.9.0.0/24"));
    assert_eq!(record.description, "a lab");
    assert_eq!(version().await, before + 1);
    store.update_network(lab, change, |_| true).await.unwrap();
    assert_eq!(version().await, before + 1, "the same again is no change");
    let taken = NetworkChange { name: Some("default".into()), ..NetworkChange::default() };
    assert!(refusal(store.update_network(lab, taken, |_| true).await).contains("already a network named default"));

    let node = nodes(&store, 1..=1).await[0];
    store.authorize_node(node).await.unwrap();
    let small = NetworkChange { subnet: Some("10.77.0.0/24".parse().unwrap()), ..NetworkChange::default() };
    let said = refusal(store.update_network(DEFAULT, small, |_| true).await);
    assert!(said.contains("10.0.1.1"), "a node would be left outside: {said}");
    assert_eq!(store.network(DEFAULT).await.unwrap().record.subnet.to_string(), "10.0.1.0/24");
    assert!(matches!(store.update_node(node, Some("x".into()), |_| false).await, Err(StoreError::Stale)));
    assert_eq!(store.update_node(node, Some("web".into()), |_| true).await.unwrap().record.name, "web");
    assert_eq!(store.update_node(node, None, |_| true).await.unwrap().record.name, "web");

    let new =
        NewRoute { node_id: node, cidr: "192.168.1.0/24".parse().unwrap(), priority: 7, weight: 9, enabled: false };
    let route = store.add_route(new).await.unwrap().id;
    let change = RouteChange { weight: Some(1), ..RouteChange::default() };
    assert!(matches!(store.update_route(node, route, change, |_| false).await, Err(StoreError::Stale)));
    let after = store.update_route(node, route, change, |_| true).await.unwrap().record;
    assert_eq!((after.priority, after.weight, after.enabled), (7, 1, false));

    let server = store.add_server(relay("r1")).await.unwrap().id;
    let change = ServerChange { stun: Some(true), ..ServerChange::default() };
    assert!(refusal(store.change_server(server, change, |_| true).await).contains("STUN"), "STUN needs an address");
    assert!(!store.server(server).await.unwrap().record.stun, "nothing half done");
    let change = ServerChange {
        stun: Some(true),
        stun_ip: Some(Some("203.0.113.1".parse().unwrap())),
        region: Some("eu".into()),
        ..ServerChange::default()
    };
    assert!(matches!(store.change_server(server, change.clone(), |_| false).await, Err(StoreError::Stale)));
    let after = store.change_server(server, change, |_| true).await.unwrap().record;
    assert_eq!((after.name.as_str(), after.region.as_str(), after.relay, after.stun), ("r1", "eu", true, true));
}

on_both!(latencies_replace_each_other_and_are_forgotten);

async fn latencies_replace_each_other_and_are_forgotten(db: Db) {
    let store = db.open().await;
    let node = nodes(&store, 1..=1).await[0];
    let lab = network(&store, "lab", "10.9.0.0/24").await;
    let version = store.counts().await.unwrap().version;
    let figure = |kind: &str, src: u32, dst: u32, rtt_us, recorded_at| LatencyRecord {
        src_type: kind.to_owned(),
        src_id: src,
        dst_type: "server".to_owned(),
        dst_id: dst,
        rtt_us,
        recorded_at,
    };
    let (near, far, mesh) = (
        figure("node", node.0, 1, 700, NOW),
        figure("node", node.0, 2, u64::from(u32::MAX), NOW),
        figure("server", 1, 2, 0, NOW),
    );
    store.write_latencies(&[figure("node", node.0, 1, 5, NOW - 10), far.clone()]).await.unwrap();
    store.write_latencies(&[near.clone(), mesh.clone()]).await.unwrap();
    assert_eq!(store.latencies(None).await.unwrap(), [near, far, mesh.clone()]);
    assert_eq!(store.latencies(Some(lab)).await.unwrap(), [mesh], "of another network, the relays' alone");
    let many: Vec<_> = (1..=1200).map(|dst| figure("node", node.0, dst, 1, NOW)).collect();
    store.write_latencies(&many).await.unwrap();
    assert_eq!(store.latencies(Some(DEFAULT)).await.unwrap().len(), 1201);
    let later = store.with_clock(|| NOW + 90_001);
    assert_eq!(later.latencies(None).await.unwrap(), []);
    later.write_latencies(&[]).await.unwrap();
    assert_eq!(store.latencies(None).await.unwrap(), [], "and deleted");
    assert_eq!(store.counts().await.unwrap().version, version);
}

on_both!(the_audit_log_is_searched);

async fn the_audit_log_is_searched(db: Db) {
    let store = db.open().await;
    let ids = nodes(&store, 1..=2).await;
    let alice = store.acting_as(Actor::cli(Some("alice".into())));
    alice.authorize_node(ids[0]).await.unwrap();
    let later = store.with_clock(|| NOW + 1000).acting_as(Actor::cli(Some("o'Brien; DROP TABLE nodes".into())));
    later.authorize_node(ids[1]).await.unwrap();
    later.rename_node(ids[1], "web").await.unwrap();

    let of = async |filter: AuditFilter, page: Page| {
        let listed = store.list_audit(&filter, page).await.unwrap();
        (listed.total, listed.items.into_iter().map(|line| line.action).collect::<Vec<_>>())
    };
    let all = AuditFilter::default;
    let (total, newest) = of(all(), limit(2)).await;
    assert_eq!((total, newest.as_slice()), (5, &["node.rename".to_owned(), "node.authorize".to_owned()][..]));
    let by = |actor: &str| AuditFilter { actor_id: Some(actor.to_owned()), ..all() };
    assert_eq!(of(by("alice"), Page::default()).await.1, ["node.authorize"]);
    assert_eq!(of(by("o'Brien; DROP TABLE nodes"), Page::default()).await.0, 2);
    let to = AuditFilter { target_type: Some("node".into()), target_id: Some(ids[1].0), ..all() };
    assert_eq!(of(to, Page::default()).await.1, ["node.rename", "node.authorize", "node.knock"]);
    let since = AuditFilter { since: Some(NOW + 1000), ..all() };
    assert_eq!(of(since, Page::default()).await.0, 2);
    let until = AuditFilter { until: Some(NOW + 1000), action: Some("node.authorize".into()), ..all() };
    assert_eq!(of(until, Page::default()).await.0, 1);
    let first = store.list_audit(&all(), limit(1)).await.unwrap().items[0].id;
    assert_eq!(of(all(), Page { after: Some(first), limit: Some(1) }).await.1, ["node.authorize"]);
    let kind = AuditFilter { actor_type: Some("system".into()), ..all() };
    assert_eq!(of(kind, Page::default()).await.1, ["node.knock", "node.knock"]);
    let none = AuditFilter { target_id: Some(u32::MAX), ..all() };
    assert_eq!(of(none, Page::default()).await.0, 0);
    store.audit("admin.login_denied", None, Some("x".into())).await.unwrap();
    assert_eq!(of(all(), limit(1)).await.1, ["admin.login_denied"]);
}
