//! Binding requests and responses (RFC 8489 §3.3, RFC 5780 §6 and §7).

use super::{
    BINDING, Class, FINGERPRINT_LEN, FIRST_OPTIONAL, HEADER_LEN, MAGIC_COOKIE, Message, StunError, TransactionId,
    attribute, fingerprint,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest Binding request that [`Request::encode`] makes: CHANGE-REQUEST and FINGERPRINT.
pub const MAX_REQUEST: usize = HEADER_LEN + 8 + FINGERPRINT_LEN;
/// The longest response that this module makes: four IPv6 addresses and FINGERPRINT.
pub const MAX_RESPONSE: usize = HEADER_LEN + 4 * (4 + 20) + FINGERPRINT_LEN;
/// So many unknown attributes are remembered of one request; the others go unnamed in the answer.
pub const MAX_UNKNOWN: usize = 32;

const CHANGE_IP: u32 = 4;
const CHANGE_PORT: u32 = 2;

/// The comprehension-required attributes that a server without authentication knows and ignores in a request.
const IGNORED_IN_REQUESTS: [u16; 11] = [
    attribute::MAPPED_ADDRESS,
    attribute::USERNAME,
    attribute::MESSAGE_INTEGRITY,
    attribute::ERROR_CODE,
    attribute::UNKNOWN_ATTRIBUTES,
    attribute::REALM,
    attribute::NONCE,
    attribute::MESSAGE_INTEGRITY_SHA256,
    attribute::PASSWORD_ALGORITHM,
    attribute::USERHASH,
    attribute::XOR_MAPPED_ADDRESS,
];

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// 96 random bits, fresh for each request.
    pub transaction: TransactionId,
    /// Answer from the server's other address (CHANGE-REQUEST).
    pub change_ip: bool,
    /// Answer from the server's other port (CHANGE-REQUEST).
    pub change_port: bool,
    /// With a FINGERPRINT; the answer has one too then.
    pub fingerprint: bool,
}

impl Request {
    /// The datagram and its length. CHANGE-REQUEST is left out when nothing is to change.
    pub fn encode(&self) -> ([u8; MAX_REQUEST], usize) {
        let mut datagram = [0; MAX_REQUEST];
        let mut writer = Writer::new(&mut datagram, Class::Request, self.transaction);
        let change = if self.change_ip { CHANGE_IP } else { 0 } | if self.change_port { CHANGE_PORT } else { 0 };
        if change != 0 {
            writer.put(attribute::CHANGE_REQUEST, &change.to_be_bytes());
        }
        let len = writer.finish(self.fingerprint);
        (datagram, len)
    }

    /// Reads a request as a server does that neither authenticates nor offers RESPONSE-PORT and PADDING. Unknown
    /// comprehension-required attributes are not an error here: they are listed, to be answered with 420.
    ///
    /// # Errors
    /// [`StunError::UnexpectedType`] unless it is a Binding request; [`StunError::BadAttribute`] for a CHANGE-REQUEST of a
    /// wrong length, to be answered with 400.
    pub fn parse(message: &Message<'_>) -> Result<(Self, Unknown), StunError> {
        if (message.class, message.method) != (Class::Request, BINDING) {
            return Err(StunError::UnexpectedType);
        }
        let mut unknown = Unknown::default();
        for (ty, _) in message.attributes() {
            if ty < FIRST_OPTIONAL && ty != attribute::CHANGE_REQUEST && !IGNORED_IN_REQUESTS.contains(&ty) {
                unknown.push(ty);
            }
        }
        let change = match message.attribute(attribute::CHANGE_REQUEST) {
            None => 0,
            Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
            Some(_) => return Err(StunError::BadAttribute(attribute::CHANGE_REQUEST)),
        };
        let (change_ip, change_port) = change_flags(change);
        let (transaction, fingerprint) = (message.transaction, message.fingerprint);
        let request = Self { transaction, change_ip, change_port, fingerprint };
        Ok((request, unknown))
    }
}

/// What CHANGE-REQUEST asks for: another address, another port.
pub(super) fn change_flags(value: u32) -> (bool, bool) {
    (value & CHANGE_IP != 0, value & CHANGE_PORT != 0)
}

/// Attribute types of a message that its reader does not know; at most [`MAX_UNKNOWN`], each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unknown {
    types: [u16; MAX_UNKNOWN],
    len: usize,
}

impl Unknown {
    /// Only this one.
    pub fn only(ty: u16) -> Self {
        let mut unknown = Self::default();
        unknown.push(ty);
        unknown
    }

