//! Whom to believe about a peer's machine key (DESIGN §2): trust on first use, the controller, or a list.
//!
//! A pin ties a node to its machine key and overlay addresses. Only the controller's CONFIG makes pins; announces over
//! relays or UDP must match one. What does not match is refused and remembered, so that a person can look at it and
//! accept it; the living session goes on meanwhile. So a controller that was taken over cannot put itself between two
//! nodes that know each other.

use edgelink_auth::MachinePublic;
use edgelink_model::{NetworkId, NodeId};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Whom to believe.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The first machine key that the controller tells for a node or an address is kept.
    #[default]
    Tofu,
    /// Whatever the controller says now.
    Controller,
    /// As `Tofu`, but only machine keys with these fingerprints ([`MachinePublic::fingerprint`]).
    Pinned(Vec<String>),
}

/// What is known of a node. Plain data: it is kept on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The network.
    pub network_id: NetworkId,
    /// The node.
    pub node_id: NodeId,
    /// Its machine key.
    pub machine_pub: MachinePublic,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
}

/// Why a machine key is not believed. The shell adds how to accept it ([`PinStore::accept`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The node had another machine key.
    #[error(
        "node {node}'s machine key has changed from {pinned} to {offered}; it stays refused until someone accepts it"
    )]
    MachineKeyChanged {
        /// The node.
        node: NodeId,
        /// Fingerprint of the key that is pinned.
        pinned: String,
        /// Fingerprint of the key that was offered.
        offered: String,
    },
    /// The address belonged to another machine key.
    #[error("node {node} claims {address} of node {owner} ({pinned}); it stays refused until someone accepts it")]
    AddressMoved {
        /// The node that claims it.
        node: NodeId,
        /// The address.
        address: IpAddr,
        /// The node that has it.
        owner: NodeId,
        /// Fingerprint of the owner's key.
        pinned: String,
    },
    /// The machine key is not in the list of `trust`.
    #[error("node {node}'s machine key {offered} is not in `trust.pinned`; add it there to talk with the node")]
    NotListed {
        /// The node.
        node: NodeId,
        /// Fingerprint of the key that was offered.
        offered: String,
    },
    /// An announce from a node that no CONFIG has told of.
    #[error("node {node} is not pinned; only the controller can introduce it")]
    NotPinned {
        /// The node.
        node: NodeId,
    },
}

/// The pins of one node, and what was refused.
#[derive(Debug)]
pub struct PinStore {
    trust: Trust,
    pins: HashMap<(NetworkId, NodeId), Pin>,
    /// Whose each address is.
    owners: HashMap<(NetworkId, IpAddr), NodeId>,
    refused: BTreeMap<(NetworkId, NodeId), (Pin, Refusal)>,
}

impl PinStore {
    /// A store with the pins that were kept on disk.
    pub fn import(trust: Trust, pins: impl IntoIterator<Item = Pin>) -> Self {
        let mut this = Self { trust, pins: HashMap::new(), owners: HashMap::new(), refused: BTreeMap::new() };
        pins.into_iter().for_each(|pin| this.put(pin));
        this
    }

    /// All pins, by network and node.
    pub fn export(&self) -> Vec<Pin> {
        let mut pins: Vec<_> = self.pins.values().cloned().collect();
        pins.sort_by_key(|pin| (pin.network_id, pin.node_id));
        pins
    }

    /// Checks what the controller's CONFIG says of a node, and pins it when it is new.
    ///
    /// # Errors
    /// [`Refusal`]; the pin stays as it was.
    pub fn check_config(
        &mut self,
        network_id: NetworkId,
        node_id: NodeId,
        machine_pub: &MachinePublic,
        addresses: &[IpAddr],
    ) -> Result<(), Refusal> {
        let offered = Pin { network_id, node_id, machine_pub: *machine_pub, addresses: addresses.to_vec() };
        let key = (network_id, node_id);
        match self.refusal(&offered) {
            None => {
                self.refused.remove(&key);
                if self.pins.get(&key) != Some(&offered) {
                    self.put(offered);
                }
                Ok(())
            }
            Some(refusal) => {
                self.refused.insert(key, (offered, refusal.clone()));
                Err(refusal)
            }
        }
    }

