//! Subnet routes and the choice among their gateways (specification §7.2 with its order put right, DESIGN §7).
//!
//! Pure data: who is usable is told from outside ([`RouteTable::set_health`]).

use super::flow::{Choice, Flow, Flows};
use edgelink_model::{NodeId, cidr};
use ipnet::IpNet;
use prefix_trie::joint::map::JointPrefixMap;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What is known of a gateway's liveness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    /// Flows may take it.
    #[default]
    Up,
    /// It has recovered lately: flows take it when there is nobody else.
    Held,
    /// Offline, or no path answers.
    Down,
}

/// Why a route is not used here. The texts are part of `status` (DESIGN §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Skip {
    /// This host is directly connected to the network.
    Local,
    /// This node serves the prefix itself.
    Own,
    /// `accept_routes` is off.
    NotAccepted,
    /// `routes.deny` names it.
    Denied,
}

impl Skip {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Own => "own",
            Self::NotAccepted => "not accepted",
            Self::Denied => "denied",
        }
    }
}

/// One gateway of one prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gateway {
    pub(crate) node: NodeId,
    pub(crate) priority: u16,
    pub(crate) weight: u16,
    /// Without SNAT: one gateway of the prefix at a time.
    pub(crate) single: bool,
    /// It says that its side of the subnet is dead.
    pub(crate) dead: bool,
    /// Its side answers again since a moment.
    pub(crate) held: bool,
    /// `routes.prefer` names it: before all others, whatever their priority.
    pub(crate) preferred: bool,
    /// `routes.deny` names it.
    pub(crate) denied: bool,
    pub(crate) health: Health,
}

/// How much is asked of a gateway: the first level at which any gateway passes is the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// Up, and not just recovered.
    Settled,
    /// Up.
    Usable,
    /// Nobody is up: what is sent shows who comes back first.
    Any,
}

impl Gateway {
    fn passes(&self, level: Level) -> bool {
        !self.denied
            && match level {
                Level::Settled => self.health == Health::Up && !self.dead && !self.held,
                Level::Usable => self.health != Health::Down && !self.dead,
                Level::Any => true,
            }
    }

    fn rank(&self) -> (bool, u16) {
        (self.preferred, self.priority)
    }
}

/// One prefix with its gateways.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prefix {
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) skip: Option<Skip>,
}

impl Prefix {
    fn offers(&self, level: Level) -> bool {
        self.skip.is_none() && self.gateways.iter().any(|gateway| gateway.passes(level))
    }

    /// The gateways of the highest priority among those that pass.
    fn best(&self, level: Level) -> impl Iterator<Item = &Gateway> {
        let passing = move || self.gateways.iter().filter(move |gateway| gateway.passes(level));
        let top = passing().map(Gateway::rank).max();
        passing().filter(move |gateway| Some(gateway.rank()) == top)
    }

    fn choose(&self, level: Level, flow: &Flow) -> Option<NodeId> {
        let best = || self.best(level);
        if best().any(|gateway| gateway.single) {
            return self.active(level).map(|gateway| gateway.node);
        }
        let mut best = best();
        let first = best.next()?;
        let mut winner = (first.node, f64::NEG_INFINITY);
        let Some(second) = best.next() else { return Some(winner.0) };
        for gateway in [first, second].into_iter().chain(best) {
            let score = flow.score(gateway.node, gateway.weight);
            if score > winner.1 {
                winner = (gateway.node, score);
            }
        }
        Some(winner.0)
    }

    /// The only gateway in use where sources are not rewritten: every node picks the same.
    fn active(&self, level: Level) -> Option<&Gateway> {
        self.best(level).max_by_key(|gateway| (gateway.weight, std::cmp::Reverse(gateway.node)))
    }

    fn level(&self) -> Option<Level> {
        [Level::Settled, Level::Usable].into_iter().find(|level| self.offers(*level))
    }

    /// Whether new flows take this gateway now.
    pub(crate) fn is_active(&self, node: NodeId) -> bool {
        let Some(level) = self.level() else { return false };
        if self.best(level).any(|gateway| gateway.single) {
            return self.active(level).is_some_and(|gateway| gateway.node == node);
        }
        self.best(level).any(|gateway| gateway.node == node)
    }
}

/// Why a destination goes where it goes, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Explanation {
    /// Every prefix that holds the address, longest first.
    pub(crate) prefixes: Vec<(IpNet, Vec<Gateway>, Option<Skip>)>,
    /// The one that counts.
    pub(crate) used: Option<IpNet>,
}

/// All routes of the network but our own.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    prefixes: JointPrefixMap<IpNet, Prefix>,
    flows: Flows,
    /// Changes whenever a choice that was made may not be right any more.
    generation: u64,
}

