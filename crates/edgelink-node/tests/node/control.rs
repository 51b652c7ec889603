//! The control channel: authentication, CONFIG, refusals, reconnects.

use crate::world::*;
use edgelink_api::local::DaemonState;
use edgelink_auth::{KeyStatement, challenge};
use edgelink_model::{NodeId, ServerId};
use edgelink_node::Target;
use edgelink_wire::control::{ControlMessage, proto};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn ack(count: u64, ty: u32, version: u64, error: &str) -> ControlMessage {
    ControlMessage::Ack(proto::Ack { acked_type: ty, count, config_version: version, error: error.to_owned() })
}

#[test]
fn the_whole_dialogue_from_dial_to_ready() {
    let mut world = World::new(Setup { auth_key: Some("elk_test"), ..Setup::default() });
    let events = world.events();
    let [Seen::Dial(link, Target::Control)] = events[..] else { panic!("{events:?}") };
    world.control = Some(link);
    assert_eq!(world.status().state, DaemonState::Connecting);

    world.connected(link);
    let hello = proto::AuthRequest {
        protocol_version: 1,
        capabilities: 1,
        machine_pub: machine(1).public().0.to_vec(),
        host_info: Some(proto::HostInfo { hostname: "me".into(), os: "linux".into(), ..Default::default() }),
        ..Default::default()
    };
    assert_eq!(world.events(), [Seen::Sent(link, Sent::Message(ControlMessage::AuthRequest(hello)))]);

    world.challenge();
    let signed = challenge::control_message(HOST, &[9; 32], &machine(1).public());
    let proof = proto::AuthRequest {
        signature: machine(1).sign(&signed).to_vec(),
        host: HOST.to_owned(),
        auth_key: "elk_test".to_owned(),
        ..Default::default()
    };
    assert_eq!(world.events(), [Seen::Sent(link, Sent::Message(ControlMessage::AuthRequest(proof)))]);

    world.admit();
    let events = world.events();
    let [Seen::Persisted(seq), Seen::Sent(_, Sent::Announce(announce)), Seen::Sent(_, Sent::Ping(_))] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((announce.src, announce.dst, *seq), (ME, NodeId::CONTROLLER, START_MS));
    let statement = KeyStatement::parse(&announce.statement).unwrap();
    assert_eq!((statement.network_id, statement.node_id, statement.seq), (NETWORK, ME, START_MS));
    assert_eq!((statement.not_before, statement.not_after), (START, START + 86_400 + 3600));
    assert_eq!((statement.machine_pub, statement.capabilities), (machine(1).public(), 1));

    let events = world.config(config(10, vec![Peer::new().listed()]));
    assert_eq!(
        events,
        [
            Seen::Interface(vec!["10.7.0.100/24".to_owned()]),
            Seen::Persisted(START_MS),
            Seen::Ready,
            Seen::Sent(link, Sent::Message(ack(1, 3, 10, ""))),
        ]
    );
    let events = world.advance(Duration::ZERO);
    let target = Target::Relay { id: ServerId(1), url: String::new(), path: "/ws/data".to_owned() };
    assert!(matches!(&events[..], [(_, Seen::Dial(_, to))] if *to == target), "{events:?}");
    let status = world.status();
    assert_eq!((status.state, status.config_version, status.node_id), (DaemonState::Up, 10, Some(ME)));
    assert!(status.controller.connected);
}

#[test]
fn the_statement_follows_the_controllers_clock() {
    for skew_ms in [-86_400_000, 86_400_000, -1_600_000_000_000] {
        let mut world = World::new(Setup { skew_ms, ..Setup::default() });
        let events = world.enter();
        let announce = announces(&events, world.control()).remove(0);
        let statement = KeyStatement::parse(&announce.statement).unwrap();
        assert_eq!((statement.not_before, statement.seq), (START, START_MS), "skew {skew_ms}");
    }
}

