//! A client that breaks the rules harms nobody: raw frames on `/ws/control` and `/ws/data`.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use edgelink_e2e::{
    Net, Pinger, SOON, TUN, random,
    raw::{Answer, Channel, Door, Rogue, data_frame, hello, machine},
    wire::Stream,
};
use edgelink_model::{ErrorCode, NodeId};
use edgelink_testbed::wait;
use edgelink_wire::{
    Flags, FrameType,
    control::{ControlMessage, Reassembler, proto},
    frames,
    key_announce::KeyAnnounce,
    put_frame,
};

const PATHS: [&str; 2] = ["/ws/control", "/ws/data"];

struct Scene {
    net: Net,
    pinger: Pinger,
    door: Door,
    connections: [u64; 2],
}

impl Scene {
    /// Two nodes that ping each other, and a door to the controller from a third host.
    fn set() -> Option<Self> {
        let mut net = Net::lab(&["a", "b", "rogue"], edgelink_e2e::NetOptions::default()).unwrap()?;
        net.start_controller().unwrap();
        net.join(0).unwrap();
        net.join(1).unwrap();
        let pinger = Pinger::start(&net.nodes[0], net.nodes[1].overlay().unwrap()).unwrap();
        let door = net.door(2).unwrap();
        let connections = connections(&net);
        Some(Self { net, pinger, door, connections })
    }

    fn id(&self, node: usize) -> NodeId {
        self.net.nodes[node].status().unwrap().node_id.unwrap()
    }

    /// No connection is left, no ping was lost, nobody panicked, nothing reached a node.
    fn unharmed(self) {
        let Self { net, pinger, connections: before, .. } = self;
        wait::until("the rogue's connections gone", SOON, || (connections(&net) == before).then_some(())).unwrap();
        net.check_unharmed(pinger).unwrap();
    }
}

fn connections(net: &Net) -> [u64; 2] {
    ["edgelink_control_connections", "edgelink_relay_connections"].map(|name| net.metric(name).unwrap())
}

fn assert_error(channel: &mut Channel<'_>, code: ErrorCode, words: &str) -> proto::Error {
    let error = channel.wait_error().unwrap();
    assert_eq!(error.error_code(), Some(code), "{error:?}");
    assert!(error.message.contains(words), "{words:?} is not in {:?}", error.message);
    error
}

/// ERROR, then the end.
fn assert_refused(mut channel: Channel<'_>, code: ErrorCode, words: &str) {
    assert_error(&mut channel, code, words);
    channel.wait_closed().unwrap();
}

/// The ERROR among the bytes of a WebSocket connection, read without the product's WebSocket code.
fn error_in(bytes: Vec<u8>) -> (Option<ErrorCode>, String) {
    let nowhere = "192.0.2.1:1".parse().unwrap();
    let messages = Stream { from: nowhere, to: nowhere, bytes }.binary_messages().unwrap();
    for message in &messages {
        for frame in frames(message) {
            if let Some(received) = Reassembler::new().push(&frame.unwrap()).unwrap()
                && let ControlMessage::Error(error) = received.message
            {
                return (error.error_code(), error.message);
            }
        }
    }
    panic!("no ERROR among {messages:?}");
}

