//! One relay, a clock that the test moves, and nodes that speak to it in bytes.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use bytes::Bytes;
use edgelink_auth::token::{Issuer, RelayClaims, TokenKeys};
use edgelink_auth::{MachineKey, challenge};
use edgelink_model::records::{RevocationRecord, RevocationTarget};
use edgelink_model::{ErrorCode, NetworkId, NodeId, Now, ServerId};
use edgelink_relay::{CloseReason, ConnId, Limits, Relay, RelayConfig, RelayEvent};
use edgelink_wire::control::{self, proto};
use edgelink_wire::data::{self, DataHeader};
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, FrameType, frames};
use prost::Message;
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub const RELAY: ServerId = ServerId(9);
/// Unix seconds at the start of each test.
pub const T0: u64 = 1_700_000_000;
/// Lifetime of tokens made by [`World::token`].
pub const LIFE: u64 = 5_400;
pub const REMOTE: [u8; 4] = [198, 51, 100, 7];

pub struct World {
    pub relay: Relay,
    pub now: Now,
    pub rng: ChaCha12Rng,
    pub issuer: Issuer,
}

/// A frame that the relay sent, decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Sent {
    Challenge([u8; 32]),
    Welcome { observed_ip: Vec<u8> },
    Error { code: ErrorCode, answers: u8, about: u32 },
    Pong(Ping),
    Forwarded(Vec<u8>),
}

impl World {
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub fn with_limits(limits: Limits) -> Self {
        Self::with_config(RelayConfig { limits, ..RelayConfig::new(RELAY) })
    }

    #[expect(clippy::disallowed_methods, reason = "any origin will do; tests only look at differences")]
    pub fn with_config(config: RelayConfig) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(42);
        let issuer = Issuer::new(&TokenKeys::generate(&mut rng));
        let verifier = issuer.relay_verifier().unwrap();
        let now = Now { mono: Instant::now(), unix_ms: T0 * 1_000 };
        Self { relay: Relay::new(config, verifier), now, rng, issuer }
    }

    pub fn claims(&self, node: u32, network: u32) -> RelayClaims {
        let now = self.now.unix_secs();
        RelayClaims::new(
            NodeId(node),
            &machine(node).public(),
            NetworkId(network),
            vec![ServerId(1), RELAY],
            now,
            now + LIFE,
            format!("jti-{node}-{now}"),
        )
    }

    pub fn token(&self, node: u32, network: u32) -> String {
        self.issuer.relay(&self.claims(node, network)).unwrap()
    }

    pub fn connect(&mut self) -> ConnId {
        self.relay.connect(Some(IpAddr::from(REMOTE)), self.now, &mut self.rng).unwrap()
    }

    /// Connects and authenticates; what the relay said and reported is checked and taken.
    pub fn join(&mut self, node: u32, network: u32) -> ConnId {
        let token = self.token(node, network);
        let conn = self.connect();
        let challenge = self.offer(conn, node, &token);
        self.say(conn, &prove(node, &token, &challenge));
        assert_eq!(self.take(conn), [Sent::Welcome { observed_ip: REMOTE.to_vec() }]);
        assert!(
            self.events().iter().any(|event| matches!(event, RelayEvent::NodeConnected { conn: c, .. } if *c == conn))
        );
        conn
    }

    /// Shows the token and takes the challenge.
    pub fn offer(&mut self, conn: ConnId, node: u32, token: &str) -> [u8; 32] {
        self.say(conn, &offer(node, token));
        match self.take(conn)[..] {
            [Sent::Challenge(challenge)] => challenge,
            ref other => panic!("no challenge but {other:?}"),
        }
    }

    pub fn say(&mut self, conn: ConnId, message: &[u8]) {
        self.relay.handle_message(conn, Bytes::copy_from_slice(message), self.now);
    }

    /// Everything queued for a connection, frame by frame.
    pub fn take(&mut self, conn: ConnId) -> Vec<Sent> {
        let mut out = Vec::new();
        while self.relay.poll_transmit(conn, 1 << 16, self.now, &mut out) > 0 {}
        out.iter().flat_map(|run| frames(run).map(|frame| sent(&frame.unwrap())).collect::<Vec<_>>()).collect()
    }

    /// The same, when only forwarded frames are expected.
    pub fn forwarded(&mut self, conn: ConnId) -> Vec<Vec<u8>> {
        let take = |sent| match sent {
            Sent::Forwarded(frame) => frame,
            other => panic!("{other:?} was not forwarded"),
        };
        self.take(conn).into_iter().map(take).collect()
    }

    pub fn events(&mut self) -> Vec<RelayEvent> {
        std::iter::from_fn(|| self.relay.poll_event()).collect()
    }

    /// The one reason for which `conn` is to be closed, and whether to flush; everything else that was reported is let
    /// pass.
    pub fn closed(&mut self, conn: ConnId) -> Option<(CloseReason, bool)> {
        let mut closes = self.events().into_iter().filter_map(|event| match event {
            RelayEvent::Close { conn: c, reason, flush } if c == conn => Some((reason, flush)),
            _ => None,
        });
        let close = closes.next();
        assert_eq!(closes.next(), None, "closed twice");
        close
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.relay.handle_timeout(self.now);
    }

    pub fn ms(&mut self, ms: u64) {
        self.pass(Duration::from_millis(ms));
    }
}