impl RouteTable {
    /// Replaces all routes. Flows stay where they are as far as that is still allowed.
    pub(crate) fn set(&mut self, routes: BTreeMap<IpNet, Prefix>) {
        self.generation += 1;
        self.prefixes = JointPrefixMap::new();
        for (cidr, prefix) in routes {
            self.prefixes.insert(cidr, prefix);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        *self = Self { generation: self.generation + 1, ..Self::default() };
        self.flows.clear();
    }

    /// A gateway has come or gone.
    pub(crate) fn set_health(&mut self, node: NodeId, health: Health) {
        self.generation += 1;
        for gateway in self.prefixes.values_mut().flat_map(|prefix| &mut prefix.gateways) {
            if gateway.node == node {
                gateway.health = health;
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpNet, &Prefix)> {
        self.prefixes.iter()
    }

    /// Prefixes whose packets belong into the tunnel.
    pub(crate) fn installed(&self) -> impl Iterator<Item = IpNet> {
        self.prefixes.iter().filter(|(_, prefix)| prefix.offers(Level::Any)).map(|(cidr, _)| cidr)
    }

    /// Whether packets to this address go into the tunnel because of a route other than a default one.
    pub(crate) fn captures(&self, address: IpAddr) -> bool {
        self.covering(address).any(|(cidr, prefix)| cidr.prefix_len() > 0 && prefix.offers(Level::Any))
    }

    /// The gateway that a packet of this flow takes; `None` without a route. The same one as before while that lives.
    pub(crate) fn route(&mut self, flow: &Flow) -> Option<NodeId> {
        let known = self.flows.get(flow);
        if let Some(choice) = known.filter(|choice| choice.generation == self.generation) {
            return Some(choice.gateway);
        }
        if !cidr::is_routable(flow.dst()) {
            return None;
        }
        let kept = known.map(|choice| choice.gateway).filter(|gateway| self.may_keep(flow, *gateway));
        let gateway = kept.or_else(|| self.select(flow)).or_else(|| self.last_resort(flow))?;
        self.flows.put(*flow, Choice { gateway, generation: self.generation });
        Some(gateway)
    }

    /// Specification §7.2, in the right order: what is disabled or offline does not count; the longest prefix; the
    /// highest priority; by weight.
    pub(crate) fn select(&self, flow: &Flow) -> Option<NodeId> {
        let (prefix, level) = self.in_force(flow.dst())?;
        prefix.choose(level, flow)
    }

    /// The gateway looks dead like all others, and hears the first packets that may tell otherwise.
    fn last_resort(&self, flow: &Flow) -> Option<NodeId> {
        self.longest(flow.dst(), Level::Any)?.choose(Level::Any, flow)
    }

    /// A flow stays with its gateway until that dies, whatever priority others have by now. Where sources are not
    /// rewritten there is nothing to be faithful to.
    fn may_keep(&self, flow: &Flow, gateway: NodeId) -> bool {
        let Some((prefix, level)) = self.in_force(flow.dst()) else { return false };
        let usable = |g: &Gateway| g.node == gateway && g.passes(Level::Usable);
        prefix.gateways.iter().any(usable) && !prefix.best(level).any(|gateway| gateway.single)
    }

    /// The longest prefix that has gateways to offer, and what can be asked of them.
    fn in_force(&self, address: IpAddr) -> Option<(&Prefix, Level)> {
        [Level::Settled, Level::Usable]
            .into_iter()
            .find_map(|level| self.longest(address, level).map(|prefix| (prefix, level)))
    }

    fn longest(&self, address: IpAddr, level: Level) -> Option<&Prefix> {
        self.covering(address).map(|(_, prefix)| prefix).filter(|prefix| prefix.offers(level)).last()
    }

    /// Cryptokey routing: whether a packet from this address may come from this peer. Any enabled gateway of the
    /// longest prefix may send it; one of a shorter prefix only while those of the longer ones are dead.
    pub(crate) fn may_source(&self, address: IpAddr, from: NodeId) -> bool {
        if !cidr::is_routable(address) {
            return false;
        }
        let mut allowed = false;
        // Shortest first: the last word is the longest prefix's.
        for (_, prefix) in self.covering(address) {
            let serves = prefix.gateways.iter().any(|gateway| gateway.node == from && !gateway.denied);
            if prefix.skip.is_some() {
                // Nothing that we reach otherwise comes out of the tunnel.
                allowed = false;
            } else if serves {
                allowed = true;
            } else if prefix.offers(Level::Usable) {
                allowed = false;
            }
        }
        allowed
    }

    /// Why packets to an address go where they go.
    pub(crate) fn explain(&self, address: IpAddr) -> Explanation {
        let mut prefixes: Vec<_> =
            self.covering(address).map(|(cidr, prefix)| (cidr, prefix.gateways.clone(), prefix.skip)).collect();
        prefixes.reverse();
        let used = [Level::Settled, Level::Usable, Level::Any].into_iter().find_map(|level| {
            let offering = self.covering(address).filter(|(_, prefix)| prefix.offers(level));
            offering.last().map(|(cidr, _)| cidr)
        });
        Explanation { prefixes, used: used.filter(|_| cidr::is_routable(address)) }
    }

    /// Every prefix that holds the address, shortest first.
    fn covering(&self, address: IpAddr) -> impl Iterator<Item = (IpNet, &Prefix)> {
        self.prefixes.cover(&IpNet::from(address))
    }
}
