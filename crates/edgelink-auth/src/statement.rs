//! Key statements: "until then, this node key is mine", signed by the machine key (DESIGN §2).

use crate::{BadSignature, MachineKey, MachinePublic};
use edgelink_model::{ErrorCode, NetworkId, NodeId};
use std::fmt;

/// The 20 bytes that every statement begins with.
pub const DOMAIN: &[u8; 20] = b"edgelink-nodekey-v1\0";
/// Length of an encoded statement.
pub const STATEMENT_LEN: usize = 120;
/// Length of its signature.
pub const SIGNATURE_LEN: usize = 64;
/// The longest a statement may be valid: the longest rotation period (7 days) and an hour, in seconds.
pub const MAX_LIFETIME_SECS: u64 = 7 * 86_400 + 3_600;
/// How far a statement's times may be off the verifier's idea of the controller's clock, in seconds.
pub const LEEWAY_SECS: u64 = 60;

/// What a node says of its current key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStatement {
    /// The network that it is said in.
    pub network_id: NetworkId,
    /// The node.
    pub node_id: NodeId,
    /// The key that signs.
    pub machine_pub: MachinePublic,
    /// X25519 public key.
    pub node_pub: [u8; 32],
    /// Only rises; see [`next_seq`].
    pub seq: u64,
    /// Unix seconds by the controller's clock.
    pub not_before: u64,
    /// Unix seconds by the controller's clock; rotation period plus one hour after `not_before`.
    pub not_after: u64,
    /// Bits of [`edgelink_model::capabilities`]; unknown ones are carried and ignored.
    pub capabilities: u32,
}

impl KeyStatement {
    /// The 120 bytes that are signed, all numbers big-endian.
    pub fn encode(&self) -> [u8; STATEMENT_LEN] {
        let mut out = [0; STATEMENT_LEN];
        let mut rest = out.as_mut_slice();
        for field in [
            DOMAIN.as_slice(),
            &self.network_id.0.to_be_bytes(),
            &self.node_id.0.to_be_bytes(),
            &self.machine_pub.0,
            &self.node_pub,
            &self.seq.to_be_bytes(),
            &self.not_before.to_be_bytes(),
            &self.not_after.to_be_bytes(),
            &self.capabilities.to_be_bytes(),
        ] {
            let (here, after) = rest.split_at_mut(field.len());
            here.copy_from_slice(field);
            rest = after;
        }
        out
    }

    /// Reads a statement without verifying anything but its form; [`SignedStatement::verify`] is what peers use.
    ///
    /// # Errors
    /// [`StatementError::Malformed`] unless it is 120 bytes that begin with [`DOMAIN`].
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        fn split(bytes: &[u8]) -> Option<KeyStatement> {
            let rest = bytes.strip_prefix(DOMAIN)?;
            let (network_id, rest) = rest.split_first_chunk()?;
            let (node_id, rest) = rest.split_first_chunk()?;
            let (machine_pub, rest) = rest.split_first_chunk()?;
            let (node_pub, rest) = rest.split_first_chunk()?;
            let (seq, rest) = rest.split_first_chunk()?;
            let (not_before, rest) = rest.split_first_chunk()?;
            let (not_after, rest) = rest.split_first_chunk()?;
            let (capabilities, rest) = rest.split_first_chunk()?;
            rest.is_empty().then(|| KeyStatement {
                network_id: NetworkId(u32::from_be_bytes(*network_id)),
                node_id: NodeId(u32::from_be_bytes(*node_id)),
                machine_pub: MachinePublic(*machine_pub),
                node_pub: *node_pub,
                seq: u64::from_be_bytes(*seq),
                not_before: u64::from_be_bytes(*not_before),
                not_after: u64::from_be_bytes(*not_after),
                capabilities: u32::from_be_bytes(*capabilities),
            })
        }
        split(bytes).ok_or(StatementError::Malformed)
    }

    /// Whether the statement is valid at `now_unix` (seconds by the controller's clock), give or take [`LEEWAY_SECS`].
    ///
    /// # Errors
    /// [`StatementError::NotYetValid`], [`StatementError::Expired`].
    pub fn check_time(&self, now_unix: u64) -> Result<(), StatementError> {
        if self.not_before > now_unix.saturating_add(LEEWAY_SECS) {
            return Err(StatementError::NotYetValid);
        }
        if now_unix >= self.not_after.saturating_add(LEEWAY_SECS) {
            return Err(StatementError::Expired);
        }
        Ok(())
    }

    fn check_form(&self) -> Result<(), StatementError> {
        if self.node_id == NodeId::CONTROLLER {
            return Err(StatementError::Malformed);
        }
        match self.not_after.checked_sub(self.not_before) {
            Some(1..=MAX_LIFETIME_SECS) => Ok(()),
            _ => Err(StatementError::Lifetime),
        }
    }
}

