//! Random conversations through a NAT, against a reference model of RFC 4787.
//!
//! The model keeps no tables: it is a log of the datagrams that passed, and asks of it what the RFC says of mappings and
//! filters. A mapping lives while some datagram of the last `timeout` used it.

use crate::{Lab, SECOND, at, ip};
use edgelink_sim::net::{Filtering, HostId, LanId, Mapping, NatConfig, Overflow, PortAssignment};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const HOSTS: usize = 3;
const INTERNAL_PORTS: [u16; 2] = [5000, 5001];
const REMOTES: [(&str, u16); 4] = [("203.0.113.1", 7), ("203.0.113.1", 8), ("203.0.113.2", 7), ("203.0.113.2", 8)];
const TIMEOUT: Duration = Duration::from_secs(60);
const BLOCK: u16 = 8;
const FIRST_PORT: u16 = 1024;

#[derive(Clone, Debug)]
enum Step {
    /// From a host's port to a remote.
    Out {
        host: usize,
        port: usize,
        remote: usize,
    },
    /// From a remote to an external endpoint seen before, counted from the last.
    In {
        remote: usize,
        back: usize,
    },
    /// From a remote to some port.
    Stray {
        remote: usize,
        port: u16,
    },
    Wait {
        seconds: u64,
    },
    Reboot {
        new_address: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let remote = || 0..REMOTES.len();
    let out = (0..HOSTS, 0..INTERNAL_PORTS.len(), remote());
    let step = prop_oneof![
        6 => out.prop_map(|(host, port, remote)| Step::Out { host, port, remote }),
        6 => (remote(), 0..12usize).prop_map(|(remote, back)| Step::In { remote, back }),
        1 => (remote(), prop_oneof![Just(5000), Just(5001), any::<u16>()])
            .prop_map(|(remote, port)| Step::Stray { remote, port }),
        // Multiples of 20 meet the timeout exactly.
        3 => prop_oneof![(0..4u64).prop_map(|n| n * 20), 1..70u64].prop_map(|seconds| Step::Wait { seconds }),
        1 => any::<bool>().prop_map(|new_address| Step::Reboot { new_address }),
    ];
    prop::collection::vec(step, 1..80)
}

fn config() -> impl Strategy<Value = NatConfig> {
    let mapping = prop::sample::select(vec![
        Mapping::EndpointIndependent,
        Mapping::AddressDependent,
        Mapping::AddressAndPortDependent,
    ]);
    let filtering = prop::sample::select(vec![
        Filtering::EndpointIndependent,
        Filtering::AddressDependent,
        Filtering::AddressAndPortDependent,
    ]);
    let ports = prop::sample::select(vec![
        PortAssignment::Preserving,
        PortAssignment::Overloading,
        PortAssignment::Sequential(3),
        PortAssignment::Random,
        PortAssignment::ParityPreserving,
        PortAssignment::Blocks(BLOCK),
    ]);
    (mapping, filtering, ports, any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(mapping, filtering, ports, inbound_refresh, inbound_claims)| NatConfig {
            mapping,
            filtering,
            ports,
            first_port: FIRST_PORT,
            timeout: TIMEOUT,
            inbound_refresh,
            inbound_claims,
            overflow: Overflow::DropNew,
            ..NatConfig::full_cone()
        },
    )
}

/// What a mapping or a filter looks at of a remote endpoint.
type Seen = (Option<IpAddr>, Option<u16>);

/// A datagram that passed.
struct Passed {
    at: Instant,
    internal: SocketAddr,
    mapped_by: Seen,
    permits: Seen,
    external: SocketAddr,
}

struct Model {
    nat: NatConfig,
    log: Vec<Passed>,
}

impl Model {
    fn mapped_by(&self, remote: SocketAddr) -> Seen {
        match self.nat.mapping {
            Mapping::EndpointIndependent => (None, None),
            Mapping::AddressDependent => (Some(remote.ip()), None),
            Mapping::AddressAndPortDependent => (Some(remote.ip()), Some(remote.port())),
        }
    }

    fn permits(&self, remote: SocketAddr) -> Seen {
        match self.nat.filtering {
            Filtering::EndpointIndependent => (None, None),
            Filtering::AddressDependent => (Some(remote.ip()), None),
            Filtering::AddressAndPortDependent => (Some(remote.ip()), Some(remote.port())),
        }
    }

    fn recent(&self, now: Instant) -> impl DoubleEndedIterator<Item = &Passed> {
        self.log.iter().filter(move |passed| now - passed.at < TIMEOUT)
    }