#[test]
fn a_clock_that_was_wrong_at_the_start_heals_with_the_controllers_word() {
    // A machine without a battery-backed clock: its remembered offset means nothing after a restart.
    let peer = Peer::new();
    let mut world = World::new(Setup::default());
    world.enter();
    let message = ControlMessage::Config(config(10, vec![peer.listed()]));
    world.deliver(world.control(), message);
    let persisted = world.persisted();
    let mut world = World::new(Setup { persisted, skew_ms: -1_600_000_000_000, seed: 8, ..Setup::default() });
    let events = world.enter();
    let announced = announces(&events, world.control());
    assert_eq!(announced.len(), 1, "{events:?}");
    let statement = KeyStatement::parse(&announced[0].statement).unwrap();
    assert_eq!(statement.not_before, START);
    assert!(statement.seq > START_MS);
}

#[test]
fn a_clock_that_is_set_while_the_network_runs_makes_no_false_statement() {
    let hour = 3_600_000;
    for (step_ms, controller) in [(-hour, false), (-hour, true), (hour, true), (90_000 * 1000, true)] {
        let mut world = World::new(Setup::default());
        let settings = Some(proto::Settings { node_key_rotate_secs: 60, ..Default::default() });
        world.join(proto::Config { settings, ..config(10, vec![Peer::new().listed()]) });
        world.lively = true;
        let (link, before) = (world.control(), world_seq(&world));
        world.skew_ms += step_ms;
        if controller {
            // Whether the clock was set or the host has slept, only the controller can tell.
            let seen = world.redial_control();
            assert!(seen.contains(&Seen::Closed(link)), "{seen:?}");
            world.enter();
            world.advance(Duration::from_secs(61));
        } else {
            // It is dialled, and does not answer until the next key is made.
            world.closed(link, "reset");
            world.redial_control();
            world.advance(Duration::from_secs(61));
            world.enter();
        }
        let announce = world.announced.clone().unwrap();
        let statement = KeyStatement::parse(&announce.statement).unwrap();
        let now = world.controller_ms() / 1000;
        assert!(statement.seq > before, "a new key: {statement:?}");
        assert!((now - 120..=now).contains(&statement.not_before), "{step_ms}: {statement:?} at {now}");
    }
}

#[test]
fn a_statement_that_ended_while_the_machine_slept_is_replaced() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let (link, before) = (world.control(), world_seq(&world));
    world.closed(link, "reset");
    // Two days pass on every wall clock, none for the timers.
    world.slept += Duration::from_secs(2 * 86_400);
    world.redial_control();
    let events = world.enter();
    let announced = announces(&events, world.control());
    assert_eq!(announced.len(), 1, "{events:?}");
    let statement = KeyStatement::parse(&announced[0].statement).unwrap();
    assert!(statement.not_before >= START + 2 * 86_400, "{statement:?}");
    assert!(statement.seq > before);
}

#[test]
fn error_1006_means_to_wait_and_then_to_be_let_in() {
    let mut world = World::new(Setup::default());
    let link = world.dialled_control();
    world.connected(link);
    world.challenge();
    world.events();
    world.deliver(link, error(1006, "node 100 waits for authorization"));
    let events = world.events();
    assert!(matches!(&events[..], [Seen::Sent(_, Sent::Ping(_))]), "{events:?}");
    let status = world.status();
    assert_eq!(status.state, DaemonState::WaitingForAuthorization);
    assert_eq!(status.state_message.as_deref(), Some("node 100 waits for authorization (error 1006)"));
    assert!(!status.controller.connected);

    // Configurations are for members.
    let events = world.config(config(10, Vec::new()));
    assert_eq!(events, [], "CONFIG before the admission");
    assert_eq!(world.drops("malformed"), 1);

    world.admit();
    let events = world.events();
    assert_eq!(announces(&events, link).len(), 1, "{events:?}");
    let events = world.config(config(10, Vec::new()));
    assert!(events.contains(&Seen::Ready), "{events:?}");
    let status = world.status();
    assert_eq!((status.state, status.state_message), (DaemonState::Up, None));
}

