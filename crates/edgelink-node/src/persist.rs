//! What a node keeps on disk, so that it starts while the controller is away (DESIGN §2).

use crate::{Event, Node};
use edgelink_model::Now;
use edgelink_session::trust::Pin;
use edgelink_wire::control::proto;
use prost::Message as _;
use std::fmt;

/// Everything that outlives the process, but for the machine key. It holds tokens: mode 0600.
#[derive(Clone, Default)]
pub struct PersistedState {
    /// Highest sequence number of a key statement that may have been used.
    pub seq_floor: u64,
    /// Controller's clock minus ours, ms.
    pub clock_offset_ms: i64,
    /// Machine keys and addresses of peers, as first seen.
    pub pins: Vec<Pin>,
    /// The last configuration with identity and tokens: an encoded `edgelink.v1.Config`.
    pub config: Option<Vec<u8>>,
}

/// Without the configuration, which holds tokens.
impl fmt::Debug for PersistedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistedState")
            .field("seq_floor", &self.seq_floor)
            .field("clock_offset_ms", &self.clock_offset_ms)
            .field("pins", &self.pins)
            .field("config_len", &self.config.as_ref().map(Vec::len))
            .finish()
    }
}

impl Node {
    pub(crate) fn persist(&mut self) {
        let state = PersistedState {
            seq_floor: self.seq_floor,
            clock_offset_ms: self.clock_offset_ms,
            pins: self.pins.export(),
            config: self.identity.is_some().then(|| self.latest.encode_to_vec()),
        };
        self.events.push_back(Event::Persist(Box::new(state)));
    }

    /// Starts from a remembered configuration. One that cannot be used is dropped: the controller has a new one.
    pub(crate) fn restore(&mut self, remembered: &[u8], now: Now, rng: &mut impl rand_core::Rng) {
        let config = match proto::Config::decode(remembered) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(%error, "the remembered configuration is unreadable; waiting for the controller");
                return;
            }
        };
        let Some(identity) = config.identity.as_ref().and_then(crate::control::identity) else { return };
        self.latest.identity = config.identity.clone();
        self.latest.tokens = config.tokens.clone();
        self.set_identity(identity, now, rng);
        if let Err(error) = self.apply_config(config, now, rng) {
            tracing::warn!(error, "the remembered configuration cannot be used; waiting for the controller");
        }
    }
}
