//! Nodes for tests of the public API; keys follow from a node's id and the sequence number.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test code")]

use edgelink_auth::{KeyStatement, MachineKey, NodeKey, SignedStatement};
use edgelink_model::{NetworkId, NodeId};
use edgelink_session::{OpenError, SessionConfig, SessionTable};
use edgelink_wire::{Flags, FrameType, data};
use std::time::{Duration, Instant};

pub(crate) const NETWORK: NetworkId = NetworkId(7);
/// Of every statement.
pub(crate) const LIFETIME: Duration = Duration::from_secs(4_000);

#[expect(clippy::disallowed_methods, reason = "tests need some instant to begin with; only differences matter")]
pub(crate) fn epoch() -> Instant {
    Instant::now()
}

pub(crate) struct Side {
    pub(crate) id: NodeId,
    pub(crate) machine_seed: [u8; 32],
    pub(crate) seq: u64,
    pub(crate) table: SessionTable,
}

impl Side {
    pub(crate) fn new(id: NodeId, now: Instant) -> Self {
        let mut side = Self { id, machine_seed: [id.0 as u8; 32], seq: 0, table: Self::table(id) };
        side.rotate(now);
        side
    }

    /// A new process: nothing in memory, a new key.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.table = Self::table(self.id);
        self.rotate(now);
    }

    fn table(id: NodeId) -> SessionTable {
        SessionTable::new(SessionConfig { network_id: NETWORK, node_id: id, psk: None, window: 8_192 })
    }

    pub(crate) fn rotate(&mut self, now: Instant) {
        self.seq += 1;
        let (key, signed) = self.key(self.seq);
        self.table.set_local(key, signed, now).unwrap();
    }

    pub(crate) fn node_private(&self, seq: u64) -> [u8; 32] {
        let mut private = [0x11; 32];
        private[..4].copy_from_slice(&self.id.0.to_be_bytes());
        private[4..12].copy_from_slice(&seq.to_be_bytes());
        private
    }

    pub(crate) fn key(&self, seq: u64) -> (NodeKey, SignedStatement) {
        let machine = MachineKey::from_seed(self.machine_seed);
        let key = NodeKey::from_bytes(self.node_private(seq));
        let statement = KeyStatement {
            network_id: NETWORK,
            node_id: self.id,
            machine_pub: machine.public(),
            node_pub: key.public(),
            seq,
            not_before: 1_700_000_000,
            not_after: 1_700_000_000 + LIFETIME.as_secs(),
            // Generations differ in what they announce: both ciphers, and every mixture of wills.
            capabilities: if seq.is_multiple_of(3) { 1 } else { 3 },
        };
        let signed = SignedStatement::sign(statement, &machine).unwrap();
        (key, signed)
    }

    pub(crate) fn seal(&mut self, to: NodeId, ty: FrameType, flags: Flags, text: &[u8]) -> Vec<u8> {
        let mut frame = [&[0; data::PLAINTEXT_OFFSET], text, &[0; data::TAG_LEN]].concat();
        self.table.sealer(to).unwrap().seal(ty, flags, &mut frame).unwrap();
        frame
    }

    pub(crate) fn open(&mut self, frame: &[u8], now: Instant) -> Result<Vec<u8>, OpenError> {
        let mut frame = frame.to_vec();
        self.table.open(&mut frame, now).map(|opened| opened.plaintext.to_vec())
    }
}