pub fn machine(node: u32) -> MachineKey {
    let mut seed = [1; 32];
    seed[..4].copy_from_slice(&node.to_be_bytes());
    MachineKey::from_seed(seed)
}

pub fn offer(node: u32, token: &str) -> Vec<u8> {
    auth(proto::AuthRequest {
        protocol_version: 1,
        machine_pub: machine(node).public().0.to_vec(),
        token: token.to_owned(),
        ..Default::default()
    })
}

pub fn prove(node: u32, token: &str, nonce: &[u8; 32]) -> Vec<u8> {
    signed(machine(node).sign(&challenge::relay_message(RELAY, token, nonce)).to_vec())
}

pub fn signed(signature: Vec<u8>) -> Vec<u8> {
    auth(proto::AuthRequest { signature, ..Default::default() })
}

pub fn auth(request: proto::AuthRequest) -> Vec<u8> {
    control::encode(&request, Flags::NONE).unwrap()
}

pub fn frame(ty: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![1, ty, 0];
    frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(payload);
    frame
}

/// A sealed frame whose ciphertext is `len` bytes of `mark`.
pub fn sealed(ty: FrameType, src: u32, dst: u32, mark: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![mark; data::OVERHEAD + len];
    let clear = DataHeader { src: NodeId(src), dst: NodeId(dst), nonce: [mark; 12] };
    data::write_header(&mut frame, ty, Flags::NONE, &clear).unwrap();
    frame
}

pub fn data(src: u32, dst: u32, mark: u8) -> Vec<u8> {
    sealed(FrameType::Data, src, dst, mark, 100)
}

pub fn announce(src: u32, dst: u32, mark: u8) -> Vec<u8> {
    KeyAnnounce { src: NodeId(src), dst: NodeId(dst), statement: [mark; 120], signature: [mark; 64] }.encode()
}

pub fn error(code: ErrorCode, answers: u8, about: u32) -> Sent {
    Sent::Error { code, answers, about }
}

pub fn revoke_jti(jti: &str) -> RevocationRecord {
    RevocationRecord { id: jti.to_owned(), target: RevocationTarget::Jti(jti.to_owned()), expires_at: T0 + 200_000 }
}

pub fn revoke_node(node: u32, issued_before: u64) -> RevocationRecord {
    let target = RevocationTarget::Node { node_id: NodeId(node), issued_before };
    RevocationRecord { id: format!("node-{node}"), target, expires_at: T0 + 200_000 }
}

pub fn sent(frame: &edgelink_wire::Frame<'_>) -> Sent {
    match frame.frame_type().unwrap() {
        FrameType::AuthResponse => {
            let response = proto::AuthResponse::decode(frame.payload).unwrap();
            assert_eq!(response.server_id, RELAY.0);
            assert!(response.server_time_ms >= T0 * 1_000);
            match response.challenge.try_into() {
                Ok(challenge) => Sent::Challenge(challenge),
                Err(none) => {
                    assert!(Vec::is_empty(&none));
                    Sent::Welcome { observed_ip: response.observed_ip }
                }
            }
        }
        FrameType::Error => {
            let error = proto::Error::decode(frame.payload).unwrap();
            assert!(!error.message.is_empty());
            let answers = error.answers_type.try_into().unwrap();
            Sent::Error { code: error.error_code().unwrap(), answers, about: error.about_node }
        }
        FrameType::Pong => Sent::Pong(Ping::parse(frame.payload).unwrap()),
        _ => Sent::Forwarded(frame.raw.to_vec()),
    }
}
pub mod mesh;
