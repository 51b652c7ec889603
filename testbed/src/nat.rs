//! What a NAT router does, in the terms of RFC 4787, and the nftables rules that do it.
//!
//! Linux's own masquerading maps by endpoint-independence as long as ports are kept, and filters by address and port. Other
//! filtering is learnt: every outbound packet writes its mapping into a map with a timeout, by which inbound packets are
//! translated that no connection knows. Other mapping is `masquerade` to a port that is random or a hash of what the
//! mapping may depend on.

use std::{fmt, fmt::Write as _, net::Ipv4Addr, str::FromStr, time::Duration};

use thiserror::Error;

/// What a mapping or a filter depends on (RFC 4787, 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Behaviour {
    /// On nothing outside.
    EndpointIndependent,
    /// On the address outside.
    AddressDependent,
    /// On the address and port outside.
    AddressAndPortDependent,
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        })
    }
}

/// How a router translates and filters IPv4 that leaves by one interface; for [`Router::nat`](crate::Router::nat).
///
/// TCP, ICMP and the rest are masqueraded plainly; mapping, filtering, hairpinning and lifetimes are about UDP (one-to-one
/// is about everything). IPv6 passes as it is, behind a stateful firewall if asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nat {
    wan: String,
    mapping: Behaviour,
    filtering: Behaviour,
    ports_kept: bool,
    early_claims: bool,
    inside: Option<Ipv4Addr>,
    hairpin: bool,
    udp_blocked: bool,
    ipv6_firewall: bool,
    lifetime: Option<Duration>,
}

/// A NAT that nftables cannot express, or that has no such name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct NatError(String);

impl Nat {
    /// Any mapping with any filtering.
    #[must_use]
    pub fn new(wan: &str, mapping: Behaviour, filtering: Behaviour) -> Self {
        Self {
            wan: wan.to_owned(),
            mapping,
            filtering,
            ports_kept: mapping == Behaviour::EndpointIndependent,
            early_claims: false,
            inside: None,
            hairpin: false,
            udp_blocked: false,
            ipv6_firewall: false,
            lifetime: None,
        }
    }

    /// Port-restricted cone, the ordinary home router: endpoint-independent mapping with ports kept where free, filtering
    /// by address and port.
    #[must_use]
    pub fn port_restricted(wan: &str) -> Self {
        Self::new(wan, Behaviour::EndpointIndependent, Behaviour::AddressAndPortDependent)
    }

    /// Restricted cone: endpoint-independent mapping, filtering by address.
    #[must_use]
    pub fn restricted_cone(wan: &str) -> Self {
        Self::new(wan, Behaviour::EndpointIndependent, Behaviour::AddressDependent)
    }

    /// Full cone: endpoint-independent mapping and filtering.
    #[must_use]
    pub fn full_cone(wan: &str) -> Self {
        Self::new(wan, Behaviour::EndpointIndependent, Behaviour::EndpointIndependent)
    }

    /// Symmetric: a random port for every destination, filtering by address and port.
    #[must_use]
    pub fn symmetric(wan: &str) -> Self {
        Self::new(wan, Behaviour::AddressAndPortDependent, Behaviour::AddressAndPortDependent)
    }

    /// A port for every destination address, filtering by address and port.
    #[must_use]
    pub fn address_dependent(wan: &str) -> Self {
        Self::new(wan, Behaviour::AddressDependent, Behaviour::AddressAndPortDependent)
    }

    /// One host has the outer address for itself, every port and protocol of it.
    #[must_use]
    pub fn one_to_one(wan: &str, inside: Ipv4Addr) -> Self {
        Self { inside: Some(inside), ..Self::full_cone(wan) }
    }

    /// Port-restricted cone as a router makes it that forgets to drop strangers' packets to itself: one that comes *before*
    /// the inner host has sent claims the mapping's port for the router, and the inner host gets another port for this
    /// destination. Endpoint-independent to those who look, and a trap for whoever is the first to punch.
    #[must_use]
    pub fn early_claims(wan: &str) -> Self {
        Self { early_claims: true, ..Self::port_restricted(wan) }
    }

