//! The local socket's JSON is a public contract (DESIGN §8): what is spelt out here must not change.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use edgelink_api::Secret;
use edgelink_api::local::*;
use edgelink_model::{NodeId, ServerId};
use serde_json::{Value, json};

/// One of everything: each path kind, each optional value present and absent.
fn full_status() -> Status {
    let peer = |id: u32, kind, relay: Option<u32>, via: Option<u32>, endpoint: Option<&str>| Peer {
        node_id: NodeId(id),
        name: format!("node-{id}"),
        addresses: vec![format!("10.0.1.{id}").parse().unwrap(), format!("fd00::{id}").parse().unwrap()],
        online: kind != PathKind::None,
        path: Path {
            kind,
            relay_id: relay.map(ServerId),
            via_relay_id: via.map(ServerId),
            endpoint: endpoint.map(|e| e.parse().unwrap()),
            transport: match kind {
                PathKind::Lan => Some(Transport::Tcp),
                PathKind::P2p => Some(Transport::Udp),
                _ => None,
            },
            rtt_ms: (kind != PathKind::None).then_some(1.25),
        },
        reason: (kind == PathKind::Relay).then(|| "UDP blocked".into()),
        last_rx_ms: (kind != PathKind::None).then_some(40),
        rx_bytes: 1 << 40,
        tx_bytes: 2,
    };
    Status {
        state: DaemonState::Up,
        state_message: None,
        version: "0.1.0".into(),
        node_id: Some(NodeId(1)),
        name: "laptop".into(),
        network: Some("office".into()),
        addresses: vec!["10.0.1.1".parse().unwrap()],
        controller: ControllerLink {
            connected: true,
            rtt_ms: Some(12.5),
            url: Some("wss://controller.example.com/ws/control".into()),
        },
        relays: vec![Relay {
            id: ServerId(7),
            name: "builtin".into(),
            url: "wss://controller.example.com/ws/data".into(),
            connected: false,
            rtt_ms: None,
        }],
        nat: Nat {
            mapping: NatBehaviour::EndpointIndependent,
            filtering: NatBehaviour::AddressAndPortDependent,
            name: NatName::PortRestricted,
        },
        peers: vec![
            peer(2, PathKind::Lan, None, None, Some("192.168.1.2:51820")),
            peer(3, PathKind::P2p, None, None, Some("[2001:db8::3]:51820")),
            peer(4, PathKind::Relay, Some(7), None, None),
            peer(5, PathKind::Mesh, Some(7), Some(8), None),
            peer(6, PathKind::None, None, None, None),
        ],
        routes: vec![
            Route {
                cidr: "192.168.7.0/24".parse().unwrap(),
                gateway_node_id: NodeId(4),
                priority: 100,
                weight: 50,
                active: true,
                skipped: None,
            },
            Route {
                cidr: "192.168.1.0/24".parse().unwrap(),
                gateway_node_id: NodeId(5),
                priority: 100,
                weight: 50,
                active: false,
                skipped: Some("local".into()),
            },
        ],
        drops: [("source_mismatch".to_owned(), 3)].into(),
        config_version: 42,
        health: vec!["relay builtin is not connected".into()],
    }
}

#[test]
fn status_is_the_documented_json() {
    let printed = serde_json::to_string_pretty(&full_status()).unwrap() + "\n";
    assert_eq!(printed, include_str!("status.json"), "tests/status.json is the contract; extend it, never change it");
    let read: Status = serde_json::from_str(&printed).unwrap();
    assert_eq!(read, full_status());
}

