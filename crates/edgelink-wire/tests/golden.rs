//! The golden vectors of `docs/protocol.md`: what they decode to, that encoding gives the same bytes, and that every
//! truncation of them is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

mod common;

use common::{only_frame, vector, vectors};
use edgelink_model::{ErrorCode, NodeId};
use edgelink_wire::control::proto::{self, endpoint::Kind};
use edgelink_wire::control::{ControlMessage, Reassembler, Received, encode};
use edgelink_wire::data::{self, DataHeader};
use edgelink_wire::keepalive::Keepalive;
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::ping::Ping;
use edgelink_wire::probe::Probe;
use edgelink_wire::udp::{Datagram, Dropped, demux};
use edgelink_wire::virtio::{self, VirtioHeader};
use edgelink_wire::{Flags, FrameType, HEADER_LEN, WireError, frames, put_frame};
use std::collections::BTreeSet;

fn text(s: &str) -> String {
    s.to_owned()
}

/// Messages that are the text of their vectors, and the flags that they are sent with.
fn control_vectors() -> Vec<(&'static str, ControlMessage, Flags)> {
    let lan = proto::Endpoint { kind: Kind::Lan.into(), ip: vec![192, 168, 1, 20], port: 41641, priority: 1 };
    let plain = [
        ("auth-request-first", auth_request_first().into()),
        ("auth-request-second", auth_request_second().into()),
        (
            "auth-response-challenge",
            proto::AuthResponse {
                challenge: (0..32).collect(),
                server_time_ms: 1_700_000_000_000,
                capabilities: 1,
                ..Default::default()
            }
            .into(),
        ),
        ("auth-response-identity", auth_response_identity().into()),
        ("ack", proto::Ack { acked_type: 3, count: 1, config_version: 3, error: text("") }.into()),
        (
            "latency-report",
            proto::LatencyReport {
                latencies: vec![
                    proto::Latency { server_id: 1, rtt_us: 12_345 },
                    proto::Latency { server_id: 2, rtt_us: 0 },
                ],
                active_peers: vec![200],
                connected_relays: vec![1, 2],
            }
            .into(),
        ),
        ("p2p-init", proto::P2pInit { node_id: 200, attempt: 1 }.into()),
        (
            "p2p-endpoint",
            proto::P2pEndpoint {
                node_id: 200,
                endpoints: vec![
                    lan.clone(),
                    proto::Endpoint { kind: Kind::Stun.into(), ip: vec![203, 0, 113, 5], port: 40001, priority: 2 },
                ],
                attempt: 1,
                nat_mapping: text("endpoint_independent"),
                nat_filtering: text("address_dependent"),
                nat_name: String::new(),
            }
            .into(),
        ),
        (
            "p2p-status",
            proto::P2pStatus { node_id: 200, connected: true, endpoint: Some(lan), rtt_us: 850, reason: text("") }
                .into(),
        ),
        (
            "server-register",
            proto::ServerRegister {
                name: text("tokyo"),
                capabilities: vec![text("relay"), text("stun")],
                region: text("asia"),
                public_url: text("wss://tokyo.example.com/ws/data"),
                stun_ip: vec![203, 0, 113, 7],
                stun_ip2: vec![],
                stun_port: 3478,
                version: text("0.1.0"),
                mesh_url: text(""),
            }
            .into(),
        ),
        (
            "server-node-loc",
            proto::ServerNodeLoc {
                nodes: vec![proto::NodeLocation { node_id: 100, network_id: 7, relay_ids: vec![1, 2] }],
                full: true,
            }
            .into(),
        ),
        ("server-blacklist", server_blacklist().into()),
        (
            "error",
            proto::Error {
                about_node: 200,
                ..proto::Error::new(ErrorCode::NodeOffline, 0x10, ErrorCode::NodeOffline.describe())
            }
            .into(),
        ),
    ]
    .map(|(name, message)| (name, message, Flags::NONE));
    let acked = [("config", config().into()), ("config-update", config_update().into())];
    plain.into_iter().chain(acked.map(|(name, message)| (name, message, Flags::ACK_REQUESTED))).collect()
}

fn auth_request_first() -> proto::AuthRequest {
    proto::AuthRequest {
        protocol_version: 1,
        capabilities: 1,
        machine_pub: hex::decode("8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c").unwrap(),
        host_info: Some(proto::HostInfo {
            hostname: text("alpha"),
            os: text("linux"),
            arch: text("x86_64"),
            version: text("0.1.0"),
        }),
        ..Default::default()
    }
}