    /// Checks the machine key of a statement that came from the node itself, over a relay or UDP. It never pins.
    ///
    /// # Errors
    /// [`Refusal::NotPinned`], [`Refusal::MachineKeyChanged`], [`Refusal::NotListed`].
    pub fn check_announce(
        &self,
        network_id: NetworkId,
        node_id: NodeId,
        machine_pub: &MachinePublic,
    ) -> Result<(), Refusal> {
        let pin = self.pins.get(&(network_id, node_id)).ok_or(Refusal::NotPinned { node: node_id })?;
        if pin.machine_pub != *machine_pub {
            return Err(changed(pin, machine_pub));
        }
        self.check_listed(node_id, machine_pub)
    }

    /// A person has looked at what was refused of a node, and believes it: it is pinned, and the pins that it
    /// contradicted give way. Returns `false` when nothing was refused, or when the key is not in the list of `trust`.
    pub fn accept(&mut self, network_id: NetworkId, node_id: NodeId) -> bool {
        let key = (network_id, node_id);
        let Some((offered, _)) = self.refused.get(&key) else { return false };
        if self.check_listed(node_id, &offered.machine_pub).is_err() {
            return false;
        }
        if let Some((offered, _)) = self.refused.remove(&key) {
            self.put(offered);
        }
        true
    }

    /// What was refused and is not accepted, by network and node.
    pub fn refusals(&self) -> impl Iterator<Item = (NetworkId, NodeId, &Refusal)> {
        self.refused.iter().map(|((network, node), (_, refusal))| (*network, *node, refusal))
    }

    /// The pin of a node.
    pub fn pin(&self, network_id: NetworkId, node_id: NodeId) -> Option<&Pin> {
        self.pins.get(&(network_id, node_id))
    }

    fn refusal(&self, offered: &Pin) -> Option<Refusal> {
        if let Err(refusal) = self.check_listed(offered.node_id, &offered.machine_pub) {
            return Some(refusal);
        }
        if self.trust == Trust::Controller {
            return None;
        }
        let pin = self.pins.get(&(offered.network_id, offered.node_id));
        if let Some(pin) = pin.filter(|pin| pin.machine_pub != offered.machine_pub) {
            return Some(changed(pin, &offered.machine_pub));
        }
        offered.addresses.iter().find_map(|address| {
            let owner = self.owners.get(&(offered.network_id, *address))?;
            let pin = self.pins.get(&(offered.network_id, *owner))?;
            (pin.machine_pub != offered.machine_pub).then(|| Refusal::AddressMoved {
                node: offered.node_id,
                address: *address,
                owner: *owner,
                pinned: pin.machine_pub.fingerprint(),
            })
        })
    }

    fn check_listed(&self, node: NodeId, machine_pub: &MachinePublic) -> Result<(), Refusal> {
        match &self.trust {
            Trust::Pinned(list) if !list.contains(&machine_pub.fingerprint()) => {
                Err(Refusal::NotListed { node, offered: machine_pub.fingerprint() })
            }
            _ => Ok(()),
        }
    }

    /// Pins, and takes the addresses from whoever has them.
    fn put(&mut self, pin: Pin) {
        let (network, node) = (pin.network_id, pin.node_id);
        if let Some(former) = self.pins.get(&(network, node)) {
            for address in &former.addresses {
                if self.owners.get(&(network, *address)) == Some(&node) {
                    self.owners.remove(&(network, *address));
                }
            }
        }
        for address in &pin.addresses {
            if let Some(owner) = self.owners.insert((network, *address), node)
                && owner != node
                && let Some(loser) = self.pins.get_mut(&(network, owner))
            {
                loser.addresses.retain(|had| had != address);
            }
        }
        self.pins.insert((network, node), pin);
    }
}

fn changed(pin: &Pin, offered: &MachinePublic) -> Refusal {
    Refusal::MachineKeyChanged {
        node: pin.node_id,
        pinned: pin.machine_pub.fingerprint(),
        offered: offered.fingerprint(),
    }
}
