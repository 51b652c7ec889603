//! What the networks of one daemon share, because it is the host's: addresses that never go into a tunnel, the overlays'
//! prefixes, kernel settings, the budget of probes.

use edgelink_node::{P2pConfig, ProbeBudget};
use edgelink_os::gateway::Sysctls;
use ipnet::IpNet;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// Addresses that were dialled, by the interface of the network that dialled them.
pub(crate) type Dialled = Arc<watch::Sender<BTreeMap<String, BTreeSet<IpAddr>>>>;

/// One for all networks.
pub(crate) struct Shared {
    dialled: Dialled,
    /// Overlay addresses in use, by interface.
    overlays: watch::Sender<BTreeMap<String, Vec<IpNet>>>,
    /// Kernel settings that gateways have changed.
    pub(super) sysctls: RefCell<Sysctls>,
    /// What may be sent to addresses where perhaps nobody is.
    pub(super) probes: ProbeBudget,
    /// A network has become usable, or has gone.
    pub(super) turned: Notify,
}

/// An address that a network cannot have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) address: IpNet,
    /// The prefix that is in use, and where.
    pub(super) by: (IpNet, String),
}

impl Shared {
    /// `sysctls` is the file that remembers changed kernel settings.
    pub(crate) fn new(sysctls: &Path) -> Self {
        Self {
            dialled: Arc::default(),
            overlays: watch::Sender::default(),
            sysctls: RefCell::new(Sysctls::open(sysctls)),
            probes: P2pConfig::default().budget,
            turned: Notify::new(),
        }
    }

    /// To note addresses that were dialled.
    pub(super) fn dialled(&self) -> Dialled {
        Arc::clone(&self.dialled)
    }

    /// Addresses that no network may take into its tunnel.
    pub(super) fn protected(&self) -> BTreeSet<IpAddr> {
        self.dialled.borrow().values().flatten().copied().collect()
    }

    /// The overlays' addresses, as they change.
    pub(super) fn overlays(&self) -> watch::Receiver<BTreeMap<String, Vec<IpNet>>> {
        self.overlays.subscribe()
    }

    /// Takes addresses for the network on an interface, but for those whose prefix overlaps another network's: whoever
    /// came first keeps its own.
    pub(super) fn claim(&self, interface: &str, addresses: &[IpNet]) -> (Vec<IpNet>, Vec<Taken>) {
        let (mut mine, mut taken) = (Vec::new(), Vec::new());
        for address in addresses {
            let all = self.overlays.borrow();
            let mut others = all
                .iter()
                .filter(|(other, _)| *other != interface)
                .flat_map(|(other, nets)| nets.iter().map(move |net| (net, other)));
            let overlaps = |net: &IpNet| net.contains(&address.trunc()) || address.contains(&net.trunc());
            match others.find(|(net, _)| overlaps(net)) {
                Some((net, other)) => taken.push(Taken { address: *address, by: (net.trunc(), other.clone()) }),
                None => mine.push(*address),
            }
        }
        self.overlays.send_if_modified(|all| {
            if mine.is_empty() {
                all.remove(interface).is_some()
            } else {
                all.insert(interface.to_owned(), mine.clone()).as_ref() != Some(&mine)
            }
        });
        (mine, taken)
    }

    /// Prefixes that the other networks of this daemon have.
    pub(super) fn others(&self, interface: &str) -> Vec<IpNet> {
        let all = self.overlays.borrow();
        all.iter().filter(|(other, _)| *other != interface).flat_map(|(_, nets)| nets).map(IpNet::trunc).collect()
    }

    /// Whether an interface carries one of the networks.
    pub(super) fn carries(&self, interface: &str) -> bool {
        self.overlays.borrow().contains_key(interface)
    }

    /// The network on this interface has ended.
    pub(super) fn release(&self, interface: &str) {
        self.dialled.send_if_modified(|all| all.remove(interface).is_some());
        self.overlays.send_if_modified(|all| all.remove(interface).is_some());
        self.turned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(all: &[&str]) -> Vec<IpNet> {
        all.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn who_comes_first_keeps_the_prefix_until_it_goes() {
        let shared = Shared::new(Path::new("/nonexistent"));
        let mut overlays = shared.overlays();
        let first = nets(&["10.0.1.5/24", "fd01::5/64"]);
        assert_eq!(shared.claim("a", &first), (first.clone(), Vec::new()));
        assert!(overlays.has_changed().unwrap());
        overlays.mark_unchanged();
        assert_eq!(shared.claim("a", &first).1, Vec::new(), "its own addresses do not disturb it");
        assert!(!overlays.has_changed().unwrap());

        for overlapping in ["10.0.1.9/24", "10.0.0.1/16", "10.0.1.129/25"] {
            let (mine, taken) = shared.claim("b", &nets(&[overlapping, "fd02::9/64"]));
            assert_eq!(mine, nets(&["fd02::9/64"]));
            let by = ("10.0.1.0/24".parse().unwrap(), "a".to_owned());
            assert_eq!(taken, [Taken { address: overlapping.parse().unwrap(), by }]);
        }
        assert_eq!(shared.others("a"), nets(&["fd02::/64"]));
        assert!(shared.carries("a") && shared.carries("b") && !shared.carries("c"));

        shared.release("a");
        assert!(!shared.carries("a"));
        assert_eq!(shared.claim("b", &nets(&["10.0.1.9/24"])).1, Vec::new());
    }
}