fn auth_request_second() -> proto::AuthRequest {
    proto::AuthRequest {
        signature: hex::decode(
            "480ec8a5da558ec60160aa3fab1b139b390f5fb7f16b9e66100933fc03cf40c7\
             df4866a39a661802941fac0dff215707d406e4f4a8b4ea1116c919a026ae0006",
        )
        .unwrap(),
        host: text("mesh.example.com"),
        auth_key: text("elk_example"),
        ..Default::default()
    }
}

fn auth_response_identity() -> proto::AuthResponse {
    proto::AuthResponse {
        server_time_ms: 1_700_000_000_000,
        identity: Some(proto::NodeIdentity {
            node_id: 100,
            network_id: 7,
            name: text("alpha"),
            addresses: vec![vec![10, 7, 0, 1]],
        }),
        tokens: Some(proto::Tokens {
            auth_token: text("auth.jwt"),
            auth_expires: 1_700_086_400,
            relay_token: text("relay.jwt"),
            relay_expires: 1_700_003_600,
        }),
        ..Default::default()
    }
}

fn config() -> proto::Config {
    proto::Config {
        version: 3,
        network: Some(proto::Network {
            id: 7,
            name: text("home"),
            subnets: vec![proto::Prefix { address: vec![10, 7, 0, 0], length: 24 }],
        }),
        peers: vec![proto::Peer {
            node_id: 200,
            name: text("beta"),
            addresses: vec![vec![10, 7, 0, 2]],
            online: true,
            ..Default::default()
        }],
        relays: vec![proto::Relay { id: 1, name: text("built-in"), path: text("/ws/data"), ..Default::default() }],
        routes: vec![proto::Route {
            cidr: Some(proto::Prefix { address: vec![192, 168, 9, 0], length: 24 }),
            node_id: 200,
            priority: 100,
            weight: 1,
            enabled: true,
            single: false,
            down: false,
        }],
        ..Default::default()
    }
}

fn config_update() -> proto::ConfigUpdate {
    proto::ConfigUpdate {
        from_version: 3,
        version: 4,
        presence: vec![proto::Presence { node_id: 200, online: true }],
        paths: vec![proto::Path { node_id: 200, relay_id: 1, via_relay_id: 2, latency_us: 38_500 }],
        ..Default::default()
    }
}

fn server_blacklist() -> proto::ServerBlacklist {
    proto::ServerBlacklist {
        revocations: vec![
            proto::Revocation { jti: text("5f0c9d"), expires: 1_700_003_600, ..Default::default() },
            proto::Revocation {
                node_id: 200,
                issued_before: 1_700_000_000,
                expires: 1_700_086_400,
                ..Default::default()
            },
        ],
        full: false,
    }
}

#[test]
fn control_messages() {
    for (name, message, flags) in control_vectors() {
        let bytes = vector(name);
        let expected = Received {
            ty: message.ty(),
            ack_requested: flags.contains(Flags::ACK_REQUESTED),
            message: message.clone(),
        };
        assert_eq!(Reassembler::new().push(&only_frame(&bytes).unwrap()), Ok(Some(expected)), "{name}");
        assert_eq!(hex::encode(encode(&message, flags).unwrap()), hex::encode(&bytes), "{name}");
    }
}

#[test]
fn split_config() {
    let bytes = vector("config-split");
    let parts: Vec<_> = frames(&bytes).collect::<Result<_, _>>().unwrap();
    let mut reassembler = Reassembler::new();
    assert_eq!(reassembler.push(&parts[0]), Ok(None));
    let expected = Received { message: config().into(), ack_requested: true, ty: FrameType::Config };
    assert_eq!(reassembler.push(&parts[1]), Ok(Some(expected)));
    assert_eq!(parts.len(), 2);
}

#[test]
fn compressed_update() {
    let bytes = vector("config-update-compressed");
    let expected = proto::ConfigUpdate {
        from_version: 4,
        version: 4,
        presence: (1..=40).map(|node_id| proto::Presence { node_id, online: true }).collect(),
        ..Default::default()
    };
    let expected = Received { message: expected.into(), ack_requested: false, ty: FrameType::ConfigUpdate };
    assert_eq!(Reassembler::new().push(&only_frame(&bytes).unwrap()), Ok(Some(expected)));
}

#[test]
fn message_of_two_frames() {
    let bytes = vector("message-of-two");
    let mut out = Ping { sent_us: 1, seq: 1 }.encode(FrameType::Ping).to_vec();
    let ack = proto::Ack { acked_type: 3, count: 1, config_version: 3, error: text("") };
    out.extend(encode(&ack, Flags::NONE).unwrap());
    assert_eq!(out, bytes);
    let types: Vec<_> = frames(&bytes).map(|frame| frame.unwrap().frame_type().unwrap()).collect();
    assert_eq!(types, [FrameType::Ping, FrameType::Ack]);
}