/// DESIGN §8's list of keys, object by object: all are present, even when their value is unknown.
#[test]
fn every_key_of_the_contract_is_present_even_when_empty() {
    fn keys(v: &Value) -> Vec<&str> {
        v.as_object().unwrap().keys().map(String::as_str).collect()
    }
    let empty = serde_json::to_value(Status::default()).unwrap();
    for key in
        "node_id name network addresses controller relays nat peers routes drops config_version health".split(' ')
    {
        assert!(keys(&empty).contains(&key), "{key} is missing");
    }
    assert_eq!(empty["state"], "down");
    assert_eq!(empty["nat"], json!({"mapping": "unknown", "filtering": "unknown", "name": "unknown"}));
    assert_eq!(empty["node_id"], Value::Null);
    assert_eq!(empty["controller"], json!({"connected": false, "rtt_ms": null, "url": null}));

    let full = serde_json::to_value(full_status()).unwrap();
    let unreachable = &full["peers"][4];
    for key in "node_id name addresses online path reason last_rx_ms rx_bytes tx_bytes".split(' ') {
        assert!(keys(unreachable).contains(&key), "peers[].{key} is missing");
    }
    for key in "kind relay_id via_relay_id endpoint transport rtt_ms".split(' ') {
        assert!(keys(&unreachable["path"]).contains(&key), "peers[].path.{key} is missing");
    }
    let kinds: Vec<_> = full["peers"].as_array().unwrap().iter().map(|p| p["path"]["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["lan", "p2p", "relay", "mesh", "none"]);
}

#[test]
fn requests_are_single_lines_and_read_back() {
    let cases = [
        (LocalRequest::Status(NetworkChoice::default()), json!({"request": "status"})),
        (
            LocalRequest::Peers(NetworkChoice { network: Some("office".into()) }),
            json!({"request": "peers", "network": "office"}),
        ),
        (LocalRequest::Down(NetworkChoice::default()), json!({"request": "down"})),
        (LocalRequest::Networks, json!({"request": "networks"})),
        (
            LocalRequest::Accept(PeerChoice { target: "b".into(), network: Some("office".into()) }),
            json!({"request": "accept", "target": "b", "network": "office"}),
        ),
        (
            LocalRequest::Up(UpRequest {
                controller: Some("wss://c.example:8443".into()),
                auth_key: Some(Secret::new("elk_1\n2")),
                pin: Some("sha256:AAAA".into()),
                hostname: None,
                wait_ms: Some(5000),
                network: None,
            }),
            json!({"request": "up", "controller": "wss://c.example:8443", "auth_key": "elk_1\n2", "pin": "sha256:AAAA", "wait_ms": 5000}),
        ),
        (
            LocalRequest::Ping(PingRequest::new("node-2", Some(4))),
            json!({"request": "ping", "target": "node-2", "count": 4, "interval_ms": 1000, "timeout_ms": 3000}),
        ),
    ];
    for (request, expected) in cases {
        let line = to_line(&request).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with('\n'));
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
        assert_eq!(from_line::<LocalRequest>(line.as_bytes()).unwrap(), request);
    }
}

#[test]
fn a_ping_needs_only_its_target() {
    let request: LocalRequest = from_line(br#"{"request":"ping","target":"10.0.1.2"}"#).unwrap();
    assert_eq!(request, LocalRequest::Ping(PingRequest::new("10.0.1.2", None)));
}

#[test]
fn responses_read_back() {
    let responses = [
        LocalResponse::Status(Box::new(full_status())),
        LocalResponse::Peers { peers: full_status().peers },
        LocalResponse::PingReply(PingReply {
            seq: 1,
            node_id: NodeId(2),
            name: "b".into(),
            path: Path { kind: PathKind::Relay, relay_id: Some(ServerId(7)), ..Path::default() },
            rtt_ms: None,
            error: Some("no answer within 3000 ms".into()),
        }),
        LocalResponse::PingDone(PingDone { sent: 1, ..PingDone::default() }),
        LocalResponse::Error(LocalError::new(LocalErrorKind::Usage, "no peer is called x")),
    ];
    let tags = ["status", "peers", "ping_reply", "ping_done", "error"];
    for (response, tag) in responses.into_iter().zip(tags) {
        let line = to_line(&response).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["response"], tag);
        assert_eq!(from_line::<LocalResponse>(line.as_bytes()).unwrap(), response);
    }
}

#[test]
fn an_older_command_reads_a_newer_daemon() {
    let mut newer = serde_json::to_value(full_status()).unwrap();
    newer["state"] = "hibernating".into();
    newer["peers"][0]["path"]["kind"] = "quantum".into();
    newer["nat"]["name"] = "fancy".into();
    newer["uptime_ms"] = 5.into();
    let status: Status = serde_json::from_value(newer).unwrap();
    assert_eq!(status.state, DaemonState::Unknown);
    assert_eq!(status.peers[0].path.kind, PathKind::None);
    assert_eq!(status.nat.name, NatName::Unknown);
    let error: LocalError = from_line(br#"{"kind":"tired","message":"m"}"#).unwrap();
    assert_eq!(error.kind, LocalErrorKind::Other);
}

#[test]
fn every_truncation_of_a_line_is_refused() {
    let line = to_line(&LocalRequest::Ping(PingRequest::new("node-2", Some(4)))).unwrap();
    for end in 0..line.len() - 1 {
        assert!(from_line::<LocalRequest>(&line.as_bytes()[..end]).is_err(), "{end} bytes were accepted");
    }
    assert!(from_line::<LocalRequest>(br#"{"request":"selfdestruct"}"#).is_err());
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    use LocalErrorKind::*;
    assert_eq!([Failed, Usage, Unreachable, NotAuthorized, Other].map(LocalErrorKind::exit_code), [1, 2, 3, 4, 1]);
}

#[test]
fn debug_never_shows_the_auth_key() {
    let request =
        LocalRequest::Up(UpRequest { auth_key: Some(Secret::new("elk_very_secret")), ..UpRequest::default() });
    assert!(!format!("{request:?} {request:#?}").contains("elk_very_secret"));
}
