//! Whatever happens to a network: no datagram arrives twice or at the wrong place, each is delivered or counted as
//! dropped, none goes round for ever, and the same seed has the same outcome.

use crate::{Lab, MS, SECOND, at, ip};
use edgelink_sim::net::{
    FirewallConfig, HostId, LanConfig, LanId, LinkProfile, Loss, NatConfig, PortAssignment, Uplink,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Step {
    /// To an address that some host has, or to the source of a datagram that arrived.
    Send {
        from: usize,
        to: usize,
        port: u16,
        size: usize,
    },
    Answer {
        arrival: usize,
        size: usize,
    },
    Wait {
        ms: u64,
    },
    Move {
        host: usize,
        lan: usize,
    },
    Sleep {
        host: usize,
        asleep: bool,
    },
    Attach {
        host: usize,
        attached: bool,
    },
    Reboot {
        lan: usize,
        new: bool,
    },
    Replace {
        lan: usize,
        nat: usize,
    },
    Link {
        host: usize,
        profile: usize,
    },
    Block {
        a: usize,
        b: usize,
    },
    Heal,
    MapPort {
        host: usize,
        port: u16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0..64usize;
    let size = || prop_oneof![4 => 8..1400usize, 1 => 1400..3000usize];
    prop_oneof![
        20 => (index(), index(), 5000..5004u16, size()).prop_map(|(from, to, port, size)| Step::Send { from, to, port, size }),
        20 => (index(), size()).prop_map(|(arrival, size)| Step::Answer { arrival, size }),
        10 => prop_oneof![0..50u64, 0..200_000u64].prop_map(|ms| Step::Wait { ms }),
        2 => (index(), index()).prop_map(|(host, lan)| Step::Move { host, lan }),
        1 => (index(), any::<bool>()).prop_map(|(host, asleep)| Step::Sleep { host, asleep }),
        1 => (index(), any::<bool>()).prop_map(|(host, attached)| Step::Attach { host, attached }),
        1 => (index(), any::<bool>()).prop_map(|(lan, new)| Step::Reboot { lan, new }),
        1 => (index(), index()).prop_map(|(lan, nat)| Step::Replace { lan, nat }),
        1 => (index(), index()).prop_map(|(host, profile)| Step::Link { host, profile }),
        1 => (index(), index()).prop_map(|(a, b)| Step::Block { a, b }),
        1 => Just(Step::Heal),
        1 => (index(), 5000..5004u16).prop_map(|(host, port)| Step::MapPort { host, port }),
    ]
}

fn nats() -> Vec<NatConfig> {
    let mut nats = vec![
        NatConfig::full_cone(),
        NatConfig::port_restricted(),
        NatConfig::symmetric(),
        NatConfig::one_to_one(),
        NatConfig::linux_masquerade(),
        NatConfig { ports: PortAssignment::Blocks(2), ..NatConfig::carrier_grade() },
    ];
    nats.iter_mut().for_each(|nat| nat.port_mapping = true);
    nats
}

fn profiles() -> [LinkProfile; 4] {
    let base = LinkProfile::delay(10 * MS);
    [
        base,
        LinkProfile { loss: Loss::Independent(0.2), jitter: 20 * MS, ..base },
        LinkProfile { reorder: 0.5, reorder_delay: 30 * MS, rate: Some(100_000), queue: 3000, ..base },
        LinkProfile { down: true, ..base },
    ]
}

struct Run {
    lab: Lab,
    hosts: Vec<HostId>,
    lans: Vec<LanId>,
    next_id: u64,
    arrived: BTreeSet<u64>,
    /// (who received, where, from whom)
    answerable: Vec<(HostId, SocketAddr, SocketAddr)>,
    trace: Vec<(Duration, HostId, SocketAddr, SocketAddr)>,
}

impl Run {
    /// Homes with equal prefixes and IPv6, a carrier with homes behind it, a routed site, and hosts everywhere.
    fn new(seed: u64) -> Self {
        let mut lab = Lab::new(seed);
        let mut lans = vec![LanId::INTERNET];
        for (n, nat) in nats().into_iter().enumerate() {
            let v6 = format!("2001:db8:{n}::/64").parse().unwrap();
            let config = LanConfig::behind(nat, "192.168.1.0/24".parse().unwrap());
            lans.push(lab.net.add_lan(config.v6(v6, Some(FirewallConfig::default()))).unwrap());
        }
        let carrier = lans[6];
        for nat in [NatConfig::port_restricted(), NatConfig::one_to_one()] {
            // Equal to its parent's prefix: the worst case of a home behind a home.
            let config = LanConfig::behind(nat, "192.168.1.0/24".parse().unwrap()).within(carrier);
            lans.push(lab.net.add_lan(config).unwrap());
        }
        lans.push(lab.net.add_lan(LanConfig::routed("203.0.113.0/24".parse().unwrap())).unwrap());
        let mut hosts: Vec<HostId> = lans.iter().map(|lan| lab.net.add_host_on(*lan).unwrap()).collect();
        hosts.extend(lans.iter().map(|lan| lab.net.add_host_on(*lan).unwrap()));
        hosts.push(lab.net.add_host(&["198.51.100.1", "2001:db8:ff::1"].map(ip)).unwrap());
        Self { lab, hosts, lans, next_id: 0, arrived: BTreeSet::new(), answerable: Vec::new(), trace: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        let host = |n: usize| self.hosts[n % self.hosts.len()];
        let lan = |n: usize| self.lans[n % self.lans.len()];
        let Lab { net, now, .. } = &mut self.lab;
        match *step {
            Step::Send { from, to, port, size } => {
                let addresses = net.addresses(host(to));
                let Some(address) = addresses.get(size % addresses.len().max(1)) else { return };
                self.send(host(from), None, at(*address, port), port, size);
            }
            Step::Answer { arrival, size } => {
                let Some(index) = arrival.checked_rem(self.answerable.len()) else { return };
                let (from, local, to) = self.answerable[index];
                self.send(from, Some(local), to, local.port(), size);
            }
            Step::Wait { ms } => self.advance(Duration::from_millis(ms)),
            Step::Move { host: h, lan: l } => {
                // A LAN can be full, or the host be left without an address: that is an answer too.
                let _full = net.move_host(host(h), lan(l));
            }
            Step::Sleep { host: h, asleep } => net.set_asleep(host(h), asleep),
            Step::Attach { host: h, attached } => net.set_attached(host(h), attached),
            Step::Reboot { lan: l, new } => {
                let _full = net.reboot_router(lan(l), new);
            }
            Step::Replace { lan: l, nat } => {
                let _without_nat = net.set_nat(lan(l), nats()[nat % nats().len()]);
            }
            Step::Link { host: h, profile } => net.set_links(Uplink::Host(host(h)), profiles()[profile % 4]),
            Step::Block { a, b } => net.block(&[host(a)], &[host(b)]),
            Step::Heal => net.heal(),
            Step::MapPort { host: h, port } => {
                let _external = net.map_port(*now, host(h), port, port, 100 * SECOND);
            }
        }
    }

    fn send(&mut self, from: HostId, local: Option<SocketAddr>, to: SocketAddr, port: u16, size: usize) {
        let mut payload = vec![0; size.max(8)];
        payload[..8].copy_from_slice(&self.next_id.to_be_bytes());
        self.next_id += 1;
        let Lab { net, now, rng, .. } = &mut self.lab;
        let _refused_and_counted = match local {
            Some(local) => net.send_from(*now, from, local, to, payload.into(), rng),
            None => net.send(*now, from, port, to, payload.into(), rng),
        };
    }

    fn advance(&mut self, span: Duration) {
        for arrival in self.lab.advance(span) {
            let id = u64::from_be_bytes(arrival.payload[..8].try_into().unwrap());
            assert!(self.arrived.insert(id), "{id} arrived twice");
            assert!(self.lab.net.addresses(arrival.host).contains(&arrival.local.ip()), "{arrival:?}");
            self.answerable.push((arrival.host, arrival.local, arrival.from));
            self.trace.push((arrival.at - self.lab.start, arrival.host, arrival.local, arrival.from));
        }
    }

    fn finish(&mut self) {
        self.advance(1000 * SECOND);
        assert_eq!((self.lab.net.in_flight(), self.lab.net.next_due()), (0, None));
        let dropped = self.lab.net.drops().total();
        assert_eq!(self.arrived.len() as u64 + dropped, self.next_id, "{:?}", self.lab.net.drops());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_datagram_is_accounted_for(seed: u64, steps in prop::collection::vec(step(), 1..200)) {
        let runs = [0; 2].map(|_| {
            let mut run = Run::new(seed);
            steps.iter().for_each(|step| run.step(step));
            run.finish();
            (run.trace, run.lab.net.drops().clone())
        });
        prop_assert!(runs[0] == runs[1], "the same seed has the same outcome");
    }
}
