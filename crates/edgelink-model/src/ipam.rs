//! Allocation of overlay addresses.

use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The lowest free host address of `subnet`, or `None` when it is full.
///
/// The network and broadcast addresses are never handed out, except in /31 (RFC 3021) and /32 subnets, which have none.
pub fn allocate(subnet: Ipv4Net, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (network, broadcast) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
    let (mut candidate, last) =
        if subnet.prefix_len() >= 31 { (network, broadcast) } else { (network + 1, broadcast - 1) };
    // Both sides ascend, so one merge pass finds the first gap.
    for taken in used.range(Ipv4Addr::from(candidate)..=Ipv4Addr::from(last)) {
        if u32::from(*taken) != candidate {
            break;
        }
        if candidate == last {
            return None;
        }
        candidate += 1;
    }
    Some(Ipv4Addr::from(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn skips_network_and_broadcast() {
        let net: Ipv4Net = "10.0.1.0/30".parse().unwrap();
        let mut used = BTreeSet::new();
        for want in ["10.0.1.1", "10.0.1.2"] {
            let got = allocate(net, &used).unwrap();
            assert_eq!(got, want.parse::<Ipv4Addr>().unwrap());
            used.insert(got);
        }
        assert_eq!(allocate(net, &used), None);
    }

    #[test]
    fn tiny_subnets_use_every_address() {
        let all: BTreeSet<_> = ["10.0.0.0", "10.0.0.1"].iter().map(|s| s.parse().unwrap()).collect();
        assert_eq!(allocate("10.0.0.0/31".parse().unwrap(), &BTreeSet::new()), Some("10.0.0.0".parse().unwrap()));
        assert_eq!(allocate("10.0.0.0/31".parse().unwrap(), &all), None);
        assert_eq!(allocate("10.0.0.7/32".parse().unwrap(), &BTreeSet::new()), Some("10.0.0.7".parse().unwrap()));
    }

    #[test]
    fn the_whole_address_space_does_not_overflow() {
        let full: Ipv4Net = "0.0.0.0/0".parse().unwrap();
        assert_eq!(allocate(full, &BTreeSet::new()), Some("0.0.0.1".parse().unwrap()));
        let top: Ipv4Net = "255.255.255.254/31".parse().unwrap();
        assert_eq!(
            allocate(top, &["255.255.255.254".parse().unwrap()].into()),
            Some("255.255.255.255".parse().unwrap())
        );
    }

    proptest! {
        /// Against the naive definition: the first host address that is not taken.
        #[test]
        fn agrees_with_a_linear_search(prefix in 24u8..=32, base: u32, taken in proptest::collection::btree_set(0u32..256, 0..256)) {
            let net = Ipv4Net::new(Ipv4Addr::from(base), prefix).unwrap().trunc();
            let used: BTreeSet<_> = taken.iter().map(|o| Ipv4Addr::from(u32::from(net.network()).wrapping_add(*o))).collect();
            prop_assert_eq!(allocate(net, &used), net.hosts().find(|a| !used.contains(a)));
        }
    }
}