#[test]
fn ping_and_pong() {
    let ping = Ping { sent_us: 1_700_000_000_000_000, seq: 7 };
    for (name, ty) in [("ping", FrameType::Ping), ("pong", FrameType::Pong)] {
        let bytes = vector(name);
        let frame = only_frame(&bytes).unwrap();
        assert_eq!(frame.frame_type(), Some(ty));
        assert_eq!(Ping::parse(frame.payload), Ok(ping));
        assert_eq!(ping.encode(ty).as_slice(), bytes);
        for len in 0..frame.payload.len() {
            assert_eq!(Ping::parse(&frame.payload[..len]), Err(WireError::BadLength(FrameType::Ping)));
        }
        assert_eq!(Ping::parse(&[0; 13]), Err(WireError::BadLength(FrameType::Ping)));
    }
}

#[test]
fn probe_plaintext() {
    let bytes = vector("probe");
    let probe = Probe { path: 3, sent_us: 1_000_000 };
    assert_eq!(probe.encode().as_slice(), bytes);
    assert_eq!(Probe::parse(&bytes), Ok(probe));
    let padded = [bytes.as_slice(), &[0; 1300]].concat();
    assert_eq!(Probe::parse(&padded), Ok(probe));
    for len in 0..bytes.len() {
        assert_eq!(Probe::parse(&bytes[..len]), Err(WireError::BadLength(FrameType::P2pPing)));
    }
}

#[test]
fn key_announce() {
    let bytes = vector("key-announce");
    let frame = only_frame(&bytes).unwrap();
    let announce = KeyAnnounce::parse(frame.payload).unwrap();
    assert_eq!((announce.src, announce.dst), (NodeId(100), NodeId(200)));
    assert_eq!(announce.statement[..20], *b"edgelink-nodekey-v1\0");
    assert_eq!(announce.statement[116..], [0, 0, 0, 1]);
    assert_eq!(hex::encode(announce.signature), hex::encode(&bytes[133..]));
    assert_eq!(announce.encode(), bytes);
    for len in 0..frame.payload.len() {
        let refused = KeyAnnounce::parse(&frame.payload[..len]);
        assert_eq!(refused, Err(WireError::BadLength(FrameType::KeyAnnounce)));
    }
    assert_eq!(KeyAnnounce::parse(&[0; 193]), Err(WireError::BadLength(FrameType::KeyAnnounce)));
}

/// The sealed vectors: name, type, ids, nonce, plaintext length.
const SEALED: [(&str, FrameType, [u32; 2], &str, usize); 3] = [
    ("data", FrameType::Data, [100, 200], "dfe26a5f0000000000000000", 28),
    ("p2p-ping", FrameType::P2pPing, [100, 200], "dfe26a5f0000000000000001", 12),
    ("p2p-pong", FrameType::P2pPong, [200, 100], "8acdc8e00000000000000000", 12),
];