#[test]
fn other_refusals_are_shown_and_retried_slowly() {
    for (code, text) in [(1001, "the auth key is unknown"), (1002, "the auth key has expired"), (4003, "pool is full")]
    {
        let mut world = World::new(Setup::default());
        let link = world.dialled_control();
        world.connected(link);
        world.challenge();
        world.events();
        world.deliver(link, error(code, text));
        world.closed(link, "closed by the other end");
        let status = world.status();
        assert_eq!(status.state, DaemonState::Refused);
        assert_eq!(status.state_message, Some(format!("{text} (error {code})")));
        let events = world.advance(Duration::from_secs(31));
        let [(at, Seen::Dial(_, Target::Control))] = events[..] else { panic!("{events:?}") };
        assert!((Duration::from_secs(15)..=Duration::from_secs(30)).contains(&at), "{at:?}");
        assert_eq!(world.status().state_message, Some(format!("{text} (error {code})")), "still true while retrying");
    }
}

#[test]
fn a_passing_failure_is_retried_quickly() {
    let mut world = World::new(Setup::default());
    let link = world.dialled_control();
    world.connected(link);
    world.challenge();
    world.events();
    world.deliver(link, error(4002, "the database does not answer"));
    world.closed(link, "closed by the other end");
    assert_eq!(world.status().state, DaemonState::Connecting);
    let events = world.advance(SECOND);
    assert!(matches!(&events[..], [(_, Seen::Dial(_, Target::Control))]), "{events:?}");
}

#[test]
fn being_refused_after_the_admission_is_no_storm_and_is_shown() {
    // Such as "the machine key is in use twice": the answer to the key statement.
    let mut world = World::new(Setup::default());
    let mut dials = 0;
    while world.elapsed < Duration::from_secs(300) {
        world.enter();
        world.deliver(world.control(), error(1004, "the machine key is in use twice"));
        world.closed(world.control(), "closed by the other end");
        let health = world.status().health;
        assert_eq!(health, ["controller: the machine key is in use twice"]);
        world.redial_control();
        dials += 1;
    }
    assert!(dials <= 21, "{dials} dials in five minutes");
}

#[test]
fn a_config_of_another_network_is_refused_and_changes_nothing() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let mut other = config(11, Vec::new());
    other.network.as_mut().unwrap().id = 8;
    let events = world.config(other);
    let error = "CONFIG of network 8, but this node is in 7";
    assert_eq!(events, [Seen::Sent(world.control(), Sent::Message(ack(2, 3, 10, error)))]);
    assert_eq!(world.peer_status(PEER).addresses, [ip(PEER_IP)]);

    let events = world.config(proto::Config { version: 12, ..Default::default() });
    let error = "CONFIG without a network";
    assert_eq!(events, [Seen::Sent(world.control(), Sent::Message(ack(3, 3, 10, error)))]);
    assert_eq!(world.status().config_version, 10);
}

#[test]
fn an_update_for_another_version_is_answered_in_any_case() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let removal = |from_version, version| proto::ConfigUpdate {
        from_version,
        version,
        removed_peers: vec![PEER.0],
        ..Default::default()
    };
    let events = world.update(removal(11, 12));
    let control = world.control();
    assert_eq!(events, [Seen::Sent(control, Sent::Message(ack(2, 4, 10, "holds version 10, not 11")))]);
    // Without the flag as well: the controller must learn that the node is behind.
    let events = world.update(removal(12, 12));
    assert_eq!(events, [Seen::Sent(control, Sent::Message(ack(2, 4, 10, "holds version 10, not 12")))]);
    assert_eq!(world.status().peers.len(), 1);
}

#[test]
fn presence_moves_no_version_and_asks_for_nothing() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    assert!(world.peer_status(PEER).online);
    let presence = vec![proto::Presence { node_id: PEER.0, online: false }];
    let update = proto::ConfigUpdate { from_version: 10, version: 10, presence, ..Default::default() };
    assert_eq!(world.update(update), [], "neither an ACK nor a write to disk");
    assert!(!world.peer_status(PEER).online);
    assert_eq!(world.status().config_version, 10);
}