    /// In the order of their first appearance.
    pub fn types(&self) -> &[u16] {
        self.types.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, ty: u16) {
        if self.types().contains(&ty) {
            return;
        }
        if let Some(slot) = self.types.get_mut(self.len) {
            *slot = ty;
            self.len += 1;
        }
    }
}

/// What a server found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Success {
    /// The client's address as the server saw it.
    pub mapped: SocketAddr,
    /// The address that the response comes from (RFC 5780).
    pub origin: Option<SocketAddr>,
    /// The server's other address with its other port; only a server that has both names it (RFC 5780).
    pub other: Option<SocketAddr>,
}

/// Why a server refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 300 to 699; 400 is a bad request, 420 one with unknown attributes.
    pub code: u16,
    /// With 420: which.
    pub unknown: Unknown,
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// That of the request.
    pub transaction: TransactionId,
    /// What became of it.
    pub result: Result<Success, Refusal>,
    /// With a FINGERPRINT.
    pub fingerprint: bool,
}

impl Response {
    /// The datagram and its length. A success names the address twice, as MAPPED-ADDRESS too, only when it has
    /// [`Success::other`]: RFC 5780 §6.1 wants both, RFC 8489 wants XOR-MAPPED-ADDRESS, and no byte more than needed goes
    /// to an address that may be forged. A refusal has no reason phrase for the same reason.
    pub fn encode(&self) -> ([u8; MAX_RESPONSE], usize) {
        let mut datagram = [0; MAX_RESPONSE];
        let class = if self.result.is_ok() { Class::Success } else { Class::Error };
        let mut writer = Writer::new(&mut datagram, class, self.transaction);
        match &self.result {
            Ok(success) => {
                writer.address(attribute::XOR_MAPPED_ADDRESS, xored(success.mapped, self.transaction));
                if success.other.is_some() {
                    writer.address(attribute::MAPPED_ADDRESS, success.mapped);
                }
                for (ty, address) in
                    [(attribute::RESPONSE_ORIGIN, success.origin), (attribute::OTHER_ADDRESS, success.other)]
                {
                    if let Some(address) = address {
                        writer.address(ty, address);
                    }
                }
            }
            Err(refusal) => {
                let [class, number] = [refusal.code / 100 % 8, refusal.code % 100].map(|part| part as u8);
                writer.put(attribute::ERROR_CODE, &[0, 0, class, number]);
                let types = refusal.unknown.types();
                if !types.is_empty() {
                    let mut value = [0; 2 * MAX_UNKNOWN];
                    for (room, ty) in value.chunks_exact_mut(2).zip(types) {
                        room.copy_from_slice(&ty.to_be_bytes());
                    }
                    writer.put(attribute::UNKNOWN_ATTRIBUTES, value.get(..2 * types.len()).unwrap_or_default());
                }
            }
        }
        let len = writer.finish(self.fingerprint);
        (datagram, len)
    }

    /// Reads a response as a client does (RFC 8489 §6.3.3, §6.3.4). The caller compares the transaction. Servers of RFC
    /// 3489 that know no XOR-MAPPED-ADDRESS are understood as well.
    ///
    /// # Errors
    /// [`StunError::UnexpectedType`] unless it is a Binding response; otherwise the transaction has failed:
    /// [`StunError::UnknownAttribute`], [`StunError::BadAttribute`], [`StunError::Missing`].
    pub fn parse(message: &Message<'_>) -> Result<Self, StunError> {
        if message.method != BINDING {
            return Err(StunError::UnexpectedType);
        }
        let result = match message.class {
            Class::Success => Ok(Self::success(message)?),
            Class::Error => Err(Self::refusal(message)?),
            Class::Request | Class::Indication => return Err(StunError::UnexpectedType),
        };
        Ok(Self { transaction: message.transaction, result, fingerprint: message.fingerprint })
    }

    fn success(message: &Message<'_>) -> Result<Success, StunError> {
        let known = |ty: &u16| IGNORED_IN_REQUESTS.contains(ty) || *ty >= FIRST_OPTIONAL;
        if let Some((ty, _)) = message.attributes().find(|(ty, _)| !known(ty)) {
            return Err(StunError::UnknownAttribute(ty));
        }
        let address = |ty| {
            let read = |value| read_address(value).ok_or(StunError::BadAttribute(ty));
            message.attribute(ty).map(read).transpose()
        };
        let mapped = match address(attribute::XOR_MAPPED_ADDRESS)? {
            Some(address) => xored(address, message.transaction),
            None => address(attribute::MAPPED_ADDRESS)?.ok_or(StunError::Missing(attribute::XOR_MAPPED_ADDRESS))?,
        };
        Ok(Success { mapped, origin: address(attribute::RESPONSE_ORIGIN)?, other: address(attribute::OTHER_ADDRESS)? })
    }