/// The sequence number of a new statement: above every number used before (`last`, kept on disk) and never below the
/// Unix time in ms, so that a lost file does not make a node's new statements look old.
pub fn next_seq(last: u64, unix_ms: u64) -> u64 {
    last.saturating_add(1).max(unix_ms)
}

/// A statement whose form, lifetime and signature are good: the type is the proof. Who may say it, and when, is for
/// the receiver to check ([`KeyStatement::check_time`], and the session crate's `trust`).
#[derive(Clone, PartialEq, Eq)]
pub struct SignedStatement {
    statement: KeyStatement,
    bytes: [u8; STATEMENT_LEN],
    signature: [u8; SIGNATURE_LEN],
    hash: [u8; 32],
}

impl SignedStatement {
    /// Signs a statement.
    ///
    /// # Errors
    /// What [`SignedStatement::verify`] would refuse: another machine key's statement
    /// ([`StatementError::BadSignature`]), an impossible lifetime, node 0.
    pub fn sign(statement: KeyStatement, key: &MachineKey) -> Result<Self, StatementError> {
        statement.check_form()?;
        if statement.machine_pub != key.public() {
            return Err(StatementError::BadSignature);
        }
        let bytes = statement.encode();
        Ok(Self { signature: key.sign(&bytes), hash: crate::sha256(&bytes), statement, bytes })
    }

    /// Verifies a statement as it came from the wire, the cheap checks first.
    ///
    /// # Errors
    /// [`StatementError::Malformed`], [`StatementError::Lifetime`], [`StatementError::BadSignature`].
    pub fn verify(bytes: &[u8], signature: &[u8]) -> Result<Self, StatementError> {
        let statement = KeyStatement::parse(bytes)?;
        statement.check_form()?;
        let bytes: [u8; STATEMENT_LEN] = bytes.try_into().map_err(|_| StatementError::Malformed)?;
        let signature: [u8; SIGNATURE_LEN] = signature.try_into().map_err(|_| StatementError::BadSignature)?;
        statement.machine_pub.verify(&bytes, &signature)?;
        Ok(Self { hash: crate::sha256(&bytes), statement, bytes, signature })
    }

    /// What is said.
    pub fn statement(&self) -> &KeyStatement {
        &self.statement
    }

    /// The 120 bytes that were signed.
    pub fn bytes(&self) -> &[u8; STATEMENT_LEN] {
        &self.bytes
    }

    /// Ed25519 signature over [`SignedStatement::bytes`].
    pub fn signature(&self) -> &[u8; SIGNATURE_LEN] {
        &self.signature
    }

    /// SHA-256 of [`SignedStatement::bytes`], without the signature: it names the statement and enters the session keys.
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }
}

impl fmt::Debug for SignedStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SignedStatement").field(&self.statement).finish()
    }
}

/// Why a statement is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Not 120 bytes of a statement, or node 0.
    #[error("the key statement is malformed")]
    Malformed,
    /// It ends before it begins, or lasts longer than [`MAX_LIFETIME_SECS`].
    #[error("the key statement's lifetime is impossible")]
    Lifetime,
    /// The machine key that it names did not sign it.
    #[error("the key statement's signature does not verify")]
    BadSignature,
    /// Its time has not come.
    #[error("the key statement is not valid yet; is a clock wrong?")]
    NotYetValid,
    /// Its time is over.
    #[error("the key statement has expired")]
    Expired,
}

impl StatementError {
    /// The code for an ERROR frame (specification §8.4).
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Malformed => ErrorCode::InvalidMessage,
            Self::BadSignature => ErrorCode::BadSignature,
            Self::Lifetime | Self::NotYetValid | Self::Expired => ErrorCode::InvalidMachineKey,
        }
    }
}

