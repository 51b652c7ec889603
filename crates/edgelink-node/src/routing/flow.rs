//! Which flow a packet belongs to, and the gateway that each flow keeps (DESIGN §7).

use edgelink_model::NodeId;
use edgelink_wire::packet::{self, IpView};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Flows remembered: twice this number at most, which is about 2 MiB.
const CAPACITY: usize = 8192;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// An ICMP error quotes the packet that it is about after this many bytes.
const ICMP_HEADER_LEN: usize = 8;

/// What packets of one flow have in common: the TCP or UDP 5-tuple; the two addresses for everything else and for
/// fragments, of which only the first has ports. An ICMP error belongs to the flow whose packet it quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    src: IpAddr,
    dst: IpAddr,
    /// 0 where the addresses alone count.
    proto: u8,
    ports: [u16; 2],
}

impl Flow {
    /// The flow of a whole packet.
    pub(crate) fn of(ip: &IpView, packet: &[u8]) -> Self {
        let transport = packet.get(ip.transport..ip.total_len).unwrap_or_default();
        let addresses = Self { src: ip.src, dst: ip.dst, proto: 0, ports: [0, 0] };
        if ip.fragment {
            return addresses;
        }
        match (ip.proto, transport.first()) {
            (packet::TCP | packet::UDP, _) => addresses.with_ports(ip.proto, transport),
            (ICMP, Some(3 | 4 | 5 | 11 | 12)) | (ICMPV6, Some(1..=4)) => {
                let quoted = transport.get(ICMP_HEADER_LEN..).and_then(Self::quoted);
                // The quoted packet came the other way.
                quoted.map_or(addresses, |quoted| Self {
                    src: quoted.dst,
                    dst: quoted.src,
                    ports: [quoted.ports[1], quoted.ports[0]],
                    ..quoted
                })
            }
            _ => addresses,
        }
    }

    /// The flow of a packet of which only the beginning is there.
    fn quoted(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header: &[u8; 20] = bytes.first_chunk()?;
                let len = usize::from(header[0] & 0x0f) * 4;
                let src = Ipv4Addr::new(header[12], header[13], header[14], header[15]).into();
                let dst = Ipv4Addr::new(header[16], header[17], header[18], header[19]).into();
                let addresses = Self { src, dst, proto: 0, ports: [0, 0] };
                let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
                let ported = matches!(header[9], packet::TCP | packet::UDP) && !fragment;
                Some(if ported { addresses.with_ports(header[9], bytes.get(len..)?) } else { addresses })
            }
            6 => {
                let header: &[u8; packet::IPV6_HEADER_LEN] = bytes.first_chunk()?;
                let src = Ipv6Addr::from(*header.get(8..)?.first_chunk::<16>()?).into();
                let dst = Ipv6Addr::from(*header.get(24..)?.first_chunk::<16>()?).into();
                let addresses = Self { src, dst, proto: 0, ports: [0, 0] };
                let ported = matches!(header[6], packet::TCP | packet::UDP);
                let transport = bytes.get(packet::IPV6_HEADER_LEN..)?;
                Some(if ported { addresses.with_ports(header[6], transport) } else { addresses })
            }
            _ => None,
        }
    }

    fn with_ports(self, proto: u8, transport: &[u8]) -> Self {
        match transport.first_chunk() {
            Some([a, b, c, d]) => {
                Self { proto, ports: [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])], ..self }
            }
            None => self,
        }
    }

    /// Where its packets go.
    pub(crate) fn dst(&self) -> IpAddr {
        self.dst
    }

    /// The gateway's claim on this flow; the highest wins (weighted rendezvous hashing). When a gateway comes or goes,
    /// no flow moves but those that it wins or had.
    pub(crate) fn score(&self, gateway: NodeId, weight: u16) -> f64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        gateway.0.hash(&mut hasher);
        // 53 bits, as many as a double takes, moved off zero: a uniform number strictly between 0 and 1.
        let uniform = ((hasher.finish() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        f64::from(weight) / -uniform.ln()
    }
}

/// The gateway that a flow took, valid for one generation of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) gateway: NodeId,
    pub(crate) generation: u64,
}

