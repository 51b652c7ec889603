//! `edgelink-server`'s configuration (specification §12.2, DESIGN §8).

use crate::error::ConfigError;
use crate::schema::section;
use crate::secrets;
use crate::settings::{self, Changed, Takes};
use crate::stun::{self, Stun};
use crate::values::{Algorithm, Hours, HttpPath, Pin, WsUrl};
use crate::{Config, Env, Program, Tls};
use edgelink_api::Secret;
use ipnet::IpNet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

section! {
    /// A stand-alone relay and/or STUN server.
    pub struct ServerConfig {
        /// The controller that it belongs to.
        controller: ServerController = ServerController::default();
        /// How relay_tokens are verified. Left out: as the controller says at registration.
        jwt: Option<ServerJwt> = None, eg r#"{ "algorithm": "EdDSA", "public_key": "/etc/edgelink/jwt.pub.pem" }"#;
        /// The relay.
        relay: RelayListener = RelayListener::default();
        /// The STUN server; needs a real public address, no CDN.
        stun: Stun = Stun::default();
        /// Links to other relays.
        mesh: Mesh = Mesh::default();
        /// Directory for what must outlive a restart. Left out: /var/lib/edgelink/server, or under the user's home.
        state_dir: Option<PathBuf> = None, eg r#""/var/lib/edgelink/server""#;
    }
}

section! {
    /// `controller` of the server.
    pub struct ServerController {
        /// Its URL.
        url: Option<WsUrl> = None, eg r#""wss://controller.example.com/ws/server""#;
        /// The server_token that `edgelink-ctl server add` printed.
        token: Option<Secret> = None, eg r#""CHANGE_ME""#;
        /// Certificates to trust beside the system's, PEM.
        ca_file: Option<PathBuf> = None, eg r#""/etc/edgelink/ca.pem""#;
        /// The only public key to accept from the controller, as it prints it.
        pin: Option<Pin> = None, eg r#""sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=""#;
    }
}

section! {
    /// `jwt` of the server.
    pub struct ServerJwt {
        /// HS256's secret, the controller's.
        secret: Option<Secret> = None;
        /// The controller's public key for RS256 or EdDSA: a PEM file.
        public_key: Option<PathBuf> = None;
        /// The signature: "EdDSA", "RS256" or "HS256". Left out: HS256 with a secret, EdDSA without.
        algorithm: Option<Algorithm> = None;
    }
}

impl ServerJwt {
    /// The algorithm that is meant.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or(if self.secret.is_some() { Algorithm::Hs256 } else { Algorithm::EdDsa })
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let unusable = |key, problem: &str| Err(ConfigError::Unusable { key, problem: problem.into() });
        match (self.algorithm(), &self.secret) {
            (Algorithm::Hs256, Some(secret)) => secrets::check_jwt_secret("jwt.secret", secret)?,
            (_, Some(_)) => {
                return unusable("jwt.secret", "only HS256 uses a secret; remove it or set `jwt.algorithm`");
            }
            _ => {}
        }
        if self.algorithm() == Algorithm::Hs256 && self.public_key.is_some() {
            return unusable("jwt.public_key", "HS256 has no public key; use `jwt.secret` or another algorithm");
        }
        Ok(())
    }
}

section! {
    /// `relay` of the server.
    pub struct RelayListener {
        /// Whether it runs.
        enabled: bool = true;
        /// Address and port of HTTPS and WSS.
        listen: SocketAddr = (Ipv4Addr::UNSPECIFIED, 443).into();
        /// Path of the nodes' data channel.
        ws_data: HttpPath = HttpPath::default_of("/ws/data");
        /// Path of other relays' mesh channel.
        ws_mesh: HttpPath = HttpPath::default_of("/ws/mesh");
        /// Certificate and key. Left out: the server makes its own certificate.
        /// null: plain HTTP, for a proxy in front that ends TLS.
        tls: Tls = Tls::OwnCertificate, eg r#"{ "cert": "/etc/edgelink/cert.pem", "key": "/etc/edgelink/key.pem" }"#;
        /// The URL at which nodes reach it. Left out: as the controller was told by `edgelink-ctl server add --url`.
        public_url: Option<WsUrl> = None, eg r#""wss://relay1.example.com/ws/data""#;
        /// Networks of the proxies and CDNs whose X-Forwarded-For is believed.
        trusted_proxies: Vec<IpNet> = Vec::new(), eg r#"["10.0.0.0/8"]"#;
        /// While the controller is away, tokens are honoured this long past their expiry, in hours.
        expired_token_grace_hours: Hours = Hours(24.0), in Hours(0.0)..=Hours(8760.0);
    }
}

