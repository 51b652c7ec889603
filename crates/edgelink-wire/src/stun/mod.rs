//! STUN (RFC 8489) as far as Binding needs it, with the attributes of NAT behaviour discovery (RFC 5780).
//!
//! [`Message`] reads any STUN message; [`binding`] makes and reads Binding requests and responses, for client and server
//! alike; [`classic`] serves clients of RFC 3489. Authentication (MESSAGE-INTEGRITY) is not offered: what a STUN server says about an address is only ever a
//! hint, and each address is proved by a P2P_PING of its own (DESIGN §5). ADR 0008 tells why this codec is ours.
//!
//! Nothing here allocates.

pub mod binding;
pub mod classic;

pub use crate::udp::STUN_MAGIC_COOKIE as MAGIC_COOKIE;

/// Length of a message's header: type, length, cookie, transaction id.
pub const HEADER_LEN: usize = 20;
/// The one method that this crate speaks.
pub const BINDING: u16 = 1;
/// What FINGERPRINT adds to a message, in bytes.
pub const FINGERPRINT_LEN: usize = 8;
/// Attribute types below this are *comprehension-required*: who does not know one must refuse the message (RFC 8489 §14).
pub const FIRST_OPTIONAL: u16 = 0x8000;
/// FINGERPRINT is the CRC-32 XORed with this (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Attribute types (RFC 8489 §18.3, RFC 5780 §9.1, RFC 3489 §11.2).
pub mod attribute {
    #![allow(missing_docs, reason = "the names are those of the RFCs")]
    pub const MAPPED_ADDRESS: u16 = 0x0001;
    pub const CHANGE_REQUEST: u16 = 0x0003;
    pub const SOURCE_ADDRESS: u16 = 0x0004;
    pub const CHANGED_ADDRESS: u16 = 0x0005;
    pub const USERNAME: u16 = 0x0006;
    pub const MESSAGE_INTEGRITY: u16 = 0x0008;
    pub const ERROR_CODE: u16 = 0x0009;
    pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
    pub const REALM: u16 = 0x0014;
    pub const NONCE: u16 = 0x0015;
    pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
    pub const PASSWORD_ALGORITHM: u16 = 0x001d;
    pub const USERHASH: u16 = 0x001e;
    pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
    pub const PADDING: u16 = 0x0026;
    pub const RESPONSE_PORT: u16 = 0x0027;
    pub const FINGERPRINT: u16 = 0x8028;
    pub const RESPONSE_ORIGIN: u16 = 0x802b;
    pub const OTHER_ADDRESS: u16 = 0x802c;
}

/// The 96 random bits that join a response to its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransactionId(pub [u8; 12]);

/// What a message is for (RFC 8489 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Asks for a response.
    Request,
    /// Asks for none.
    Indication,
    /// Grants a request.
    Success,
    /// Refuses a request.
    Error,
}

impl Class {
    /// The message type of this class and a method of at most 12 bits; further bits are dropped.
    pub fn with_method(self, method: u16) -> u16 {
        let class = match self {
            Self::Request => 0x0000,
            Self::Indication => 0x0010,
            Self::Success => 0x0100,
            Self::Error => 0x0110,
        };
        class | method & 0x000f | (method & 0x0070) << 1 | (method & 0x0f80) << 2
    }

    fn of(message_type: u16) -> (Self, u16) {
        let class = match message_type & 0x0110 {
            0x0000 => Self::Request,
            0x0010 => Self::Indication,
            0x0100 => Self::Success,
            _ => Self::Error,
        };
        (class, message_type & 0x000f | (message_type & 0x00e0) >> 1 | (message_type & 0x3e00) >> 2)
    }
}

/// Why a datagram is not a STUN message that can be used. The texts hold nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum StunError {
    /// No header, another cookie, or a length that is not the datagram's.
    #[error("not a STUN message")]
    Foreign,
    /// An attribute does not end inside the message, or something follows FINGERPRINT.
    #[error("malformed STUN attributes")]
    Malformed,
    /// The CRC is another one.
    #[error("the STUN message's FINGERPRINT is wrong")]
    BadFingerprint,
    /// Another class or method than the reader asks for.
    #[error("not the expected kind of STUN message")]
    UnexpectedType,
    /// An attribute with a value or length that its type does not allow.
    #[error("STUN attribute {0:#06x} has a bad value")]
    BadAttribute(u16),
    /// A comprehension-required attribute in a response that this version does not know: the transaction has failed.
    #[error("STUN attribute {0:#06x} is unknown and must not be ignored")]
    UnknownAttribute(u16),
    /// A response without the attribute that it is for.
    #[error("STUN attribute {0:#06x} is missing")]
    Missing(u16),
}

