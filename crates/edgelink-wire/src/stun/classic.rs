//! Binding as clients of RFC 3489 ask for it: 128 random bits where newer ones have the cookie and 96, addresses in
//! clear. RFC 5389 §12.2 tells how such clients are served. Only a server needs it: our own client asks as of today.

use super::binding::{Writer, change_flags};
use super::{BINDING, Class, HEADER_LEN, MAGIC_COOKIE, attribute, split};
use std::net::SocketAddr;

/// The longest response: three IPv6 addresses.
pub const MAX_CLASSIC_RESPONSE: usize = HEADER_LEN + 3 * (4 + 20);

/// What such a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassicRequest {
    /// 128 random bits.
    pub transaction: [u8; 16],
    /// Answer from the server's other address.
    pub change_ip: bool,
    /// Answer from the server's other port.
    pub change_port: bool,
}

impl ClassicRequest {
    /// Reads a whole datagram. `None`: it is none, or it has attributes other than CHANGE-REQUEST; among them is
    /// RESPONSE-ADDRESS, which asks to send the answer to somebody else.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let (&[t0, t1, l0, l1, transaction @ ..], mut rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
        let (ty, len) = (u16::from_be_bytes([t0, t1]), usize::from(u16::from_be_bytes([l0, l1])));
        if ty != Class::Request.with_method(BINDING) || len != rest.len() {
            return None;
        }
        if transaction.first_chunk() == Some(&MAGIC_COOKIE.to_be_bytes()) {
            return None;
        }
        let mut change = 0;
        while !rest.is_empty() {
            let (ty, value, after) = split(rest)?;
            let (attribute::CHANGE_REQUEST, &[a, b, c, d]) = (ty, value) else { return None };
            change = u32::from_be_bytes([a, b, c, d]);
            rest = after;
        }
        let (change_ip, change_port) = change_flags(change);
        Some(Self { transaction, change_ip, change_port })
    }
}

/// What it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassicResponse {
    /// That of the request.
    pub transaction: [u8; 16],
    /// The client's address as the server saw it.
    pub mapped: SocketAddr,
    /// The address that the response comes from.
    pub source: Option<SocketAddr>,
    /// The server's other address with its other port.
    pub changed: Option<SocketAddr>,
}

impl ClassicResponse {
    /// The datagram and its length.
    pub fn encode(&self) -> ([u8; MAX_CLASSIC_RESPONSE], usize) {
        let mut datagram = [0; MAX_CLASSIC_RESPONSE];
        let mut writer = Writer::with_id(&mut datagram, Class::Success, self.transaction);
        let addresses = [
            (attribute::MAPPED_ADDRESS, Some(self.mapped)),
            (attribute::SOURCE_ADDRESS, self.source),
            (attribute::CHANGED_ADDRESS, self.changed),
        ];
        for (ty, address) in addresses {
            if let Some(address) = address {
                writer.address(ty, address);
            }
        }
        let len = writer.finish(false);
        (datagram, len)
    }
}