impl From<BadSignature> for StatementError {
    fn from(_: BadSignature) -> Self {
        Self::BadSignature
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(key: &MachineKey) -> KeyStatement {
        KeyStatement {
            network_id: NetworkId(7),
            node_id: NodeId(100),
            machine_pub: key.public(),
            node_pub: [0x55; 32],
            seq: 1,
            not_before: 1_700_000_000,
            not_after: 1_700_090_000,
            capabilities: 1,
        }
    }

    #[test]
    fn a_changed_byte_or_a_missing_one_is_refused() {
        let key = MachineKey::from_seed([1; 32]);
        let good = SignedStatement::sign(sample(&key), &key).unwrap();
        assert_eq!(SignedStatement::verify(good.bytes(), good.signature()), Ok(good.clone()));
        for bit in 0..STATEMENT_LEN * 8 {
            let mut bad = *good.bytes();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SignedStatement::verify(&bad, good.signature()).is_err(), "bit {bit}");
        }
        for len in 0..STATEMENT_LEN {
            assert_eq!(SignedStatement::verify(&good.bytes()[..len], good.signature()), Err(StatementError::Malformed));
        }
        for len in 0..SIGNATURE_LEN {
            let cut = &good.signature()[..len];
            assert_eq!(SignedStatement::verify(good.bytes(), cut), Err(StatementError::BadSignature));
        }
        let long = [good.bytes().as_slice(), &[0]].concat();
        assert_eq!(SignedStatement::verify(&long, good.signature()), Err(StatementError::Malformed));
    }

    #[test]
    fn only_the_named_machine_can_sign() {
        let (key, other) = (MachineKey::from_seed([1; 32]), MachineKey::from_seed([2; 32]));
        assert_eq!(SignedStatement::sign(sample(&key), &other), Err(StatementError::BadSignature));
        let bytes = sample(&key).encode();
        assert_eq!(SignedStatement::verify(&bytes, &other.sign(&bytes)), Err(StatementError::BadSignature));
    }

    #[test]
    fn impossible_lifetimes_are_refused_though_signed() {
        let key = MachineKey::from_seed([1; 32]);
        let with = |not_before, not_after| {
            let statement = KeyStatement { not_before, not_after, ..sample(&key) };
            let bytes = statement.encode();
            assert_eq!(
                SignedStatement::sign(statement, &key).map(|_| ()),
                SignedStatement::verify(&bytes, &key.sign(&bytes)).map(|_| ())
            );
            SignedStatement::verify(&bytes, &key.sign(&bytes)).map(|_| ())
        };
        assert_eq!(with(5, 5), Err(StatementError::Lifetime));
        assert_eq!(with(6, 5), Err(StatementError::Lifetime));
        assert_eq!(with(5, 6), Ok(()));
        assert_eq!(with(0, MAX_LIFETIME_SECS), Ok(()));
        assert_eq!(with(0, MAX_LIFETIME_SECS + 1), Err(StatementError::Lifetime));
        assert_eq!(with(0, u64::MAX), Err(StatementError::Lifetime));
    }

    #[test]
    fn the_controller_has_no_node_key() {
        let key = MachineKey::from_seed([1; 32]);
        let statement = KeyStatement { node_id: NodeId::CONTROLLER, ..sample(&key) };
        assert_eq!(SignedStatement::sign(statement, &key), Err(StatementError::Malformed));
    }

    #[test]
    fn time_is_checked_with_a_minute_of_leeway() {
        let statement = sample(&MachineKey::from_seed([1; 32]));
        assert_eq!(statement.check_time(1_699_999_939), Err(StatementError::NotYetValid));
        assert_eq!(statement.check_time(1_699_999_940), Ok(()));
        assert_eq!(statement.check_time(1_700_090_059), Ok(()));
        assert_eq!(statement.check_time(1_700_090_060), Err(StatementError::Expired));
        let forever = KeyStatement { not_before: 0, not_after: u64::MAX, ..statement };
        assert_eq!(forever.check_time(u64::MAX - 1), Ok(()));
    }

    #[test]
    fn seq_rises_and_keeps_up_with_the_clock() {
        assert_eq!(next_seq(0, 1_700_000_000_000), 1_700_000_000_000);
        assert_eq!(next_seq(1_700_000_000_000, 1_700_000_000_000), 1_700_000_000_001);
        assert_eq!(next_seq(1_800_000_000_000, 1_700_000_000_000), 1_800_000_000_001);
        assert_eq!(next_seq(u64::MAX, 5), u64::MAX);
    }

    proptest! {
        #[test]
        fn encode_and_parse_are_inverse(
            network: u32, node: u32, machine: [u8; 32], node_pub: [u8; 32], seq: u64, from: u64, to: u64, capabilities: u32
        ) {
            let statement = KeyStatement {
                network_id: NetworkId(network),
                node_id: NodeId(node),
                machine_pub: MachinePublic(machine),
                node_pub,
                seq,
                not_before: from,
                not_after: to,
                capabilities,
            };
            prop_assert_eq!(KeyStatement::parse(&statement.encode()), Ok(statement));
        }

        #[test]
        fn parse_never_panics(bytes: Vec<u8>, signature: Vec<u8>) {
            let _ = SignedStatement::verify(&bytes, &signature);
        }
    }
}