    /// Checks the external endpoint that an outbound datagram got.
    fn outbound(&mut self, now: Instant, internal: SocketAddr, remote: SocketAddr, external: SocketAddr) {
        let (mapped_by, permits) = (self.mapped_by(remote), self.permits(remote));
        let own = |passed: &&Passed| passed.internal == internal && passed.mapped_by == mapped_by;
        // Overloading and claims move single flows away; what they must not do is checked by `receiver`.
        if self.nat.ports != PortAssignment::Overloading && !self.nat.inbound_claims {
            match self.recent(now).rev().find(own) {
                Some(living) => assert_eq!(external, living.external, "a living mapping is reused"),
                None => self.fresh(now, internal, external),
            }
        }
        self.log.push(Passed { at: now, internal, mapped_by, permits, external });
    }

    /// A new mapping's endpoint.
    fn fresh(&self, now: Instant, internal: SocketAddr, external: SocketAddr) {
        let used = |port: u16| self.recent(now).any(|passed| passed.external.port() == port);
        assert!(!used(external.port()), "it is nobody else's");
        match self.nat.ports {
            PortAssignment::Preserving => {
                assert!(external.port() == internal.port() || used(internal.port()), "the port is kept if free");
            }
            PortAssignment::ParityPreserving => assert_eq!(external.port() % 2, internal.port() % 2),
            PortAssignment::Blocks(size) => {
                let block = |endpoint: SocketAddr| (endpoint.port() - FIRST_PORT) / size;
                for other in self.recent(now) {
                    let same_host = other.internal.ip() == internal.ip();
                    assert_eq!(block(other.external) == block(external), same_host, "a block is one host's");
                }
            }
            _ => {}
        }
    }

    /// Who gets what `remote` sends to `external`.
    fn receiver(&mut self, now: Instant, remote: SocketAddr, external: SocketAddr) -> Option<SocketAddr> {
        let permits = self.permits(remote);
        let admits = |passed: &&Passed| passed.external == external && passed.permits == permits;
        let (internal, mapped_by) = self.recent(now).rev().find(admits).map(|p| (p.internal, p.mapped_by))?;
        if self.nat.inbound_refresh {
            self.log.push(Passed { at: now, internal, mapped_by, permits, external });
        }
        Some(internal)
    }
}

struct Run {
    lab: Lab,
    site: LanId,
    server: HostId,
    hosts: Vec<HostId>,
    model: Model,
    seen: Vec<SocketAddr>,
}

impl Run {
    fn new(nat: NatConfig, seed: u64) -> Self {
        let mut lab = Lab::new(seed);
        let server = lab.net.add_host(&["203.0.113.1", "203.0.113.2"].map(ip)).unwrap();
        let site = lab.site(nat);
        let hosts = (0..HOSTS).map(|_| lab.net.add_host_on(site).unwrap()).collect();
        Self { lab, site, server, hosts, model: Model { nat, log: Vec::new() }, seen: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Out { host, port, remote } => {
                let internal = at(self.lab.address(self.hosts[host]), INTERNAL_PORTS[port]);
                let remote = endpoint(remote);
                self.lab.send(self.hosts[host], internal.port(), remote, &b"out"[..]);
                let arrivals = self.lab.advance(Duration::ZERO);
                assert_eq!(arrivals.len(), 1, "outbound passes");
                assert_eq!((arrivals[0].host, arrivals[0].local), (self.server, remote));
                let external = arrivals[0].from;
                self.seen.push(external);
                self.model.outbound(self.lab.now, internal, remote, external);
                assert_eq!(self.inbound(remote, external), Some(internal), "an answer reaches who asked");
            }
            Step::In { remote, back } => {
                let Some(index) = self.seen.len().checked_sub(back + 1) else { return };
                self.inbound(endpoint(remote), self.seen[index]);
            }
            Step::Stray { remote, port } => {
                let external = self.lab.net.external_addresses(self.site)[0];
                self.inbound(endpoint(remote), at(external.into(), port));
            }
            Step::Wait { seconds } => assert!(self.lab.advance(SECOND * seconds as u32).is_empty()),
            Step::Reboot { new_address } => {
                self.lab.net.reboot_router(self.site, new_address).unwrap();
                self.model.log.clear();
            }
        }
    }

    /// Sends inwards and compares who got it with the model.
    fn inbound(&mut self, remote: SocketAddr, external: SocketAddr) -> Option<SocketAddr> {
        let Lab { net, now, rng, .. } = &mut self.lab;
        net.send_from(*now, self.server, remote, external, b"in"[..].into(), rng).unwrap();
        let arrivals = self.lab.advance(Duration::ZERO);
        let receiver = arrivals.first().map(|arrival| arrival.local);
        assert_eq!(receiver, self.model.receiver(self.lab.now, remote, external), "{remote} to {external}");
        assert!(arrivals.iter().all(|arrival| arrival.from == remote), "the source is not translated");
        receiver
    }
}

fn endpoint(remote: usize) -> SocketAddr {
    at(ip(REMOTES[remote].0), REMOTES[remote].1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_nat_behaves_as_the_model(nat in config(), seed: u64, steps in steps()) {
        let mut run = Run::new(nat, seed);
        for step in &steps {
            run.step(step);
        }
    }
}