    /// Port-restricted cone for all but UDP, which is dropped in both directions.
    #[must_use]
    pub fn udp_blocked(wan: &str) -> Self {
        Self { udp_blocked: true, ..Self::port_restricted(wan) }
    }

    /// Whether the outer port is the inner one where it is free, as is usual with endpoint-independent mapping; otherwise it
    /// is a hash. Other mappings never keep it.
    #[must_use]
    pub fn keep_ports(mut self, kept: bool) -> Self {
        self.ports_kept = kept;
        self
    }

    /// Whether inner hosts reach each other by their outer addresses, seeing those (RFC 4787, 6).
    #[must_use]
    pub fn hairpin(mut self, on: bool) -> Self {
        self.hairpin = on;
        self
    }

    /// How long a UDP mapping and its filter live after the last packet; 30 s, or 120 s once answered, unless told
    /// otherwise. Rounded up to whole seconds.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    /// Whether IPv6 from outside must belong to what began inside.
    #[must_use]
    pub fn ipv6_firewall(mut self, on: bool) -> Self {
        self.ipv6_firewall = on;
        self
    }

    /// What the outer port depends on.
    #[must_use]
    pub fn mapping(&self) -> Behaviour {
        self.mapping
    }

    /// What the way in depends on.
    #[must_use]
    pub fn filtering(&self) -> Behaviour {
        self.filtering
    }

    /// The outer interface.
    #[must_use]
    pub fn wan(&self) -> &str {
        &self.wan
    }

    /// Seconds that a mapping lives: before the first answer, and after.
    pub(crate) fn seconds(&self) -> (u64, u64) {
        match self.lifetime {
            None => (30, 120),
            Some(lifetime) => {
                let whole = lifetime.as_secs() + u64::from(lifetime.subsec_nanos() > 0);
                (whole.max(1), whole.max(1))
            }
        }
    }

    /// Whether the script needs to know the outer address.
    pub(crate) fn needs_address(&self) -> bool {
        self.hairpin
    }

    /// An nftables script that puts exactly these rules in place, in one transaction and with nothing learnt.
    pub(crate) fn script(&self, outer: Option<Ipv4Addr>) -> Result<String, NatError> {
        let name_is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.wan.is_empty() || self.wan.len() > 15 || !self.wan.chars().all(name_is_safe) {
            return Err(NatError(format!("{:?} is no interface name", self.wan)));
        }
        let eim = self.mapping == Behaviour::EndpointIndependent;
        if self.hairpin && !(eim && self.ports_kept && self.inside.is_none()) {
            let why = "hairpinning needs endpoint-independent mapping with ports kept, and more than one inner host";
            return Err(NatError(format!("nftables cannot express this NAT: {why}")));
        }
        let outer = if self.hairpin {
            Some(outer.ok_or_else(|| NatError(format!("{} has no IPv4 address, which hairpinning needs", self.wan)))?)
        } else {
            None
        };
        Ok(format!("{}{}{}", RESET, self.translation(outer), self.guard(outer)))
    }

