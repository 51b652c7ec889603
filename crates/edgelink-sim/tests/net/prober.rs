//! NAT behaviour discovery by RFC 5780 §4.3 and §4.4, and every configuration classified as configured.

use crate::{Lab, SECOND, at, ip};
use bytes::Bytes;
use edgelink_sim::net::{Filtering, HostId, LanConfig, Mapping, NatConfig, PortAssignment};
use std::net::SocketAddr;

/// A STUN-like server with two addresses and two ports: it tells where a request came from, and answers from the
/// address and port that the request asks for.
pub(crate) struct Server {
    host: HostId,
    addresses: [&'static str; 2],
}

const PORTS: [u16; 2] = [3478, 3479];

impl Server {
    pub(crate) fn new(lab: &mut Lab) -> Self {
        let addresses = ["203.0.113.1", "203.0.113.2"];
        Self { host: lab.net.add_host(&addresses.map(ip)).unwrap(), addresses }
    }

    pub(crate) fn endpoint(&self, address: usize, port: usize) -> SocketAddr {
        at(ip(self.addresses[address]), PORTS[port])
    }

    /// One request; what the server saw, if its answer came.
    pub(crate) fn ask(
        &self,
        lab: &mut Lab,
        client: HostId,
        port: u16,
        to: (usize, usize),
        answer_from: (usize, usize),
    ) -> Option<SocketAddr> {
        let request = vec![answer_from.0 as u8, answer_from.1 as u8];
        lab.send(client, port, self.endpoint(to.0, to.1), request);
        for request in lab.advance(SECOND).into_iter().filter(|arrival| arrival.host == self.host) {
            let [address, port] = request.payload[..] else { panic!("not a request: {request:?}") };
            let src = self.endpoint(address.into(), port.into());
            let seen = Bytes::from(request.from.to_string());
            lab.net.send_from(lab.now, self.host, src, request.from, seen, &mut lab.rng).unwrap();
        }
        let answers = lab.advance(SECOND);
        let answer = answers.iter().find(|arrival| arrival.host == client && arrival.local.port() == port)?;
        assert_eq!(answer.from, self.endpoint(answer_from.0, answer_from.1));
        Some(std::str::from_utf8(&answer.payload).unwrap().parse().unwrap())
    }

    /// The external endpoint of a client's socket as the server's first endpoint sees it.
    pub(crate) fn reflexive(&self, lab: &mut Lab, client: HostId, port: u16) -> SocketAddr {
        self.ask(lab, client, port, (0, 0), (0, 0)).expect("STUN works")
    }

    /// RFC 5780 §4.3.
    pub(crate) fn mapping(&self, lab: &mut Lab, client: HostId, port: u16) -> Mapping {
        let first = self.ask(lab, client, port, (0, 0), (0, 0)).unwrap();
        let second = self.ask(lab, client, port, (1, 0), (1, 0)).unwrap();
        if second == first {
            return Mapping::EndpointIndependent;
        }
        let third = self.ask(lab, client, port, (1, 1), (1, 1)).unwrap();
        if third == second { Mapping::AddressDependent } else { Mapping::AddressAndPortDependent }
    }

    /// RFC 5780 §4.4. The socket must be fresh.
    pub(crate) fn filtering(&self, lab: &mut Lab, client: HostId, port: u16) -> Filtering {
        self.reflexive(lab, client, port);
        if self.ask(lab, client, port, (0, 0), (1, 1)).is_some() {
            return Filtering::EndpointIndependent;
        }
        match self.ask(lab, client, port, (0, 0), (0, 1)) {
            Some(_) => Filtering::AddressDependent,
            None => Filtering::AddressAndPortDependent,
        }
    }
}

const MAPPINGS: [Mapping; 3] =
    [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent];
const FILTERINGS: [Filtering; 3] =
    [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];
const PORT_ASSIGNMENTS: [PortAssignment; 6] = [
    PortAssignment::Preserving,
    PortAssignment::Overloading,
    PortAssignment::Sequential(1),
    PortAssignment::Random,
    PortAssignment::ParityPreserving,
    PortAssignment::Blocks(64),
];

fn classify(lab: &mut Lab, server: &Server, client: HostId) -> (Mapping, Filtering) {
    (server.mapping(lab, client, 5000), server.filtering(lab, client, 5001))
}

/// Behind one NAT.
fn classified(nat: NatConfig) -> (Mapping, Filtering) {
    let mut lab = Lab::new(7);
    let server = Server::new(&mut lab);
    let site = lab.site(nat);
    let client = lab.net.add_host_on(site).unwrap();
    classify(&mut lab, &server, client)
}

#[test]
fn the_named_nats_are_what_their_names_say() {
    use Filtering as F;
    use Mapping as M;
    for (nat, mapping, filtering) in [
        (NatConfig::full_cone(), M::EndpointIndependent, F::EndpointIndependent),
        (NatConfig::restricted_cone(), M::EndpointIndependent, F::AddressDependent),
        (NatConfig::port_restricted(), M::EndpointIndependent, F::AddressAndPortDependent),
        (NatConfig::symmetric(), M::AddressAndPortDependent, F::AddressAndPortDependent),
        (NatConfig::address_dependent_mapping(), M::AddressDependent, F::AddressAndPortDependent),
        (NatConfig::one_to_one(), M::EndpointIndependent, F::EndpointIndependent),
        (NatConfig::linux_masquerade(), M::EndpointIndependent, F::AddressAndPortDependent),
        (NatConfig::carrier_grade(), M::EndpointIndependent, F::EndpointIndependent),
    ] {
        assert_eq!(classified(nat), (mapping, filtering), "{nat:?}");
    }
}

#[test]
fn every_mapping_filtering_and_port_assignment_is_classified_as_configured() {
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            for ports in PORT_ASSIGNMENTS {
                // Overloading gives a lone client's mappings the same external port as long as the filter tells them
                // apart, so that dependent mapping does not show.
                if ports == PortAssignment::Overloading && mapping != Mapping::EndpointIndependent {
                    continue;
                }
                let nat = NatConfig { mapping, filtering, ports, ..NatConfig::full_cone() };
                assert_eq!(classified(nat), (mapping, filtering), "{nat:?}");
            }
        }
    }
}

#[test]
fn two_nats_in_a_row_look_like_the_stricter_of_each_behaviour() {
    let base = NatConfig { ports: PortAssignment::Random, ..NatConfig::full_cone() };
    let all = || MAPPINGS.into_iter().flat_map(|mapping| FILTERINGS.map(|filtering| (mapping, filtering)));
    for outer in all() {
        for inner in all() {
            let mut lab = Lab::new(8);
            let server = Server::new(&mut lab);
            let [carrier, home] = [outer, inner].map(|(mapping, filtering)| NatConfig { mapping, filtering, ..base });
            let carrier = lab.net.add_lan(LanConfig::behind(carrier, "100.64.0.0/16".parse().unwrap())).unwrap();
            let home = LanConfig::behind(home, "192.168.1.0/24".parse().unwrap()).within(carrier);
            let home = lab.net.add_lan(home).unwrap();
            let client = lab.net.add_host_on(home).unwrap();
            let seen = classify(&mut lab, &server, client);
            assert_eq!(seen, (inner.0.max(outer.0), inner.1.max(outer.1)), "{inner:?} behind {outer:?}");
        }
    }
}