/// A well-formed STUN message. The attributes' own contents have not been looked at, but for FINGERPRINT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is for.
    pub class: Class,
    /// At most 12 bits; [`BINDING`] is 1.
    pub method: u16,
    /// Joins it to its request.
    pub transaction: TransactionId,
    /// Whether it carries a FINGERPRINT, which was right then.
    pub fingerprint: bool,
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads a whole datagram: header (RFC 8489 §5), layout of the attributes (§14), FINGERPRINT if there is one (§14.7).
    ///
    /// # Errors
    /// [`StunError::Foreign`], [`StunError::Malformed`] or [`StunError::BadFingerprint`].
    pub fn parse(datagram: &'a [u8]) -> Result<Self, StunError> {
        if !crate::udp::is_stun(datagram) {
            return Err(StunError::Foreign);
        }
        let (&[t0, t1, _, _, _, _, _, _, transaction @ ..], attributes) =
            datagram.split_first_chunk::<HEADER_LEN>().ok_or(StunError::Foreign)?;
        let (class, method) = Class::of(u16::from_be_bytes([t0, t1]));
        let mut message =
            Self { class, method, transaction: TransactionId(transaction), fingerprint: false, attributes };
        let mut rest = attributes;
        while !rest.is_empty() {
            let (ty, value, after) = split(rest).ok_or(StunError::Malformed)?;
            if ty == attribute::FINGERPRINT {
                let (&crc, []) = value.split_first_chunk().ok_or(StunError::Malformed)? else {
                    return Err(StunError::Malformed);
                };
                if !after.is_empty() {
                    return Err(StunError::Malformed);
                }
                let before = datagram.len() - FINGERPRINT_LEN;
                if u32::from_be_bytes(crc) != fingerprint(datagram.get(..before).unwrap_or_default()) {
                    return Err(StunError::BadFingerprint);
                }
                message.fingerprint = true;
            }
            rest = after;
        }
        Ok(message)
    }

    /// Types and values of the attributes in order, without padding. After a MESSAGE-INTEGRITY everything is left out
    /// but MESSAGE-INTEGRITY-SHA256 and FINGERPRINT, as RFC 8489 §14.5 and §14.6 demand.
    pub fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let (mut rest, mut covered) = (self.attributes, 0);
        std::iter::from_fn(move || {
            loop {
                let (ty, value, after) = split(rest)?;
                rest = after;
                let visible = match ty {
                    attribute::FINGERPRINT => true,
                    attribute::MESSAGE_INTEGRITY => covered < 1,
                    attribute::MESSAGE_INTEGRITY_SHA256 => covered < 2,
                    _ => covered == 0,
                };
                covered = covered.max(match ty {
                    attribute::MESSAGE_INTEGRITY => 1,
                    attribute::MESSAGE_INTEGRITY_SHA256 => 2,
                    _ => 0,
                });
                if visible {
                    return Some((ty, value));
                }
            }
        })
    }

    /// The value of the first attribute of this type; later ones of the same type count for nothing (RFC 8489 §14).
    pub fn attribute(&self, ty: u16) -> Option<&'a [u8]> {
        self.attributes().find(|(found, _)| *found == ty).map(|(_, value)| value)
    }
}

/// One attribute's type and value, and what follows its padding.
fn split(attributes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (&[t0, t1, l0, l1], rest) = attributes.split_first_chunk()?;
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    let value = rest.get(..len)?;
    Some((u16::from_be_bytes([t0, t1]), value, rest.get(len.next_multiple_of(4)..)?))
}

/// FINGERPRINT of a message whose length field already counts it, over all that goes ahead of it: CRC-32 of ITU V.42,
/// XORed (RFC 8489 §14.7). Bit by bit, because a message has a hundred bytes and servers limit their number.
fn fingerprint(before: &[u8]) -> u32 {
    let crc = before.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    !crc ^ FINGERPRINT_XOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_that_of_its_check_value() {
        assert_eq!(fingerprint(b"123456789") ^ FINGERPRINT_XOR, 0xcbf4_3926);
    }

    #[test]
    fn class_and_method_share_a_type_field() {
        assert_eq!(Class::Request.with_method(BINDING), 0x0001);
        assert_eq!(Class::Indication.with_method(BINDING), 0x0011);
        assert_eq!(Class::Success.with_method(BINDING), 0x0101);
        assert_eq!(Class::Error.with_method(BINDING), 0x0111);
        for method in 0..1 << 12 {
            for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
                let ty = class.with_method(method);
                assert!(ty < 1 << 14);
                assert_eq!(Class::of(ty), (class, method));
            }
        }
    }
}
