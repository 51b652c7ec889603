//! Node keys: X25519, made at every start and every rotation, only ever in memory (DESIGN §2).

use rand_core::Rng;
use std::fmt;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// A node's private key agreement key. Zeroized when dropped; deliberately neither `Clone` nor serializable.
pub struct NodeKey {
    secret: StaticSecret,
    public: [u8; 32],
}

impl NodeKey {
    /// A new key; `rng` must be cryptographically secure.
    pub fn generate(rng: &mut (impl Rng + ?Sized)) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self::from_bytes(*bytes)
    }

    /// The key with this private scalar (clamped when used, RFC 7748 §5): for vectors and simulations.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let secret = StaticSecret::from(*bytes);
        let public = PublicKey::from(&secret).to_bytes();
        Self { secret, public }
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// X25519 with the other side's public key (RFC 7748 §6.1).
    ///
    /// # Errors
    /// [`WeakKey`] when the shared secret is all zero: `theirs` is of small order, and the secret no secret.
    pub fn agree(&self, theirs: &[u8; 32]) -> Result<Zeroizing<[u8; 32]>, WeakKey> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*theirs));
        if !shared.was_contributory() {
            return Err(WeakKey);
        }
        Ok(Zeroizing::new(shared.to_bytes()))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").field("public", &hex::encode(self.public)).finish_non_exhaustive()
    }
}

/// A public key of small order, under which every agreement gives zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node key is weak (all-zero shared secret)")]
pub struct WeakKey;

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> [u8; 32] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// RFC 7748 §6.1.
    #[test]
    fn rfc_7748_diffie_hellman() {
        let alice = NodeKey::from_bytes(unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
        let bob = NodeKey::from_bytes(unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(alice.public(), unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
        assert_eq!(bob.public(), unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let shared = unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(*alice.agree(&bob.public()).unwrap(), shared);
        assert_eq!(*bob.agree(&alice.public()).unwrap(), shared);
    }

    #[test]
    fn small_order_public_keys_are_refused() {
        let key = NodeKey::from_bytes([0x42; 32]);
        // The points of order 1, 2, 4 and 8, and their non-canonical encodings (curve25519, "small-order points").
        for weak in [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0100000000000000000000000000000000000000000000000000000000000000",
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ] {
            assert_eq!(key.agree(&unhex(weak)).map(|_| ()), Err(WeakKey), "{weak}");
            let mut high_bit = unhex(weak);
            high_bit[31] |= 0x80;
            assert_eq!(key.agree(&high_bit).map(|_| ()), Err(WeakKey), "{weak} with the high bit");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", NodeKey::from_bytes([0xab; 32])).contains("abab"));
    }
}