#[test]
fn a_removed_peer_is_gone_and_may_come_back() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let frame = peer.packet(b"one");
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.tun.len(), 1);

    let update =
        proto::ConfigUpdate { from_version: 10, version: 11, removed_peers: vec![PEER.0], ..Default::default() };
    let events = world.update(update);
    let control = world.control();
    assert_eq!(events, [Seen::Persisted(world_seq(&world)), Seen::Sent(control, Sent::Message(ack(2, 4, 11, "")))]);
    assert!(world.status().peers.is_empty());
    let frame = peer.packet(b"two");
    world.deliver_raw(world.relay(), &frame);
    assert_eq!((world.tun.len(), world.drops("unknown_key")), (1, 1));
    world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
    assert_eq!(world.drops("no_route"), 1);
    assert_eq!(world.events(), [], "a stranger is not answered");

    let update =
        proto::ConfigUpdate { from_version: 11, version: 12, peers: vec![peer.listed()], ..Default::default() };
    world.update(update);
    // What was sealed while it was away counts as new; what was delivered before does not.
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.tun.len(), 2);
    world.deliver_raw(world.relay(), &frame);
    assert_eq!((world.tun.len(), world.drops("replayed")), (2, 1));
}

fn world_seq(world: &World) -> u64 {
    KeyStatement::parse(&world.announced.as_ref().unwrap().statement).unwrap().seq
}

#[test]
fn who_is_not_in_the_full_list_is_gone() {
    let (first, second) = (Peer::new(), Peer::build(NodeId(201), [10, 7, 0, 201].into(), 3, 1));
    let mut world = World::joined(&first);
    world.config(config(11, vec![second.listed()]));
    let names: Vec<_> = world.status().peers.into_iter().map(|p| p.node_id).collect();
    assert_eq!(names, [NodeId(201)]);
}

#[test]
fn the_node_itself_is_no_peer_of_its_own() {
    let me = proto::Peer { node_id: ME.0, machine_pub: machine(1).public().0.to_vec(), ..Default::default() };
    let mut world = World::new(Setup::default());
    world.join(config(10, vec![me]));
    assert!(world.status().peers.is_empty());
}

#[test]
fn losing_the_controller_leaves_sessions_and_relays_alone() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let announced = world.announced.clone();
    let (control, relay) = (world.control(), world.relay());
    world.closed(control, "connection reset");
    assert_eq!(world.events(), [], "nothing but the control channel ends");
    let status = world.status();
    assert_eq!((status.state, status.controller.connected), (DaemonState::Up, false));
    assert!(status.health.contains(&"controller: connection reset".to_owned()), "{:?}", status.health);
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"still here"));
    assert_eq!(peer.open(&sealed(&seen, relay)[0], world.now()), Ok(udp(MY_IP, PEER_IP, b"still here")));

    // Attempts: soon at first, never more than a second apart in the first minute, then at most 30 s.
    let mut waits = Vec::new();
    for _ in 0..120 {
        let before = world.elapsed;
        world.redial_control();
        waits.push(world.elapsed - before);
        world.closed(world.control(), "refused");
    }
    assert!(waits[0] <= Duration::from_millis(200), "{waits:?}");
    assert!(waits.iter().take(60).all(|w| *w <= SECOND), "{waits:?}");
    assert!(*waits.last().unwrap() >= Duration::from_secs(15), "{waits:?}");
    assert!(waits.iter().all(|w| *w <= Duration::from_secs(30)), "{waits:?}");

    // It is back and says the same: the same key, no new interface, the relay untouched.
    world.redial_control();
    let events = world.enter();
    let link = world.control();
    assert_eq!(announces(&events, link).first(), announced.as_ref(), "{events:?}");
    let events = world.config(config(10, vec![peer.listed()]));
    assert!(!events.iter().any(|e| matches!(e, Seen::Interface(_) | Seen::Ready | Seen::Closed(_))), "{events:?}");
}