#[test]
fn nonsense_before_authentication() {
    let Some(scene) = Scene::set() else { return };
    let dial = |path: &str| scene.door.dial(path).unwrap();
    for path in PATHS {
        let send = |message: &[u8]| {
            let mut channel = dial(path);
            channel.send(message).unwrap();
            channel
        };
        // Garbage: its first byte is no version of ours, or its length lies.
        assert_refused(send(b"GET / HTTP/1.1\r\n\r\n"), ErrorCode::UnsupportedVersion, "version");
        assert_refused(send(&[1, 1, 0, 0, 99, 1, 2, 3]), ErrorCode::InvalidMessage, "does not end inside its message");
        assert_refused(send(&[]), ErrorCode::InvalidMessage, "at least one frame");
        assert_refused(send(&[1, 1, 0, 0, 2, 0xff, 0xff]), ErrorCode::InvalidMessage, "");
        // A compressed AUTH_REQUEST never reaches the decompressor.
        assert_refused(send(&[1, 1, 2, 0, 4, 0x28, 0xb5, 0x2f, 0xfd]), ErrorCode::InvalidMessage, "flags");
        // Oversized: more than an unauthenticated client may send.
        let mut large = Vec::new();
        put_frame(&mut large, FrameType::AuthRequest, Flags::default(), &vec![0; 60_000]).unwrap();
        assert_refused(send(&large), ErrorCode::MessageTooLarge, "60");
        // A message beyond what the WebSocket takes at all.
        let mut channel = dial(path);
        // The server may close while we still send: that it closes is all that counts.
        let _ = channel.send(vec![1; 3 << 20]);
        channel.wait_end().unwrap();
        // DATA without authentication.
        let frame = data_frame(scene.id(0), scene.id(1), b"hello").unwrap();
        assert_refused(send(&frame), ErrorCode::InvalidMessage, "");
        // Text "hi" with the mask 0.
        let answer = scene.door.exchange(path, b"\x81\x82\0\0\0\0hi").unwrap();
        let (code, text) = error_in(answer);
        assert_eq!(code, Some(ErrorCode::InvalidMessage));
        assert!(text.contains("text message"), "{text}");
        // A future version of the protocol.
        let ControlMessage::AuthRequest(request) = hello(&machine(), "") else { unreachable!() };
        let mut channel = dial(path);
        channel.say(ControlMessage::AuthRequest(proto::AuthRequest { protocol_version: 9, ..request })).unwrap();
        assert_refused(channel, ErrorCode::UnsupportedVersion, "");
    }
    // A path that there is not, and one that is no WebSocket.
    for (path, status) in [("/ws/nothing", "HTTP 404"), ("/healthz", "HTTP 200")] {
        let error = scene.door.dial(path).unwrap_err().to_string();
        assert!(error.contains(status), "{error}");
    }
    scene.unharmed();
}

#[test]
fn signatures_and_tokens_of_others() {
    let Some(scene) = Scene::set() else { return };
    let key = scene.net.join_flag("--key").unwrap().to_owned();
    let (rogue, control) = Rogue::enrol(&scene.door, &key).unwrap();
    let token = rogue.tokens.relay_token.clone();

    // On /ws/control: a signature that is none.
    let mut channel = scene.door.dial("/ws/control").unwrap();
    channel.say(hello(&rogue.machine, "")).unwrap();
    channel
        .say(ControlMessage::AuthRequest(proto::AuthRequest {
            signature: vec![7; 64],
            host: "127.0.0.1".to_owned(),
            ..Default::default()
        }))
        .unwrap();
    assert_refused(channel, ErrorCode::BadSignature, "does not verify");

    // On /ws/data: no token, a mangled one, an auth_token, a stolen one with another machine key, a stolen one with the
    // right machine key but without its private half.
    let offer = |machine: &edgelink_auth::MachineKey, token: &str| {
        let mut channel = scene.door.dial("/ws/data").unwrap();
        channel.say(hello(machine, token)).unwrap();
        channel
    };
    assert_refused(offer(&rogue.machine, ""), ErrorCode::InvalidToken, "");
    let mut mangled = token.clone().into_bytes();
    let middle = mangled.len() / 2;
    mangled[middle] = if mangled[middle] == b'A' { b'B' } else { b'A' };
    assert_refused(offer(&rogue.machine, std::str::from_utf8(&mangled).unwrap()), ErrorCode::InvalidToken, "");
    assert_refused(offer(&rogue.machine, &rogue.tokens.auth_token), ErrorCode::InvalidToken, "");
    assert_refused(offer(&machine(), &token), ErrorCode::InvalidMachineKey, "");
    let mut thief = offer(&rogue.machine, &token);
    thief
        .say(ControlMessage::AuthRequest(proto::AuthRequest { signature: vec![7; 64], ..Default::default() }))
        .unwrap();
    assert_refused(thief, ErrorCode::BadSignature, "");

    // The rightful owner is let in all the same.
    let mut relay = rogue.relay(&scene.door).unwrap();
    relay.round_trip(1).unwrap();
    drop((relay, control));
    scene.unharmed();
}

