//! Keeps a port mapping on the router while there is a UDP socket that it can lead to: made when both are known, renewed,
//! made anew when one of them changes, removed at the end.

use super::tunnel::Tunnel;
use edgelink_api::local::PortMapping;
use edgelink_os::net::Netlink;
use edgelink_os::port_mapping::{self, DefaultRoute, Mapping, Router};
use std::cell::{Cell, RefCell};
use std::num::NonZeroU16;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A router that would not is asked again after this, or when something has changed.
const RETRY: Duration = Duration::from_secs(600);
/// The daemon's end waits for the router no longer than this.
const FAREWELL: Duration = Duration::from_secs(2);

/// What is known of the mapping.
#[derive(Default)]
pub(super) struct PortMapper {
    /// The default route by IPv4.
    route: Cell<Option<DefaultRoute>>,
    /// Route or socket may have changed.
    changed: Notify,
    mapping: RefCell<Option<Mapping>>,
    told: RefCell<PortMapping>,
}

impl PortMapper {
    /// As `edgelink netcheck` shows it.
    pub(super) fn status(&self) -> PortMapping {
        self.told.borrow().clone()
    }

    pub(super) fn set_route(&self, route: Option<DefaultRoute>) {
        if self.route.replace(route) != route {
            self.wake();
        }
    }

    /// A socket was opened or closed.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Removes the mapping, as far as the router answers; nothing makes it again.
    pub(super) async fn end(&self) {
        let mapping = self.mapping.take();
        if let Some(mapping) = mapping
            && tokio::time::timeout(FAREWELL, mapping.remove()).await.is_err()
        {
            tracing::debug!("the port mapping is left to its lease");
        }
    }

    fn tell(&self, tunnel: &Rc<Tunnel>, problem: Option<String>) {
        let mapping = self.mapping.borrow();
        let external = mapping.as_ref().map(Mapping::external);
        let protocol = mapping.as_ref().map(|mapping| mapping.protocol().name().to_owned());
        drop(mapping);
        let told = PortMapping { protocol, external, problem };
        if self.told.replace(told.clone()) == told {
            return;
        }
        match (&told.protocol, &told.problem) {
            (Some(protocol), _) => tracing::info!(protocol, "the router maps a port to this node"),
            (None, Some(problem)) => tracing::info!(problem, "no port mapping"),
            (None, None) => {}
        }
        tunnel.feed(|node, now| node.set_port_mappings(external.as_slice(), now));
    }
}

/// Runs as long as the tunnel.
pub(super) async fn run(tunnel: Rc<Tunnel>) {
    let mapper = &tunnel.port_mapper;
    // What was asked for in vain, and when to ask again.
    let mut refused: Option<(Router, NonZeroU16, Instant)> = None;
    let mut renewal = Instant::now();
    loop {
        let port = tunnel.node.borrow().direct_port().and_then(NonZeroU16::new);
        let router = mapper.route.get().and_then(|route| route.router());
        let held = mapper.mapping.borrow().as_ref().map(|mapping| (mapping.router(), mapping.port()));
        let wake_at = match (router, port) {
            (Some(router), Some(port)) if held == Some((router, port)) && Instant::now() < renewal => Some(renewal),
            (Some(router), Some(port)) => {
                let again = refused.filter(|(r, p, at)| (*r, *p) == (router, port) && Instant::now() < *at);
                match again {
                    Some((.., at)) if held.is_none() => Some(at),
                    _ => {
                        let outcome = obtain(mapper, router, port).await;
                        let now = Instant::now();
                        let (problem, at) = match outcome {
                            Ok(after) => (None, now + after),
                            Err(problem) => {
                                refused = Some((router, port, now + RETRY));
                                (Some(problem), now + RETRY)
                            }
                        };
                        renewal = at;
                        mapper.tell(&tunnel, problem);
                        Some(at)
                    }
                }
            }
            (None, Some(_)) => {
                // The former router is out of reach.
                mapper.mapping.take();
                mapper.tell(&tunnel, Some("the default route leads to no router by IPv4".to_owned()));
                None
            }
            (_, None) => {
                mapper.end().await;
                mapper.tell(&tunnel, None);
                None
            }
        };
        let sleep = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = sleep => {}
            () = mapper.changed.notified() => {}
        }
    }
}

/// Renews what there is, or asks for a mapping; returns when to renew it.
async fn obtain(mapper: &PortMapper, router: Router, port: NonZeroU16) -> Result<Duration, String> {
    let held = mapper.mapping.take();
    let renewed = match held {
        Some(held) if (held.router(), held.port()) == (router, port) => held.renew().await.ok(),
        // Another socket of ours on the same router.
        Some(held) if held.router() == router => {
            held.remove().await;
            None
        }
        _ => None,
    };
    let mapping = match renewed {
        Some(mapping) => mapping,
        None => port_mapping::map(router, port).await.map_err(|error| error.to_string())?,
    };
    tracing::debug!(external = %mapping.external(), protocol = %mapping.protocol(), "port mapping");
    let after = mapping.renew_after();
    mapper.mapping.replace(Some(mapping));
    Ok(after)
}

/// The default routes by IPv4 and IPv6, as far as the kernel tells.
pub(super) async fn default_routes(netlink: &Netlink, except: u32) -> [Option<DefaultRoute>; 2] {
    let mut found = [None; 2];
    for (v4, found) in [true, false].into_iter().zip(&mut found) {
        match netlink.default_route(v4, except).await {
            Ok(route) => *found = route,
            Err(error) => tracing::debug!(%error, "the default route is not known"),
        }
    }
    found
}
