//! What a machine key signs to prove itself (DESIGN §3). Each message begins with a domain of its own, so that nothing
//! that a relay or controller asks to be signed can be taken for another message or for a key statement.

use crate::MachinePublic;
use edgelink_model::ServerId;

/// Begins every control-channel proof.
pub const CONTROL_DOMAIN: &[u8; 25] = b"wss-mesh control auth v1\0";
/// Begins every relay proof.
pub const RELAY_DOMAIN: &[u8; 23] = b"wss-mesh relay auth v1\0";

/// The message for `/ws/control`: domain ‖ u16 length and `host` ‖ challenge ‖ machine key.
///
/// `host` is the controller's name as dialled, lower-case, without port; the controller compares it with its own, so
/// that a proof shown to one host is worth nothing at another. Names beyond 65,535 bytes are cut (no host has one).
pub fn control_message(host: &str, challenge: &[u8; 32], machine_pub: &MachinePublic) -> Vec<u8> {
    let len = u16::try_from(host.len()).unwrap_or(u16::MAX);
    let host = host.as_bytes().iter().take(usize::from(len));
    let mut message = Vec::with_capacity(CONTROL_DOMAIN.len() + 2 + host.len() + 64);
    message.extend(CONTROL_DOMAIN);
    message.extend(len.to_be_bytes());
    message.extend(host);
    message.extend(challenge);
    message.extend(machine_pub.0);
    message
}

/// The message for `/ws/data`: domain ‖ server id ‖ SHA-256(relay token) ‖ challenge.
///
/// `server_id` is the relay that the node meant to dial, not the one that the other side says it is: a token seen by
/// one relay is then useless to it at another.
pub fn relay_message(server_id: ServerId, relay_token: &str, challenge: &[u8; 32]) -> Vec<u8> {
    let mut message = Vec::with_capacity(RELAY_DOMAIN.len() + 4 + 64);
    message.extend(RELAY_DOMAIN);
    message.extend(server_id.0.to_be_bytes());
    message.extend(crate::sha256(relay_token.as_bytes()));
    message.extend(challenge);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_message_bytes() {
        let message = control_message("c.example", &[0xcc; 32], &MachinePublic([0xee; 32]));
        let want = format!(
            "{}0009{}{}{}",
            hex::encode("wss-mesh control auth v1\0"),
            hex::encode("c.example"),
            "cc".repeat(32),
            "ee".repeat(32)
        );
        assert_eq!(hex::encode(message), want);
    }

    #[test]
    fn relay_message_bytes() {
        // printf token | sha256sum
        let token_hash = "3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0";
        let want = format!("{}00000102{token_hash}{}", hex::encode("wss-mesh relay auth v1\0"), "cc".repeat(32));
        assert_eq!(hex::encode(relay_message(ServerId(0x102), "token", &[0xcc; 32])), want);
    }

    #[test]
    fn an_endless_host_is_cut_not_wrapped() {
        let message = control_message(&"h".repeat(70_000), &[0; 32], &MachinePublic([0; 32]));
        assert_eq!(message.len(), CONTROL_DOMAIN.len() + 2 + 65_535 + 64);
        assert_eq!(message[CONTROL_DOMAIN.len()..][..2], [0xff, 0xff]);
    }
}
