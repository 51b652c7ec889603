//! From captured packets back to WebSocket messages: TCP put together, the upgrade skipped, masks taken off. Written from
//! RFC 9293 and RFC 6455, not from EdgeLink's own code.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use edgelink_testbed::{Captured, IpPacket};
use std::net::SocketAddr;

/// One direction of a TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Who sent it.
    pub from: SocketAddr,
    /// Who received it.
    pub to: SocketAddr,
    /// Its bytes, from the first.
    pub bytes: Vec<u8>,
}

#[derive(Default)]
struct Segments {
    /// The first byte's sequence number.
    start: Option<u32>,
    /// By distance from it.
    parts: BTreeMap<u32, Vec<u8>>,
}

const SYN: u8 = 0x02;

/// The TCP streams of a capture, each as far as it has no gap. Streams whose beginning is not in it are left out.
#[must_use]
pub fn streams(captured: &Captured) -> Vec<Stream> {
    let mut flows: BTreeMap<(SocketAddr, SocketAddr), Segments> = BTreeMap::new();
    for ip in captured.tcp().filter_map(|packet| packet.ip()) {
        let Some((from, to, seq, flags, payload)) = segment(&ip) else { continue };
        let flow = flows.entry((from, to)).or_default();
        if flags & SYN != 0 {
            *flow = Segments { start: Some(seq.wrapping_add(1)), parts: BTreeMap::new() };
        } else if let Some(start) = flow.start.filter(|_| !payload.is_empty()) {
            // Streams of a test are shorter than 2 GiB; what lies before the start is a keepalive probe.
            let at = seq.wrapping_sub(start);
            let known = flow.parts.get(&at).map_or(0, Vec::len);
            if at < 1 << 31 && payload.len() > known {
                flow.parts.insert(at, payload.to_vec());
            }
        }
    }
    flows.into_iter().filter(|(_, flow)| flow.start.is_some()).map(|((from, to), flow)| join(from, to, flow)).collect()
}

fn segment<'a>(ip: &IpPacket<'a>) -> Option<(SocketAddr, SocketAddr, u32, u8, &'a [u8])> {
    let (from, to) = ip.ports()?;
    let seq = u32::from_be_bytes(ip.transport.get(4..8)?.try_into().ok()?);
    let header = usize::from(ip.transport.get(12)? >> 4) * 4;
    let flags = *ip.transport.get(13)?;
    let payload = ip.transport.get(header..)?;
    Some((SocketAddr::new(ip.source, from), SocketAddr::new(ip.destination, to), seq, flags, payload))
}

fn join(from: SocketAddr, to: SocketAddr, flow: Segments) -> Stream {
    let mut bytes = Vec::new();
    for (at, part) in flow.parts {
        let at = at as usize;
        if at > bytes.len() {
            break;
        }
        let new = part.get(bytes.len() - at..).unwrap_or_default();
        bytes.extend_from_slice(new);
    }
    Stream { from, to, bytes }
}

impl Stream {
    /// The request line's path, or that of the request which this stream answers is not known: `None`.
    #[must_use]
    pub fn request_path(&self) -> Option<&str> {
        let line = self.bytes.split(|byte| *byte == b'\r').next()?;
        std::str::from_utf8(line).ok()?.strip_prefix("GET ")?.split(' ').next()
    }

    /// The binary messages behind the HTTP upgrade. A message cut off at the end is left out.
    ///
    /// # Errors
    ///
    /// When it is no WebSocket stream.
    pub fn binary_messages(&self) -> Result<Vec<Vec<u8>>> {
        let end = self.bytes.windows(4).position(|window| window == b"\r\n\r\n").context("no HTTP header")?;
        let mut rest = self.bytes.get(end + 4..).unwrap_or_default();
        let (mut messages, mut open): (Vec<Vec<u8>>, bool) = (Vec::new(), false);
        while let Some((frame, tail)) = websocket_frame(rest)? {
            rest = tail;
            match frame.opcode {
                0 => {
                    ensure!(open, "a continuation of nothing");
                    messages.last_mut().context("a continuation of nothing")?.extend_from_slice(&frame.payload);
                    open = !frame.fin;
                }
                2 => {
                    ensure!(!open, "a message inside a message");
                    messages.push(frame.payload);
                    open = !frame.fin;
                }
                8..=10 => {}
                opcode => bail!("WebSocket opcode {opcode}"),
            }
        }
        if open {
            messages.pop();
        }
        Ok(messages)
    }
}

struct WebSocketFrame {
    fin: bool,
    opcode: u8,
    payload: Vec<u8>,
}

/// RFC 6455 §5.2. `None`: not whole.
fn websocket_frame(bytes: &[u8]) -> Result<Option<(WebSocketFrame, &[u8])>> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    ensure!(first & 0x70 == 0, "reserved bits are set: an extension?");
    let (len, rest) = match second & 0x7f {
        126 => match rest.split_first_chunk::<2>() {
            Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((len, rest)) => (u64::from_be_bytes(*len), rest),
            None => return Ok(None),
        },
        len => (u64::from(len), rest),
    };
    let (mask, rest) = match (second & 0x80 != 0, rest.split_first_chunk::<4>()) {
        (false, _) => ([0; 4], rest),
        (true, Some((mask, rest))) => (*mask, rest),
        (true, None) => return Ok(None),
    };
    let Some((payload, rest)) = rest.split_at_checked(usize::try_from(len)?) else { return Ok(None) };
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Ok(Some((WebSocketFrame { fin: first & 0x80 != 0, opcode: first & 0x0f, payload }, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_6455_are_read() {
        let stream = |frames: &[u8]| {
            let address = "192.0.2.1:1".parse().unwrap();
            Stream { from: address, to: address, bytes: [b"HTTP/1.1 101 x\r\n\r\n", frames].concat() }
        };
        // §5.7: masked and unmasked "Hello" (as binary), fragments, a PING between.
        let masked = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(stream(&masked).binary_messages().unwrap(), [b"Hello"]);
        let parts = [0x02, 3, b'H', b'e', b'l', 0x89, 1, b'!', 0x80, 2, b'l', b'o', 0x82, 9, b'c', b'u', b't'];
        assert_eq!(stream(&parts).binary_messages().unwrap(), [b"Hello"]);
        assert!(stream(&[0xc2, 0]).binary_messages().is_err(), "compressed");
        assert_eq!(stream(&[]).binary_messages().unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn segments_are_joined_whatever_their_order() {
        let address = "192.0.2.1:1".parse().unwrap();
        let parts = [(5, "fgh"), (0, "abc"), (2, "cdefg"), (20, "lost")];
        let parts = parts.map(|(at, text)| (at, text.as_bytes().to_vec())).into();
        assert_eq!(join(address, address, Segments { start: Some(0), parts }).bytes, b"abcdefgh");
    }
}