#[test]
fn a_silent_controller_is_given_up_after_45_s() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let control = world.control();
    let events = world.advance(Duration::from_secs(70));
    let closed = events.iter().find(|(_, e)| *e == Seen::Closed(control)).map(|(at, _)| *at).unwrap();
    assert!((Duration::from_secs(45)..=Duration::from_secs(65)).contains(&closed), "{closed:?}");
    assert!(events.iter().any(|(at, e)| matches!(e, Seen::Dial(_, Target::Control)) && *at >= closed));
    let pings: Vec<_> = events
        .iter()
        .filter(|(_, e)| matches!(e, Seen::Sent(to, Sent::Ping(_)) if *to == control))
        .map(|(at, _)| *at)
        .collect();
    assert!(pings.windows(2).all(|w| w[1] - w[0] <= Duration::from_secs(20)), "{pings:?}");
}

#[test]
fn an_unfinished_authentication_is_given_up() {
    let mut world = World::new(Setup::default());
    let link = world.dialled_control();
    world.connected(link);
    let events = world.advance(Duration::from_secs(21));
    let closed = events.iter().find(|(_, e)| *e == Seen::Closed(link)).map(|(at, _)| *at);
    assert_eq!(closed, Some(Duration::from_secs(20)));
}

#[test]
fn words_about_former_links_are_ignored() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let (old_control, old_relay) = (world.control(), world.relay());
    world.closed(old_control, "reset");
    world.closed(old_relay, "reset");
    let again = world.advance(SECOND);
    let dialled: Vec<_> = again.iter().filter(|(_, e)| matches!(e, Seen::Dial(..))).collect();
    assert_eq!(dialled.len(), 2, "{again:?}");

    world.closed(old_control, "again");
    world.closed(old_relay, "again");
    let frame = peer.packet(b"late");
    world.deliver_raw(old_relay, &frame);
    world.deliver(old_control, admission("stolen"));
    assert_eq!(world.events(), []);
    assert!(world.tun.is_empty());
    // A dial that succeeded too late must be closed again.
    world.connected(old_relay);
    assert_eq!(world.events(), [Seen::Closed(old_relay)]);
}

#[test]
fn an_expelled_member_takes_everything_down_and_may_return() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let (control, relay) = (world.control(), world.relay());
    let seq = world_seq(&world);
    world.deliver(control, error(1006, "an administrator withdrew this node's authorization"));
    assert_eq!(world.events(), [Seen::Closed(relay), Seen::Persisted(seq), Seen::Expelled]);
    let status = world.status();
    assert_eq!(status.state, DaemonState::WaitingForAuthorization);
    assert!(status.peers.is_empty() && status.relays.is_empty() && status.addresses.is_empty());
    world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
    assert_eq!(world.drops("no_session"), 1);

    world.admit();
    let events = world.events();
    let fresh = announces(&events, control).remove(0);
    assert!(KeyStatement::parse(&fresh.statement).unwrap().seq > seq, "the former sessions are gone: a new key");
    assert!(world.config(config(12, vec![peer.listed()])).contains(&Seen::Ready));
}

#[test]
fn a_shorter_rotation_period_begins_with_a_new_key() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let first = world_seq(&world);
    let settings = Some(proto::Settings { node_key_rotate_secs: 60, ..Default::default() });
    let events = world.update(proto::ConfigUpdate { from_version: 10, version: 11, settings, ..Default::default() });
    let announce = announces(&events, world.control()).remove(0);
    let statement = KeyStatement::parse(&announce.statement).unwrap();
    assert_eq!((statement.seq, statement.not_after - statement.not_before), (first + 1, 60 + 3600));
    // At 0.9 to 1.0 of the period.
    let events = world.advance(Duration::from_secs(60));
    let rotated: Vec<_> = events.iter().filter(|(_, e)| matches!(e, Seen::Persisted(_))).map(|(at, _)| *at).collect();
    assert_eq!(rotated.len(), 1, "{events:?}");
    assert!(rotated[0] >= Duration::from_secs(54), "{rotated:?}");
}