section! {
    /// `mesh`.
    pub struct Mesh {
        /// Relays to link with beside those that the controller tells.
        peers: Vec<WsUrl> = Vec::new(), eg r#"["wss://relay2.example.com/ws/mesh"]"#;
        /// The URL at which other relays reach this one's mesh channel. Left out: relay.ws_mesh beside the data channel.
        public_url: Option<WsUrl> = None, eg r#""wss://relay1.example.com/ws/mesh""#;
        /// Whether other relays may be at loopback or link-local addresses, for tests on one host.
        allow_local_addresses: bool = false;
    }
}

/// Keys whose new value is in force while the server runs; the others need a restart.
const RUN_TIME: &[&str] = &["relay.tls.cert", "relay.tls.key", "relay.trusted_proxies"];

impl ServerConfig {
    /// Takes over of `new` what can change while the server runs.
    pub fn take_run_time(&mut self, new: &Self) {
        if let (Tls::Files(_), Tls::Files(_)) = (&self.relay.tls, &new.relay.tls) {
            self.relay.tls = new.relay.tls.clone();
        }
        self.relay.trusted_proxies = new.relay.trusted_proxies.clone();
    }

    /// What differs in `new`, key by key.
    pub fn changes(&self, new: &Self) -> Vec<Changed> {
        let mut changed = settings::differences(&settings::flat(self), &settings::flat(new), RUN_TIME);
        // Secrets look alike.
        let secret = |config: &Self| config.jwt.as_ref().and_then(|jwt| jwt.secret.clone());
        for (key, differs) in [
            ("controller.token", self.controller.token != new.controller.token),
            ("jwt.secret", secret(self) != secret(new)),
        ] {
            if differs && changed.iter().all(|change| change.key != key && change.key != "jwt") {
                let hidden = "\"…\"".to_owned();
                changed.push(Changed { key: key.to_owned(), from: hidden.clone(), to: hidden, takes: Takes::Restart });
            }
        }
        settings::tell_of_tls(&mut changed, "relay.tls", &self.relay.tls, &new.relay.tls);
        changed
    }

    /// `state_dir`, or the default one.
    pub fn state_dir(&self, env: &Env, root: bool) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| crate::default_server_state_dir(env, root))
    }
}

impl Config for ServerConfig {
    const PROGRAM: Program = Program::Server;

    fn validate(&self) -> Result<Vec<String>, ConfigError> {
        let unusable = |key, problem: &str| Err(ConfigError::Unusable { key, problem: problem.into() });
        if self.controller.url.is_none() {
            return unusable("controller.url", "set it, such as wss://controller.example.com/ws/server");
        }
        let make = "get one with `edgelink-ctl server add --name NAME --url URL`";
        match &self.controller.token {
            None => return unusable("controller.token", make),
            Some(token) if secrets::is_placeholder(token.expose()) => {
                return unusable("controller.token", &format!("this is a placeholder; {make}"));
            }
            Some(_) => {}
        }
        if !self.relay.enabled && !self.stun.enabled {
            return unusable("relay.enabled", "neither the relay nor STUN is enabled, so there is nothing to run");
        }
        if self.relay.ws_data == self.relay.ws_mesh {
            return unusable("relay.ws_mesh", "it must differ from relay.ws_data");
        }
        self.relay.tls.validate("relay.tls")?;
        if let Some(jwt) = &self.jwt {
            jwt.validate()?;
        }
        stun::validate(&self.stun, "stun")
    }
}
