//! How other relays and the controller are reached: TLS, certificates, and which addresses are not dialled.

use anyhow::{Context as _, Result};
use edgelink_net::tls::{self, ClientTls, Pin};
use edgelink_net::ws::{AddressFilter, Dial, DialError, Origins, WebSocket, dial};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// How a relay reaches other relays.
#[derive(Debug)]
pub struct MeshDialler {
    /// Relays on origins of their own.
    relay: Dial,
    /// The controller's built-in relay, on the origin at which the controller is dialled.
    controller: Option<ToController>,
}

/// How a relay reaches its controller, or whichever of several is the active one.
#[derive(Clone, Debug)]
pub struct ToController {
    /// Where they are.
    pub(crate) origins: Origins,
    /// Of the server channel.
    pub(crate) path: String,
    /// Trust, sizes, limits; no URL.
    pub(crate) how: Dial,
}

impl MeshDialler {
    /// Other relays are trusted by the CAs of `ca_file`, or the system's.
    ///
    /// `allow_plain`: whether `ws://` may be dialled, as behind a proxy that ends TLS. `allow_local`: whether relays may
    /// be at loopback and link-local addresses (DESIGN §9).
    ///
    /// # Errors
    /// When `ca_file` cannot be used.
    pub fn new(ca_file: Option<PathBuf>, allow_plain: bool, allow_local: bool) -> Result<Self> {
        let tls = tls::client_config(&ClientTls { ca_file, ..ClientTls::default() })?;
        let address_filter = (!allow_local).then(|| Arc::new(is_global_enough) as AddressFilter);
        let relay = Dial { allow_plain, address_filter, ..Dial::new(String::new(), tls) };
        Ok(Self { relay, controller: None })
    }

    /// The same for a relay that dials its controller in this way.
    #[must_use]
    pub fn with_controller(self, controller: ToController) -> Self {
        Self { controller: Some(controller), ..self }
    }

    pub(crate) async fn dial(&self, url: &str, path: &str) -> Result<WebSocket, DialError> {
        match &self.controller {
            Some(controller) if url.is_empty() => {
                let how = Dial { max_message: edgelink_net::ws::MAX_MESSAGE, ..controller.how.clone() };
                controller.origins.dial(&how, path).await.map(|(ws, _)| ws)
            }
            // Without a controller to dial an empty URL is no URL, and the error says so.
            _ => dial(&Dial { url: url.to_owned(), ..self.relay.clone() }).await,
        }
    }
}

/// How the controller is dialled: trusted by `pin`, or by the CAs of `ca_file`, or the system's. `allow_local`: other
/// controllers that it names may be at loopback and link-local addresses.
pub(crate) fn controller(
    url: &edgelink_config::WsUrl,
    ca_file: Option<PathBuf>,
    pin: Option<Pin>,
    allow_local: bool,
) -> Result<ToController> {
    let tls = tls::client_config(&ClientTls { ca_file, pin, ..ClientTls::default() })
        .context("the controller's certificates")?;
    let how =
        Dial { allow_plain: !url.is_tls(), max_message: crate::uplink::MAX_MESSAGE, ..Dial::new(String::new(), tls) };
    let filter = (!allow_local).then(|| Arc::new(is_global_enough) as AddressFilter);
    Ok(ToController { origins: Origins::new(url.origin(), filter), path: url.path().to_owned(), how })
}

/// Addresses that come from the controller must not lead into this host or its links (DESIGN §9).
fn is_global_enough(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast()),
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_this_host_and_its_links_are_not_dialled() {
        for bad in ["127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "::ffff:127.0.0.1", "ff02::1"]
        {
            assert!(!is_global_enough(bad.parse().unwrap()), "{bad}");
        }
        for good in ["192.0.2.1", "10.0.0.1", "2001:db8::1"] {
            assert!(is_global_enough(good.parse().unwrap()), "{good}");
        }
    }
}
