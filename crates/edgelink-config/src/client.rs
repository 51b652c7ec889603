//! The client's configuration (specification §12.3, DESIGN §8).

use crate::error::ConfigError;
use crate::networks::{self, NetworkConfig};
use crate::schema::section;
use crate::secrets;
use crate::values::{Headers, InterfaceName, Pin, ProxyUrl, Seconds, SessionCipher, Trust, WsUrl};
use crate::{Config, Env, Program};
use edgelink_api::Secret;
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

section! {
    /// A node.
    pub struct ClientConfig {
        /// The controller's URL.
        controller: Option<WsUrl> = None, eg r#""wss://controller.example.com""#;
        /// Pre-auth key with which the node joins by itself (`edgelink-ctl token generate --type auth-key`).
        /// Left out: the node waits for `edgelink-ctl node authorize`.
        auth_key: Option<Secret> = None, eg r#""CHANGE_ME""#;
        /// File that holds the pre-auth key.
        auth_key_file: Option<PathBuf> = None, eg r#""/etc/edgelink/auth.key""#;
        /// Certificates to trust beside the system's, PEM.
        ca_file: Option<PathBuf> = None, eg r#""/etc/edgelink/ca.pem""#;
        /// The only public key to accept from the controller, as it prints it.
        pin: Option<Pin> = None, eg r#""sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=""#;
        /// The node's name. Left out: the system's host name.
        hostname: Option<String> = None, eg r#""my-laptop""#;
        /// Directory for what must outlive a restart. Left out: /var/lib/edgelink/client, or under the user's home.
        state_dir: Option<PathBuf> = None, eg r#""/var/lib/edgelink/client""#;
        /// File of the machine key, the node's identity. Left out: keys.json in the state directory.
        key_file: Option<PathBuf> = None, eg r#""~/.wss-mesh/keys.json""#;
        /// Whom to believe about other nodes' machine keys: "tofu" (the first one stays), "controller" (it may
        /// change them) or { "pinned": ["sha256:…"] }.
        trust: Trust = Trust::Tofu;
        /// Cipher between nodes: "auto" (AES-256-GCM where both processors have instructions for it, else
        /// ChaCha20-Poly1305) or "chacha20-poly1305".
        session_cipher: SessionCipher = SessionCipher::Auto;
        /// Pre-shared key, 32 bytes in base64 (`openssl rand -base64 32`), mixed into the session keys: only nodes with the
        /// same one can talk to each other, whatever the controller says. Left out: none.
        psk: Option<Secret> = None, eg r#""CHANGE_ME""#;
        /// File that holds the pre-shared key; read when the network is joined.
        psk_file: Option<PathBuf> = None, eg r#""/etc/edgelink/psk""#;
        /// The virtual interface.
        tun: TunSection = TunSection::default();
        /// Subnets behind this node to offer to the others.
        advertise_routes: Vec<AdvertisedRoute> = Vec::new(), eg r#"[{ "cidr": "192.168.1.0/24", "priority": 100, "weight": 50 }]"#;
        /// Use the subnets that other nodes offer.
        accept_routes: bool = true;
        /// Which gateways to prefer, and which routes not to use.
        routes: RoutesSection = RoutesSection::default();
        /// How this node serves its subnets.
        gateway_mode: GatewayMode = GatewayMode::default();
        /// Direct connections.
        p2p: P2p = P2p::default();
        /// Connections through relays.
        relay: RelaySection = RelaySection::default();
        /// HTTP proxy to the controller and relays. Left out: HTTPS_PROXY is used.
        proxy: Option<ProxyUrl> = None, eg r#""http://proxy.example.com:3128""#;
        /// Server name to show in the TLS handshake instead of the URL's host.
        sni: Option<String> = None, eg r#""cdn.example.com""#;
        /// Extra HTTP headers for the controller and relays.
        headers: Headers = Headers::default(), eg r#"{ "x-token": "CHANGE_ME" }"#;
        /// Further networks of this host, of this controller or others.
        networks: Vec<NetworkConfig> = Vec::new(), eg r#"[{ "name": "lab", "controller": "wss://lab.example.com" }]"#;
    }
}

section! {
    /// `tun`.
    pub struct TunSection {
        /// Interface name, at most 15 characters.
        name: InterfaceName = InterfaceName::default_of("wss-mesh0");
        /// Largest packet in bytes.
        mtu: u16 = 1400, in 1280..=9000;
    }
}

section! {
    /// One subnet behind this node (specification §7.1).
    pub struct AdvertisedRoute requires ["cidr"] {
        /// The subnet.
        cidr: IpNet = IpNet::V4(Ipv4Net::default());
        /// Higher wins.
        priority: u16 = 100;
        /// Share among gateways of equal priority.
        weight: u16 = 100, in 1..=65535;
    }
}