#[test]
fn sealed_frames() {
    for (name, ty, [src, dst], nonce, plaintext_len) in SEALED {
        let bytes = vector(name);
        let clear =
            DataHeader { src: NodeId(src), dst: NodeId(dst), nonce: hex::decode(nonce).unwrap().try_into().unwrap() };
        assert_eq!(only_frame(&bytes).unwrap().frame_type(), Some(ty));
        assert_eq!(data::parse(&bytes), Ok(clear));
        assert_eq!(bytes.len(), data::OVERHEAD + plaintext_len);
        let mut rewritten = bytes.clone();
        rewritten[..data::PLAINTEXT_OFFSET].fill(0);
        data::write_header(&mut rewritten, ty, Flags::NONE, &clear).unwrap();
        assert_eq!(rewritten, bytes);
        for len in 0..bytes.len() {
            let refused = data::parse(&bytes[..len]);
            assert_eq!(refused, Err(if len < 5 { WireError::Truncated } else { WireError::BadLength(ty) }));
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(data::parse(&longer), Err(WireError::BadLength(ty)));
    }
}

/// Too short for a tag, though the length field is right.
#[test]
fn sealed_frame_without_a_tag_is_refused() {
    for payload_len in 0..36 {
        let mut bytes = Vec::new();
        put_frame(&mut bytes, FrameType::Data, Flags::NONE, &vec![0; payload_len]).unwrap();
        assert_eq!(data::parse(&bytes), Err(WireError::BadLength(FrameType::Data)));
    }
}

#[test]
fn keepalive() {
    let bytes = vector("p2p-keepalive");
    let keepalive = Keepalive { src: NodeId(100), seq: 5, timestamp_ms: 60_000 };
    assert_eq!(bytes.len(), 14);
    assert_eq!(keepalive.encode().as_slice(), bytes);
    assert_eq!(demux(&bytes), Ok(Datagram::Keepalive(keepalive)));
    for len in 0..bytes.len() {
        let reason = if len == 0 { Dropped::Foreign } else { Dropped::Malformed };
        assert_eq!(demux(&bytes[..len]), Err(reason));
        assert!(Keepalive::parse(&bytes[..len]).is_err());
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(demux(&longer), Err(Dropped::Malformed));
    assert_eq!(Keepalive::parse(&longer), Err(WireError::BadLength(FrameType::P2pKeepalive)));
}

#[test]
fn stun() {
    let bytes = vector("stun");
    assert_eq!(demux(&bytes), Ok(Datagram::Stun(&bytes)));
}

#[test]
fn super_packet_and_its_segments() {
    let plaintext = vector("super-packet");
    let (header, packet) = plaintext.split_at(virtio::LEN);
    let header = VirtioHeader::parse(header).unwrap();
    let expected = VirtioHeader { flags: 1, gso_type: 0x81, hdr_len: 40, gso_size: 8, csum_start: 20, csum_offset: 16 };
    assert_eq!(header, expected);
    assert_eq!(header.to_bytes(), plaintext[..virtio::LEN]);
    assert_eq!(virtio::validate(&header, packet), Ok(()));
    let mut segments = Vec::new();
    assert_eq!(virtio::segment(&header, packet, None, |segment| segments.push(hex::encode(segment))), Ok(3));
    assert_eq!(segments, ["segment-1", "segment-2", "segment-3"].map(|name| hex::encode(vector(name))));
}

/// Vectors that are no frames.
const BARE: [&str; 7] = ["probe", "stun", "p2p-keepalive", "super-packet", "segment-1", "segment-2", "segment-3"];

#[test]
fn every_frame_type_has_a_vector() {
    let mut seen = BTreeSet::from([FrameType::P2pKeepalive]);
    for (name, bytes) in vectors() {
        if !BARE.contains(&name) {
            seen.extend(frames(&bytes).map(|frame| frame.unwrap().frame_type().unwrap()));
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), FrameType::ALL);
}

#[test]
fn every_vector_is_tested_here() {
    let mut tested: BTreeSet<_> = control_vectors().into_iter().map(|(name, ..)| name).collect();
    tested.extend(BARE);
    tested.extend(SEALED.map(|(name, ..)| name));
    tested.extend(["message-of-two", "config-split", "config-update-compressed", "ping", "pong", "key-announce"]);
    assert_eq!(vectors().into_keys().collect::<BTreeSet<_>>(), tested);
}

/// Cut anywhere, the frames before the cut count and the cut itself is an error.
#[test]
fn truncation_at_every_byte() {
    for (name, bytes) in vectors() {
        if BARE.contains(&name) {
            continue;
        }
        let ends: Vec<usize> = frames(&bytes)
            .scan(0, |end, frame| {
                *end += frame.unwrap().raw.len();
                Some(*end)
            })
            .collect();
        for len in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= len).count();
            let mut iterator = frames(&bytes[..len]);
            assert!(iterator.by_ref().take(whole).all(|frame| frame.is_ok()), "{name} cut at {len}");
            let expected = match len {
                0 => Some(Err(WireError::Empty)),
                _ if ends.contains(&len) => None,
                _ => Some(Err(WireError::Truncated)),
            };
            assert_eq!(iterator.next(), expected, "{name} cut at {len}");
            assert_eq!(iterator.next(), None, "{name} cut at {len}");
        }
    }
}

/// A control payload cut anywhere, in a frame whose length says so, never panics and never gives the same message: only
/// where a field ends can Protocol Buffers not see the cut.
#[test]
fn truncated_control_payloads() {
    for (name, message, flags) in control_vectors() {
        let bytes = vector(name);
        let payload = &bytes[HEADER_LEN..];
        for len in 0..payload.len() {
            let mut cut = Vec::new();
            put_frame(&mut cut, message.ty(), flags, &payload[..len]).unwrap();
            match Reassembler::new().push(&only_frame(&cut).unwrap()) {
                Ok(received) => assert_ne!(received.unwrap().message, message, "{name} cut at {len}"),
                Err(error) => assert!(matches!(error, WireError::Protobuf { .. }), "{name} cut at {len}: {error}"),
            }
        }
    }
}