/// A bounded memory of flows. Those not used for longest go first, many at a time: what is looked up moves to the young
/// half, and a full young half becomes the old one.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    young: HashMap<Flow, Choice>,
    old: HashMap<Flow, Choice>,
}

impl Flows {
    pub(crate) fn get(&mut self, flow: &Flow) -> Option<Choice> {
        if let Some(choice) = self.young.get(flow) {
            return Some(*choice);
        }
        let choice = self.old.remove(flow)?;
        self.put(*flow, choice);
        Some(choice)
    }

    pub(crate) fn put(&mut self, flow: Flow, choice: Choice) {
        if self.young.len() >= CAPACITY {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(flow, choice);
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(proto: u8, src: [u8; 4], dst: [u8; 4], fragment: u16, transport: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0];
        bytes.extend_from_slice(&src);
        bytes.extend_from_slice(&dst);
        bytes.extend_from_slice(transport);
        let total = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&total.to_be_bytes());
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes
    }

    fn flow(packet: &[u8]) -> Flow {
        Flow::of(&edgelink_wire::packet::parse(packet).unwrap(), packet)
    }

    const A: [u8; 4] = [10, 7, 0, 1];
    const B: [u8; 4] = [192, 168, 1, 9];
    const PORTS: [u8; 8] = [0x30, 0x39, 0, 80, 0, 0, 0, 0];

    #[test]
    fn ports_tell_tcp_and_udp_flows_apart_and_nothing_else() {
        let tcp = flow(&v4(packet::TCP, A, B, 0, &PORTS));
        assert_eq!((tcp.proto, tcp.ports), (packet::TCP, [12345, 80]));
        assert_ne!(tcp, flow(&v4(packet::UDP, A, B, 0, &PORTS)));
        let echo = flow(&v4(ICMP, A, B, 0, &[8, 0, 0, 0, 1, 2, 3, 4]));
        assert_eq!((echo.proto, echo.ports), (0, [0, 0]));
        assert_eq!(echo, flow(&v4(47, A, B, 0, &PORTS)), "GRE and ICMP go by the addresses");
    }

    #[test]
    fn all_fragments_of_a_packet_are_one_flow() {
        let first = flow(&v4(packet::UDP, A, B, 0x2000, &PORTS));
        let last = flow(&v4(packet::UDP, A, B, 0x00b9, b"any old bytes"));
        assert_eq!(first, last);
    }

    #[test]
    fn an_icmp_error_belongs_to_the_flow_that_it_quotes() {
        let ours = flow(&v4(packet::TCP, A, B, 0, &PORTS));
        // The packet that came from B to A, cut after 28 bytes, as routers quote.
        let theirs = v4(packet::TCP, B, A, 0, &[0, 80, 0x30, 0x39, 0, 0, 0, 0]);
        let mut error = vec![3, 4, 0, 0, 0, 0, 5, 0xdc];
        error.extend_from_slice(theirs.get(..28).unwrap());
        // From A itself, or from a router on the way: the flow is the same.
        assert_eq!(flow(&v4(ICMP, A, B, 0, &error)), ours);
        assert_eq!(flow(&v4(ICMP, [10, 7, 0, 99], B, 0, &error)), ours);
        // A quotation that is too short goes by the addresses.
        assert_eq!(flow(&v4(ICMP, A, B, 0, error.get(..20).unwrap())).proto, 0);
    }

    #[test]
    fn the_memory_of_flows_is_bounded_and_keeps_what_is_used() {
        let mut flows = Flows::default();
        let used = flow(&v4(packet::TCP, A, B, 0, &PORTS));
        let choice = Choice { gateway: NodeId(7), generation: 1 };
        flows.put(used, choice);
        for n in 0..10 * CAPACITY as u32 {
            let [_, a, b, c] = n.to_be_bytes();
            flows.put(flow(&v4(packet::TCP, [10, a, b, c], B, 0, &PORTS)), choice);
            if n % 1000 == 0 {
                assert_eq!(flows.get(&used), Some(choice));
            }
        }
        assert!(flows.len() <= 2 * CAPACITY, "{}", flows.len());
        assert_eq!(flows.get(&used), Some(choice));
    }
}