section! {
    /// `gateway_mode`.
    pub struct GatewayMode {
        /// Forward packets between the mesh and the subnets of `advertise_routes`.
        enabled: bool = false;
        /// Rewrite the source address, so that hosts in the subnet need no route back.
        snat: bool = true;
        /// Interface of the subnet. Left out: as the routing table says.
        lan_interface: Option<InterfaceName> = None, eg r#""eth0""#;
        /// Address and TCP port of a host in the subnet that tells whether this side lives: while it neither accepts nor
        /// refuses connections, other gateways take over. Left out: nobody looks.
        health_target: Option<SocketAddr> = None, eg r#""192.168.1.1:80""#;
    }
}

section! {
    /// `routes`: each entry names a prefix, a gateway (name or id), or both.
    pub struct RoutesSection {
        /// Gateways to use before others, whatever their priority, while they live.
        prefer: Vec<RouteChoice> = Vec::new(), eg r#"[{ "gateway": "gw2" }]"#;
        /// Routes not to use.
        deny: Vec<RouteChoice> = Vec::new(), eg r#"[{ "cidr": "0.0.0.0/0" }]"#;
    }
}

section! {
    /// Routes by prefix, gateway, or both.
    pub struct RouteChoice {
        /// Exactly this prefix.
        cidr: Option<IpNet> = None, eg r#""192.168.1.0/24""#;
        /// The gateway's name or id.
        gateway: Option<String> = None, eg r#""gw2""#;
    }
}

section! {
    /// `p2p`.
    pub struct P2p {
        /// Try direct connections. false: not one UDP packet is sent.
        enabled: bool = true;
        /// UDP port, and TCP port on private addresses for neighbours between whom UDP does not get through. 0: any that is free.
        port: u16 = 0;
        /// Seconds between packets that keep NAT mappings open.
        keepalive_interval_seconds: Seconds = Seconds(25.0), in Seconds(1.0)..=Seconds(55.0);
    }
}

section! {
    /// `relay` of the client.
    pub struct RelaySection {
        /// Keep a connection to every relay. false: to the nearest three.
        connect_all: bool = true;
        /// Seconds between two reports of latencies to the controller.
        latency_report_interval_seconds: Seconds = Seconds(30.0), in Seconds(1.0)..=Seconds(3600.0);
        /// Dial relays and STUN servers at loopback and link-local addresses that come from the controller too.
        allow_local_addresses: bool = false;
    }
}

impl ClientConfig {
    /// `state_dir`, or the default one.
    pub fn state_dir(&self, env: &Env, root: bool) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| crate::default_client_state_dir(env, root))
    }

    /// The machine key's file.
    pub fn key_file(&self, env: &Env, root: bool) -> PathBuf {
        self.key_file.clone().unwrap_or_else(|| self.state_dir(env, root).join("keys.json"))
    }
}

impl Config for ClientConfig {
    const PROGRAM: Program = Program::Client;

    fn validate(&self) -> Result<Vec<String>, ConfigError> {
        let unusable = |key, problem: &str| Err(ConfigError::Unusable { key, problem: problem.into() });
        if self.auth_key.is_some() && self.auth_key_file.is_some() {
            return unusable("auth_key_file", "give `auth_key` or `auth_key_file`, not both");
        }
        if self.auth_key.as_ref().is_some_and(|key| secrets::is_placeholder(key.expose())) {
            let problem = "this is a placeholder; get a key with `edgelink-ctl token generate --type auth-key`";
            return unusable("auth_key", problem);
        }
        if self.psk.is_some() && self.psk_file.is_some() {
            return unusable("psk_file", "give `psk` or `psk_file`, not both");
        }
        if let Some(problem) = self.psk.as_ref().and_then(|psk| secrets::parse_psk(psk.expose()).err()) {
            return unusable("psk", &problem);
        }
        if self.hostname.as_ref().is_some_and(|name| name.trim().is_empty() || name.len() > 255) {
            return unusable("hostname", "it must have 1 to 255 bytes");
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.advertise_routes.iter().find(|route| !seen.insert(route.cidr)) {
            return unusable("advertise_routes", &format!("{} is listed twice", twice.cidr));
        }
        for route in &self.advertise_routes {
            if let Err(bad) = edgelink_model::cidr::check(route.cidr, &[]) {
                return unusable("advertise_routes", &bad.to_string());
            }
        }
        for (key, choices) in [("routes.prefer", &self.routes.prefer), ("routes.deny", &self.routes.deny)] {
            if choices.iter().any(|choice| choice.cidr.is_none() && choice.gateway.is_none()) {
                return unusable(key, "each entry needs `cidr`, `gateway` or both");
            }
        }
        let mut warnings = Vec::new();
        if self.gateway_mode.enabled && self.advertise_routes.is_empty() {
            warnings.push("gateway_mode is enabled but advertise_routes is empty, so it serves nothing".to_owned());
        }
        if self.controller.as_ref().is_some_and(|url| !url.is_tls()) && self.pin.is_some() {
            return unusable("pin", "a ws:// controller shows no certificate; use wss:// or remove the pin");
        }
        networks::validate(self, &mut warnings)?;
        Ok(warnings)
    }
}
