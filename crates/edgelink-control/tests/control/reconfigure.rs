//! Another configuration while nodes are connected: they stay, and learn what is theirs to know (DESIGN §4, hot reload).

use crate::world::*;
use edgelink_control::{ControlConfig, NodeSettings, StoreOp};
use edgelink_model::{NetworkId, NodeId};
use edgelink_wire::control::{ControlMessage, proto};
use std::time::Duration;

fn config() -> ControlConfig {
    ControlConfig { hosts: [HOST.to_owned()].into(), ..ControlConfig::default() }
}

/// The updates that wait, and nothing else.
fn updates(world: &mut World) -> Vec<proto::ConfigUpdate> {
    let update = |event| match event {
        Seen::Sent(_, ControlMessage::ConfigUpdate(update)) => update,
        other => panic!("{other:?}"),
    };
    world.events().into_iter().map(update).collect()
}

#[test]
fn new_lifetimes_bring_new_tokens_at_once_and_new_settings_are_told() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    world.join(&a, NodeId(1), 5);
    let (conn_b, _) = world.join(&b, NodeId(2), 5);
    world.advance(Duration::from_millis(50));
    world.events();

    // The same again changes nothing.
    let now = world.now();
    world.control.reconfigure(config(), now);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.events(), []);

    let minutes = |n: u64| Duration::from_secs(n * 60);
    let (auth_token_lifetime, relay_token_lifetime) = (minutes(60), minutes(10));
    let now = world.now();
    world.control.reconfigure(ControlConfig { auth_token_lifetime, relay_token_lifetime, ..config() }, now);
    world.advance(Duration::ZERO);
    let told = updates(&mut world);
    assert_eq!(told.len(), 2);
    for update in told {
        let tokens = update.tokens.unwrap();
        assert_eq!(update.from_version, update.version, "no node must know more than that");
        assert_eq!(tokens.auth_expires, START_MS / 1000 + 1 + 3600);
        assert_eq!(tokens.relay_expires, START_MS / 1000 + 1 + 600);
    }

    let settings = NodeSettings { node_key_rotate_secs: 3600, keepalive_secs: 15, ..config().settings };
    let now = world.now();
    let lifetimes = ControlConfig { auth_token_lifetime, relay_token_lifetime, ..config() };
    world.control.reconfigure(ControlConfig { settings, ..lifetimes }, now);
    world.advance(Duration::from_millis(50));
    let told = updates(&mut world);
    assert_eq!(told.len(), 2);
    for update in told {
        let settings = update.settings.unwrap();
        assert_eq!((settings.node_key_rotate_secs, settings.keepalive_secs), (3600, 15));
        assert_eq!((update.from_version, update.version, update.tokens), (10, 10, None));
    }
    // Who comes later gets them with its CONFIG, or with the updates that follow it at once.
    let now = world.now();
    world.control.disconnect(conn_b, now);
    world.events();
    let conn_b = world.connect();
    world.authenticate(conn_b, &b);
    world.send(conn_b, &b.announce_in(NetworkId(1), NodeId(2), 6, START_MS / 1000));
    let mut told = world.events().into_iter().filter_map(|event| match event {
        Seen::Sent(to, ControlMessage::Config(config)) if to == conn_b => config.settings,
        Seen::Sent(to, ControlMessage::ConfigUpdate(update)) if to == conn_b => update.settings,
        _ => None,
    });
    assert_eq!(told.next_back().unwrap().node_key_rotate_secs, 3600);
}

#[test]
fn who_is_let_in_follows_the_new_configuration() {
    let mut world = World::new(Vec::new());
    for require_authorization in [true, false, true] {
        let now = world.now();
        world.control.reconfigure(ControlConfig { require_authorization, ..config() }, now);
        let conn = world.connect();
        let events = world.authenticate(conn, &Client::new(9));
        let [Seen::Store(StoreOp::Enroll { request, .. })] = &events[..] else { panic!("{events:?}") };
        assert_eq!(request.require_authorization, require_authorization);
    }
}

#[test]
fn nodes_learn_where_the_controllers_are() {
    let a = Client::new(1);
    let mut world = World::new(vec![a.record(1, true)]);
    world.join(&a, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    let controllers = vec!["wss://a.example.com".to_owned(), "wss://b.example.com:8443".to_owned()];
    let settings = NodeSettings { controllers: controllers.clone(), ..config().settings };
    let now = world.now();
    world.control.reconfigure(ControlConfig { settings, ..config() }, now);
    world.advance(Duration::from_millis(50));
    let told = updates(&mut world);
    let [update] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(update.settings.as_ref().unwrap().controllers, controllers);
    assert_eq!(update.from_version, update.version);
}
