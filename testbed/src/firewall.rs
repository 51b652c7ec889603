//! What a router lets through. Address translation will be a table of its own beside this one, as real routers have it.

use std::net::SocketAddr;

/// The rules of a router's forwarding, stateless so that they cost a benchmark little.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firewall {
    /// Everything passes.
    Open,
    /// Everything but UDP passes.
    NoUdp,
    /// Only TCP connections to one port of one address pass: no UDP, no ICMP, nothing between others.
    OnlyTcp(SocketAddr),
}

impl Firewall {
    /// An nftables script that puts exactly these rules in place, in one transaction.
    pub(crate) fn script(&self) -> String {
        let (policy, rules) = match self {
            Self::Open => ("accept", String::new()),
            Self::NoUdp => ("accept", "meta l4proto udp counter name dropped drop".to_owned()),
            Self::OnlyTcp(server) => {
                let (family, ip, port) = (if server.is_ipv4() { "ip" } else { "ip6" }, server.ip(), server.port());
                let neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";
                let there = format!("{family} daddr {ip} tcp dport {port} accept");
                // Answers only: the server opens no connection.
                let back = format!("{family} saddr {ip} tcp sport {port} tcp flags & (syn | ack) != syn accept");
                ("drop", format!("{neighbours}\n    {there}\n    {back}\n    counter name dropped drop"))
            }
        };
        // Created, so that the deletion cannot fail; then made anew.
        format!(
            "table inet lab_filter\ndelete table inet lab_filter\ntable inet lab_filter {{\n  counter dropped {{\n  }}\n  \
             chain forward {{\n    type filter hook forward priority 0; policy {policy};\n    {rules}\n  }}\n}}\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_names_the_one_way_through() {
        let script = Firewall::OnlyTcp("192.0.2.1:443".parse().unwrap()).script();
        assert!(script.contains("policy drop;"));
        assert!(script.contains("ip daddr 192.0.2.1 tcp dport 443 accept"));
        assert!(script.contains("ip saddr 192.0.2.1 tcp sport 443 tcp flags & (syn | ack) != syn accept"));
        assert_eq!(script.matches("accept").count(), 3);
        let six = Firewall::OnlyTcp("[2001:db8::1]:443".parse().unwrap()).script();
        assert!(six.contains("ip6 daddr 2001:db8::1 tcp dport 443 accept"));
    }
}
