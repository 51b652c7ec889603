//! The STUN server's keys, the same in both programs that have one.

use crate::error::ConfigError;
use crate::schema::section;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

section! {
    /// `builtin_stun` of the controller, `stun` of the server.
    pub struct Stun {
        /// Whether it runs.
        enabled: bool = true;
        /// UDP address and port.
        listen: SocketAddr = (Ipv4Addr::UNSPECIFIED, 3478).into();
        /// Its public address. Left out: that of the interface with the default route.
        external_ip: Option<IpAddr> = None, eg r#""198.18.0.1""#;
        /// A second public address, for telling NATs apart (RFC 5780).
        secondary_ip: Option<IpAddr> = None, eg r#""198.18.0.2""#;
        /// This host's address that secondary_ip stands for, behind one-to-one NAT.
        secondary_listen: Option<IpAddr> = None, eg r#""10.0.0.6""#;
    }
}

/// Refuses what cannot work and returns warnings.
pub(crate) fn validate(stun: &Stun, section: &'static str) -> Result<Vec<String>, ConfigError> {
    if !stun.enabled {
        return Ok(Vec::new());
    }
    if stun.secondary_ip.is_some() && (stun.external_ip.is_none() || stun.external_ip == stun.secondary_ip) {
        let problem = "secondary_ip must be another address beside external_ip";
        return Err(ConfigError::Unusable { key: section, problem: problem.into() });
    }
    let addresses = [("external_ip", stun.external_ip), ("secondary_ip", stun.secondary_ip)];
    Ok(addresses
        .into_iter()
        .filter_map(|(key, address)| {
            let address = address.filter(is_documentation)?;
            Some(format!(
                "{section}.{key} is {address}, an address for documentation that nobody can reach; \
                 set this host's public address or remove the key"
            ))
        })
        .collect())
}

/// RFC 5737, RFC 3849, RFC 9637.
fn is_documentation(address: &IpAddr) -> bool {
    let nets = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20"];
    nets.iter().filter_map(|net| net.parse::<IpNet>().ok()).any(|net| net.contains(address))
}
