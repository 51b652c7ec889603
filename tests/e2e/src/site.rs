//! A site behind gateways: a LAN whose hosts know nothing of the mesh.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    thread,
};

use anyhow::{Context, Result};
use edgelink_testbed::{Host, Switch, port};
use serde_json::{Value, json};

use crate::{Net, NetOptions};

/// A network of nodes of which some are gateways of one LAN:
///
/// ```text
/// client ── router ── controller
/// gw1    ──┘    192.168.77.1 ┐
/// gw2    ──┘    192.168.77.2 ┤ LAN ── 192.168.77.10  server (no route to anywhere else)
/// ```
#[derive(Debug)]
pub struct Site {
    /// The host behind the gateways; its interface is `eth0`.
    pub server: Host,
    /// The LAN.
    pub lan: Switch,
}

impl Site {
    /// The LAN's prefix.
    pub const CIDR: &'static str = "192.168.77.0/24";
    /// The LAN's IPv6 prefix.
    pub const CIDR6: &'static str = "fd77::/64";
    /// The server's address.
    pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 77, 10));
    /// The server's IPv6 address.
    pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x10));

    /// Plugs these nodes of a net into a new LAN, as `eth1` with addresses that end in 1, 2 …, and a server.
    ///
    /// # Errors
    ///
    /// As [`edgelink_testbed::Lab::switch`] and the like.
    pub fn new(net: &Net, gateways: &[usize]) -> Result<Self> {
        let lab = net.lab_ref();
        let lan = lab.switch("lan")?;
        let server = lab.host("server")?;
        lan.plug(port(&server, "eth0", "192.168.77.10/24").and("fd77::10/64"))?;
        for (n, gateway) in (1..).zip(gateways) {
            let host = &net.nodes.get(*gateway).context("no such node")?.host;
            let (v4, v6) = (format!("192.168.77.{n}/24"), format!("fd77::{n}/64"));
            lan.plug(port(host, "eth1", &v4).and(&v6))?;
        }
        Ok(Self { server, lan })
    }

    /// Nodes `client`, `gw1` … as configured, all of them joined, the gateways' routes approved in advance.
    ///
    /// # Errors
    ///
    /// When one does not start or join.
    pub fn start(gateways: &[Value]) -> Result<Option<(Net, Self)>> {
        let names: Vec<String> = (1..=gateways.len()).map(|n| format!("gw{n}")).collect();
        let names: Vec<&str> = std::iter::once("client").chain(names.iter().map(String::as_str)).collect();
        let controller = json!({ "security": { "require_route_approval": false } });
        let options = NetOptions { controller: Some(controller), ..NetOptions::default() };
        let Some(mut net) = Net::lab(&names, options)? else { return Ok(None) };
        let indices: Vec<usize> = (1..=gateways.len()).collect();
        let site = Self::new(&net, &indices)?;
        for (node, config) in net.nodes.iter_mut().skip(1).zip(gateways) {
            node.configure(config)?;
        }
        net.start_controller()?;
        for index in 0..net.nodes.len() {
            net.join(index)?;
        }
        Ok(Some((net, site)))
    }

    /// What a gateway of the LAN is configured with.
    #[must_use]
    pub fn gateway(priority: u32, weight: u32) -> Value {
        json!({
            "advertise_routes": [{ "cidr": Self::CIDR, "priority": priority, "weight": weight }],
            "gateway_mode": { "enabled": true, "snat": true }
        })
    }

    /// Serves every connection to a port of the server with its peer's address on a line, and then whatever comes in.
    ///
    /// # Errors
    ///
    /// When it cannot listen.
    pub fn serve_echo(&self, tcp: u16) -> Result<SocketAddr> {
        let address = SocketAddr::new(Self::SERVER, tcp);
        let listener: TcpListener = self.server.tcp_listener(address)?;
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    let mut stream = stream;
                    let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                    let mut buffer = vec![0; 64 << 10];
                    let _ = stream.write_all(format!("{peer}\n").as_bytes());
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(buffer.get(..n).unwrap_or_default()).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Ok(address)
    }
}