    fn translation(&self, outer: Option<Ipv4Addr>) -> String {
        let wan = &self.wan;
        let [mut maps, mut learn, mut early, mut pre, mut post] = [const { String::new() }; 5];
        let timeout = self.seconds().1;
        // Writing to a String cannot fail.
        let mut map = |name: &str, key: &str| {
            let _ = write!(
                maps,
                "  map {name} {{\n    type {key} : ipv4_addr . inet_service\n    flags dynamic,timeout\n    \
                 timeout {timeout}s\n    size 65535\n  }}\n"
            );
        };
        let line = |to: &mut String, rule: String| {
            let _ = writeln!(to, "    {rule}");
        };
        // What finds the way in: the outer port, and what of the remote endpoint the filter looks at.
        let (key, learnt, wanted) = match self.filtering {
            Behaviour::EndpointIndependent => ("inet_service", "udp sport", "udp dport"),
            Behaviour::AddressDependent => {
                ("inet_service . ipv4_addr", "udp sport . ct original ip daddr", "udp dport . ip saddr")
            }
            // Connection tracking filters so by itself.
            Behaviour::AddressAndPortDependent => ("", "", ""),
        };
        if let Some(inside) = self.inside {
            line(&mut pre, format!("iifname \"{wan}\" dnat to {inside}"));
        } else if !key.is_empty() {
            map("learnt", key);
            let from = "ct original ip saddr . ct original proto-src";
            line(&mut learn, format!("oifname \"{wan}\" meta l4proto udp update @learnt {{ {learnt} : {from} }}"));
            line(&mut pre, format!("iifname \"{wan}\" meta l4proto udp dnat ip to {wanted} map @learnt"));
        }
        if let Some(outer) = outer {
            // Ports are kept, so the outer endpoint of the sender is known before it is translated; it is learnt even when
            // the packet itself finds no way in.
            let (table, key) = match self.filtering {
                Behaviour::EndpointIndependent => ("learnt", ("udp sport", "udp dport")),
                Behaviour::AddressDependent => ("learnt", ("udp sport . ip daddr", "udp dport . ip daddr")),
                Behaviour::AddressAndPortDependent => {
                    map("hairpin", "inet_service . inet_service");
                    ("hairpin", ("udp sport . udp dport", "udp dport . udp sport"))
                }
            };
            let inner = format!("iifname != \"{wan}\" ip daddr {outer} meta l4proto udp");
            let (learnt, wanted) = key;
            line(
                &mut early,
                format!("{inner} meta mark set {HAIRPIN} update @{table} {{ {learnt} : ip saddr . udp sport }}"),
            );
            line(&mut pre, format!("{inner} dnat ip to {wanted} map @{table}"));
            line(&mut post, format!("meta mark {HAIRPIN} ct status dnat snat to {outer}"));
        }
        let udp = format!("oifname \"{wan}\" meta l4proto udp masquerade");
        let hash = |of: &str| format!("{udp} to :jhash {of} mod 30000 seed 0x65646765 offset 30000");
        match self.mapping {
            Behaviour::EndpointIndependent if self.ports_kept => {}
            Behaviour::EndpointIndependent => line(&mut post, hash("ip saddr . udp sport")),
            Behaviour::AddressDependent => line(&mut post, hash("ip saddr . udp sport . ip daddr")),
            Behaviour::AddressAndPortDependent => line(&mut post, format!("{udp} fully-random")),
        }
        line(&mut post, format!("oifname \"{wan}\" masquerade"));
        let chain = |name: &str, hook: &str, rules: &str| {
            format!("  chain {name} {{\n    type {hook}; policy accept;\n{rules}  }}\n")
        };
        let chains = [
            chain("early", "filter hook prerouting priority -110", &early),
            chain("pre", "nat hook prerouting priority -100", &pre),
            chain("post", "nat hook postrouting priority 100", &post),
            chain("learn", "filter hook postrouting priority 110", &learn),
        ];
        format!("table ip lab_nat {{\n{maps}{}}}\n", chains.concat())
    }

    fn guard(&self, outer: Option<Ipv4Addr>) -> String {
        let wan = &self.wan;
        let (mut input, mut forward) = (String::new(), String::new());
        if !self.early_claims {
            // Or conntrack would confirm the stranger's connection with the router itself, and the port were taken.
            input += &format!("    iifname \"{wan}\" meta nfproto ipv4 ct state new drop\n");
            if let Some(outer) = outer {
                input += &format!("    ip daddr {outer} meta l4proto udp ct state new drop\n");
            }
        }
        if self.udp_blocked {
            forward +=
                &format!("    iifname \"{wan}\" meta l4proto udp drop\n    oifname \"{wan}\" meta l4proto udp drop\n");
        }
        // Inner addresses cannot be reached by those who know them.
        forward += &format!("    iifname \"{wan}\" meta nfproto ipv4 ct state new ct status & dnat == 0 drop\n");
        if self.ipv6_firewall {
            forward += &format!("    iifname \"{wan}\" meta nfproto ipv6 ct state new drop\n");
        }
        format!(
            "table inet lab_guard {{\n  chain input {{\n    type filter hook input priority 0; policy accept;\n{input}  }}\n  \
             chain forward {{\n    type filter hook forward priority 0; policy accept;\n{forward}  }}\n}}\n"
        )
    }
}