#[test]
fn a_member_that_forges_its_source() {
    let Some(scene) = Scene::set() else { return };
    let key = scene.net.join_flag("--key").unwrap().to_owned();
    let (rogue, control) = Rogue::enrol(&scene.door, &key).unwrap();
    let (a, b) = (scene.id(0), scene.id(1));
    let mut relay = rogue.relay(&scene.door).unwrap();
    let marker = random::<32>().unwrap();
    let tuns = [0, 1].map(|n: usize| scene.net.nodes[n].host.capture(TUN).unwrap());
    let forged = scene.net.metric("edgelink_relay_dropped_total{reason=\"forged_source\"}").unwrap();

    // As another member, as nobody, as the controller; alone, and hidden behind a good frame of the same message.
    for source in [b, NodeId(4_000_000), NodeId(0)] {
        relay.send(data_frame(source, a, &marker).unwrap()).unwrap();
        let error = assert_error(&mut relay, ErrorCode::InvalidMessage, "the source is not the node that is connected");
        assert_eq!((error.answers_type, error.about_node), (FrameType::Data as u32, source.0));
    }
    let offline = NodeId(3_000_000);
    let message = [data_frame(rogue.node, offline, &marker).unwrap(), data_frame(b, a, &marker).unwrap()].concat();
    relay.send(message).unwrap();
    let before = relay.round_trip(1).unwrap();
    let mut codes: Vec<_> = before
        .iter()
        .filter_map(|answer| match answer {
            Answer::Control(message) => match &**message {
                ControlMessage::Error(error) => error.error_code(),
                _ => None,
            },
            _ => None,
        })
        .collect();
    codes.sort();
    assert_eq!(codes, [ErrorCode::InvalidMessage, ErrorCode::NodeOffline], "{before:?}");
    let dropped = scene.net.metric("edgelink_relay_dropped_total{reason=\"forged_source\"}").unwrap();
    assert_eq!(dropped - forged, 4);

    // Nonsense on an authenticated connection: an unknown type is answered and the connection stays; a broken frame
    // ends it.
    relay.send([1, 0x7e, 0, 0, 0]).unwrap();
    assert_error(&mut relay, ErrorCode::InvalidMessage, "unknown frame type");
    relay.round_trip(2).unwrap();
    relay.send([1, 0x10, 0, 0, 3, 1, 2, 3]).unwrap();
    assert_refused(relay, ErrorCode::InvalidMessage, "");

    for tun in tuns {
        let seen = tun.stop().unwrap();
        assert!(seen.lost == 0 && !seen.contains(&marker), "something forged came through");
    }
    drop(control);
    scene.unharmed();
}

#[test]
fn a_member_of_another_network() {
    let Some(scene) = Scene::set() else { return };
    scene.net.ctl(&["network", "create", "--name", "other", "--subnet", "10.9.0.0/24"]).unwrap().run().unwrap();
    let key = scene.net.auth_key("other", &["--reusable", "--preauthorize"]).unwrap();
    let (rogue, control) = Rogue::enrol(&scene.door, &key).unwrap();
    let told: Vec<u32> = rogue.config.peers.iter().map(|peer| peer.node_id).collect();
    assert_eq!(told, [rogue.node.0], "another network's nodes are not told");
    let (a, nobody) = (scene.id(0), NodeId(3_000_000));
    let mut relay = rogue.relay(&scene.door).unwrap();
    let marker = random::<32>().unwrap();
    let tun = scene.net.nodes[0].host.capture(TUN).unwrap();

    let reason = "edgelink_relay_dropped_total{reason=\"other_network\"}";
    let dropped = scene.net.metric(reason).unwrap();
    // Another network's node looks exactly like one that there is not.
    let mut answers = Vec::new();
    for target in [a, nobody] {
        relay.send(data_frame(rogue.node, target, &marker).unwrap()).unwrap();
        let mut error = assert_error(&mut relay, ErrorCode::NodeOffline, "");
        assert_eq!(error.about_node, target.0);
        error.about_node = 0;
        answers.push(error);
    }
    assert_eq!(answers[0], answers[1]);

    // A key statement of its own, for a node of another network: announced to it, it goes nowhere either.
    let signed = rogue.statement(&rogue.node_key, u64::MAX).unwrap();
    let (statement, signature) = (*signed.bytes(), *signed.signature());
    relay.send(KeyAnnounce { src: rogue.node, dst: a, statement, signature }.encode()).unwrap();
    // The ERROR for this destination was told less than a second ago: silence now.
    assert_eq!(relay.round_trip(1).unwrap(), []);
    assert_eq!(scene.net.metric(reason).unwrap() - dropped, 2);

    let seen = tun.stop().unwrap();
    assert!(seen.lost == 0 && !seen.contains(&marker));
    drop((relay, control));
    scene.unharmed();
}