#[test]
fn a_new_name_or_address_reaches_the_interface() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let mut identity = identity();
    identity.addresses = vec![vec![10, 7, 0, 101]];
    let update = proto::ConfigUpdate { from_version: 10, version: 10, identity: Some(identity), ..Default::default() };
    let events = world.update(update);
    assert_eq!(
        events,
        [Seen::Interface(vec!["10.7.0.101/24".to_owned()]), Seen::Persisted(world_seq(&world))],
        "the same key, the same sessions"
    );
}

/// What the node shows in answer to the next challenge.
fn token_shown(world: &mut World) -> String {
    let link = world.dialled_control();
    world.connected(link);
    world.events();
    world.challenge();
    world
        .events()
        .into_iter()
        .find_map(|event| match event {
            Seen::Sent(_, Sent::Message(ControlMessage::AuthRequest(request))) => Some(request.token),
            _ => None,
        })
        .unwrap()
}

fn auth_token(auth: &str, auth_expires: u64) -> proto::Tokens {
    proto::Tokens { auth_token: auth.to_owned(), auth_expires, ..Default::default() }
}

#[test]
fn an_auth_token_is_shown_while_it_lives() {
    let peer = Peer::new();
    for (expires, shown) in [(START + 86_400, "mine"), (START - 1, "")] {
        let mut world = World::joined(&peer);
        let tokens = Some(auth_token("mine", expires));
        world.update(proto::ConfigUpdate { from_version: 10, version: 10, tokens, ..Default::default() });
        world.closed(world.control(), "reset");
        world.redial_control();
        assert_eq!(token_shown(&mut world), shown);
    }
}

#[test]
fn a_refused_auth_token_is_dropped_and_the_node_authenticates_anew() {
    let peer = Peer::new();
    for code in [1001, 1002, 1003] {
        let mut world = World::joined(&peer);
        let tokens = Some(auth_token("mine", START + 86_400));
        world.update(proto::ConfigUpdate { from_version: 10, version: 10, tokens, ..Default::default() });
        world.closed(world.control(), "reset");
        world.redial_control();
        assert_eq!(token_shown(&mut world), "mine");
        let link = world.control();
        world.deliver(link, error(code, "the auth_token is refused"));
        world.closed(link, "closed by the other end");
        assert_eq!(world.status().state, DaemonState::Up, "that is no refusal of the node");
        let events = world.advance(SECOND);
        assert!(events.iter().any(|(_, e)| matches!(e, Seen::Dial(_, Target::Control))), "soon: {events:?}");
    }
}

#[test]
fn a_renewal_of_one_token_keeps_the_other() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let link = world.relay();
    let both = proto::Tokens {
        auth_token: "first".to_owned(),
        auth_expires: START + 86_400,
        relay_token: "relay 1".to_owned(),
        relay_expires: START + 5_400,
    };
    let shown_to_relay = |events: &[Seen]| {
        events.iter().find_map(|event| match event {
            Seen::Sent(to, Sent::Message(ControlMessage::AuthRequest(request))) if *to == link => {
                Some(request.token.clone())
            }
            _ => None,
        })
    };
    let update =
        |tokens| proto::ConfigUpdate { from_version: 10, version: 10, tokens: Some(tokens), ..Default::default() };
    let events = world.update(update(both));
    assert_eq!(shown_to_relay(&events).as_deref(), Some("relay 1"));
    let events = world.update(update(auth_token("second", START + 90_000)));
    assert_eq!(shown_to_relay(&events), None, "its token is the same");
    let relay = proto::Tokens { relay_token: "relay 2".to_owned(), relay_expires: START + 9_000, ..Default::default() };
    let events = world.update(update(relay));
    assert_eq!(shown_to_relay(&events).as_deref(), Some("relay 2"));
    world.closed(world.control(), "reset");
    world.redial_control();
    assert_eq!(token_shown(&mut world), "second");
}