/// Tables are created, so that the deletion cannot fail.
pub(crate) const RESET: &str =
    "table ip lab_nat\ndelete table ip lab_nat\ntable inet lab_guard\ndelete table inet lab_guard\n";
/// Marks packets from inside to the outer address.
const HAIRPIN: &str = "0x68616972";

/// The NATs that people have names for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatKind {
    /// A router that translates nothing.
    None,
    /// [`Nat::full_cone`]
    FullCone,
    /// [`Nat::restricted_cone`]
    RestrictedCone,
    /// [`Nat::port_restricted`]
    PortRestricted,
    /// [`Nat::early_claims`]
    EarlyClaims,
    /// [`Nat::address_dependent`]
    AddressDependent,
    /// [`Nat::symmetric`]
    Symmetric,
    /// [`Nat::one_to_one`]
    OneToOne,
    /// [`Nat::udp_blocked`]
    UdpBlocked,
}

impl NatKind {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::FullCone,
        Self::RestrictedCone,
        Self::PortRestricted,
        Self::EarlyClaims,
        Self::AddressDependent,
        Self::Symmetric,
        Self::OneToOne,
        Self::UdpBlocked,
    ];

    /// Its name in commands.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FullCone => "full-cone",
            Self::RestrictedCone => "restricted-cone",
            Self::PortRestricted => "port-restricted",
            Self::EarlyClaims => "early-claims",
            Self::AddressDependent => "address-dependent",
            Self::Symmetric => "symmetric",
            Self::OneToOne => "one-to-one",
            Self::UdpBlocked => "udp-blocked",
        }
    }

    /// The NAT at this interface, with the inner host that a one-to-one NAT serves; `None` for [`Self::None`].
    #[must_use]
    pub fn nat(self, wan: &str, inside: Ipv4Addr) -> Option<Nat> {
        Some(match self {
            Self::None => return None,
            Self::FullCone => Nat::full_cone(wan),
            Self::RestrictedCone => Nat::restricted_cone(wan),
            Self::PortRestricted => Nat::port_restricted(wan),
            Self::EarlyClaims => Nat::early_claims(wan),
            Self::AddressDependent => Nat::address_dependent(wan),
            Self::Symmetric => Nat::symmetric(wan),
            Self::OneToOne => Nat::one_to_one(wan, inside),
            Self::UdpBlocked => Nat::udp_blocked(wan),
        })
    }
}

impl fmt::Display for NatKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for NatKind {
    type Err = NatError;

    fn from_str(text: &str) -> Result<Self, NatError> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            NatError(format!("there is no NAT called {text:?}; there are {names}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_kinds_and_back() {
        for kind in NatKind::ALL {
            assert_eq!(kind.to_string().parse::<NatKind>(), Ok(kind));
        }
        let error = "cone".parse::<NatKind>().unwrap_err().to_string();
        assert!(error.contains("\"cone\"") && error.contains("restricted-cone, port-restricted"), "{error}");
    }

    #[test]
    fn what_nft_cannot_do_is_said() {
        let outer = Some(Ipv4Addr::new(203, 0, 113, 1));
        for bad in [
            Nat::symmetric("wan").hairpin(true),
            Nat::port_restricted("wan").keep_ports(false).hairpin(true),
            Nat::one_to_one("wan", Ipv4Addr::LOCALHOST).hairpin(true),
        ] {
            assert!(bad.script(outer).unwrap_err().to_string().contains("hairpinning needs"));
        }
        assert!(Nat::port_restricted("wan").hairpin(true).script(None).unwrap_err().to_string().contains("no IPv4"));
        for name in ["", "wan\" drop", "a name that is too long"] {
            assert!(Nat::port_restricted(name).script(None).unwrap_err().to_string().contains("no interface"));
        }
    }

    #[test]
    fn lifetimes_are_whole_seconds() {
        let nat = Nat::full_cone("wan");
        assert_eq!(nat.seconds(), (30, 120));
        assert_eq!(nat.clone().lifetime(Duration::from_millis(1_500)).seconds(), (2, 2));
        assert_eq!(nat.clone().lifetime(Duration::ZERO).seconds(), (1, 1));
        assert!(nat.lifetime(Duration::from_secs(7)).script(None).unwrap().contains("timeout 7s"));
    }
}
