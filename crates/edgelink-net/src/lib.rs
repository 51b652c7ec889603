//! The network adapters of EdgeLink: TLS, WebSocket, HTTP proxies, and the server's front door.
//!
//! Everything works on port 443 alone (DESIGN §9): plain RFC 6455 upgrades by GET over HTTP/1.1, TLS 1.2 accepted and 1.3
//! preferred, no permessage-deflate, no redirects, no user info in URLs.
//!
//! - [`tls`] makes rustls configurations: own CA, native roots, or an SPKI pin.
//! - [`ws`] dials ([`ws::dial`]) and accepts ([`ws::upgrade_response`], [`ws::accept`]) WebSockets.
//! - [`server`] listens, does TLS and HTTP, and limits unauthenticated connections.
//! - [`plain`] is a connection without either, between neighbours.
//! - [`tcp`] and [`conn`] are the sockets below; [`pace`] says how much to write to one at once.
//!
//! Nothing here knows a frame of the WSS-Mesh protocol, a token, or a node.
#![deny(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "adapters may read the clock")]

pub mod conn;
pub mod pace;
pub mod plain;
mod proxy;
pub mod server;
mod socket;
mod stream;
pub mod tcp;
pub mod tls;
pub mod ws;