    fn refusal(message: &Message<'_>) -> Result<Refusal, StunError> {
        let value = message.attribute(attribute::ERROR_CODE).ok_or(StunError::Missing(attribute::ERROR_CODE))?;
        let code = match value {
            [_, _, class, number, ..] if (3..7).contains(&(class & 7)) && *number < 100 => {
                u16::from(class & 7) * 100 + u16::from(*number)
            }
            _ => return Err(StunError::BadAttribute(attribute::ERROR_CODE)),
        };
        let mut unknown = Unknown::default();
        let listed = message.attribute(attribute::UNKNOWN_ATTRIBUTES).unwrap_or_default();
        for ty in listed.chunks_exact(2) {
            if let &[high, low] = ty {
                unknown.push(u16::from_be_bytes([high, low]));
            }
        }
        Ok(Refusal { code, unknown })
    }
}

/// XOR-MAPPED-ADDRESS from MAPPED-ADDRESS, and back: so that NATs which rewrite addresses in payloads find none
/// (RFC 8489 §14.2).
fn xored(address: SocketAddr, transaction: TransactionId) -> SocketAddr {
    let port = address.port() ^ (MAGIC_COOKIE >> 16) as u16;
    let ip = match address.ip() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() ^ MAGIC_COOKIE).into(),
        IpAddr::V6(ip) => {
            let transaction = transaction.0.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte));
            Ipv6Addr::from_bits(ip.to_bits() ^ (u128::from(MAGIC_COOKIE) << 96 | transaction)).into()
        }
    };
    SocketAddr::new(ip, port)
}

fn read_address(value: &[u8]) -> Option<SocketAddr> {
    let (&[_, family, p0, p1], ip) = value.split_first_chunk()?;
    let ip = match family {
        1 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        2 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([p0, p1])))
}

/// Writes into a buffer that has room for the largest message of its kind, which the constants above add up.
pub(super) struct Writer<'a> {
    datagram: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    fn new(datagram: &'a mut [u8], class: Class, transaction: TransactionId) -> Self {
        let mut id = [0; 16];
        let (cookie, rest) = id.split_at_mut(4);
        cookie.copy_from_slice(&MAGIC_COOKIE.to_be_bytes());
        rest.copy_from_slice(&transaction.0);
        Self::with_id(datagram, class, id)
    }

    /// Cookie and transaction, or what RFC 3489 has in their place.
    pub(super) fn with_id(datagram: &'a mut [u8], class: Class, id: [u8; 16]) -> Self {
        let mut writer = Self { datagram, len: 0 };
        writer.append(&class.with_method(BINDING).to_be_bytes());
        writer.append(&[0; 2]);
        writer.append(&id);
        writer
    }

    /// An attribute with its padding.
    fn put(&mut self, ty: u16, value: &[u8]) {
        self.append(&ty.to_be_bytes());
        self.append(&(value.len() as u16).to_be_bytes());
        self.append(value);
        self.append([0; 3].get(..self.len.next_multiple_of(4) - self.len).unwrap_or_default());
    }

    pub(super) fn address(&mut self, ty: u16, address: SocketAddr) {
        let mut value = [0; 20];
        let [p0, p1] = address.port().to_be_bytes();
        let len = match address.ip() {
            IpAddr::V4(ip) => {
                value[..4].copy_from_slice(&[0, 1, p0, p1]);
                value[4..8].copy_from_slice(&ip.octets());
                8
            }
            IpAddr::V6(ip) => {
                value[..4].copy_from_slice(&[0, 2, p0, p1]);
                value[4..].copy_from_slice(&ip.octets());
                20
            }
        };
        self.put(ty, value.get(..len).unwrap_or_default());
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some(room) = self.datagram.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    /// Fills the length field in, FINGERPRINT last, and tells the message's length.
    pub(super) fn finish(mut self, with_fingerprint: bool) -> usize {
        let len = self.len + if with_fingerprint { FINGERPRINT_LEN } else { 0 };
        if let Some(field) = self.datagram.get_mut(2..4) {
            field.copy_from_slice(&((len - HEADER_LEN) as u16).to_be_bytes());
        }
        if with_fingerprint {
            let crc = fingerprint(self.datagram.get(..self.len).unwrap_or_default());
            self.put(attribute::FINGERPRINT, &crc.to_be_bytes());
        }
        self.len
    }
}

// The longest refusal fits too.
const _: () = assert!(HEADER_LEN + 8 + 4 + 2 * MAX_UNKNOWN + FINGERPRINT_LEN <= MAX_RESPONSE);
