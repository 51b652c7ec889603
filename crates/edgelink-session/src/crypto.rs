//! Keys from two statements, and the AEAD (DESIGN §2).

use crate::{AES_REKEY_AFTER, REKEY_AFTER};
use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use edgelink_auth::SignedStatement;
use edgelink_model::{NetworkId, NodeId, capabilities};
use edgelink_wire::data::{AAD_LEN, TAG_LEN};
use zeroize::Zeroizing;

/// Salt of the key derivation.
const SALT: &[u8] = b"wss-mesh-session";
const KEY_LEN: usize = 32;
const PREFIX_LEN: usize = 4;

/// First bytes of every nonce under a key; with the sender they name the key.
pub(crate) type Prefix = [u8; PREFIX_LEN];

/// The library refused: a length that cannot be, or a tag that does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CryptoError;

impl From<aws_lc_rs::error::Unspecified> for CryptoError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self
    }
}

/// The AEAD of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    ChaCha20Poly1305,
    Aes256Gcm,
}

impl Suite {
    /// What two statements' capabilities agree on: AES-256-GCM when both announce it. Both sides hash both statements
    /// into the keys, so that nobody in between can talk them down, and one key never serves two ciphers.
    pub(crate) fn negotiated(ours: u32, theirs: u32) -> Self {
        if ours & theirs & capabilities::AES_256_GCM != 0 { Self::Aes256Gcm } else { Self::ChaCha20Poly1305 }
    }

    /// Send counter from which a new key is asked for. GCM's bound is on blocks under a key: 2^32 frames of 64 KiB keep
    /// an attacker's advantage below 2^-40 (2^88 pairs of blocks among 2^128 values).
    pub(crate) fn rekey_after(self) -> u64 {
        match self {
            Self::ChaCha20Poly1305 => REKEY_AFTER,
            Self::Aes256Gcm => AES_REKEY_AFTER,
        }
    }
}

/// One direction's key. The library zeroizes it when it is freed.
pub(crate) struct Cipher(LessSafeKey);

impl Cipher {
    pub(crate) fn new(suite: Suite, key: &[u8]) -> Result<Self, CryptoError> {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
            Suite::Aes256Gcm => &AES_256_GCM,
        };
        Ok(Self(LessSafeKey::new(UnboundKey::new(algorithm, key)?)))
    }

    /// Encrypts `text` in place and returns the tag.
    pub(crate) fn seal(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; TAG_LEN], CryptoError> {
        let tag = self.0.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), text)?;
        tag.as_ref().try_into().map_err(|_| CryptoError)
    }

    /// Decrypts `text ‖ tag` in place and returns the plaintext. After an error the buffer's content is worthless.
    pub(crate) fn open<'t>(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        text: &'t mut [u8],
    ) -> Result<&'t mut [u8], CryptoError> {
        Ok(self.0.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad), text)?)
    }
}

/// `prefix ‖ counter`, big-endian.
pub(crate) fn nonce(prefix: Prefix, counter: u64) -> [u8; NONCE_LEN] {
    let [p0, p1, p2, p3] = prefix;
    let [c0, c1, c2, c3, c4, c5, c6, c7] = counter.to_be_bytes();
    [p0, p1, p2, p3, c0, c1, c2, c3, c4, c5, c6, c7]
}

/// The parts of a nonce.
pub(crate) fn split_nonce(nonce: [u8; NONCE_LEN]) -> (Prefix, u64) {
    let [p0, p1, p2, p3, c0, c1, c2, c3, c4, c5, c6, c7] = nonce;
    ([p0, p1, p2, p3], u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]))
}

/// HKDF-SHA256 (RFC 5869), extract and expand.
pub(crate) fn hkdf_sha256(salt: &[u8], ikm: &[u8], info: &[&[u8]], okm: &mut [u8]) -> Result<(), CryptoError> {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(ikm);
    Ok(prk.expand(info, Len(okm.len()))?.fill(okm)?)
}

/// Key and nonce prefix of one direction.
pub(crate) struct DirectionKey {
    pub(crate) key: Zeroizing<[u8; KEY_LEN]>,
    pub(crate) prefix: Prefix,
}

/// OKM = HKDF(X25519 ‖ psk, salt, src ‖ dst ‖ network ‖ SHA-256(src statement) ‖ SHA-256(dst statement)).
pub(crate) fn direction_key(
    shared: &[u8; 32],
    psk: Option<&[u8; 32]>,
    network: NetworkId,
    src: &SignedStatement,
    dst: &SignedStatement,
) -> Result<DirectionKey, CryptoError> {
    let id = |node: NodeId| node.0.to_be_bytes();
    let mut ikm = Zeroizing::new([0; 64]);
    let (first, second) = ikm.split_at_mut(32);
    first.copy_from_slice(shared);
    let ikm: &[u8] = match psk {
        Some(psk) => {
            second.copy_from_slice(psk);
            ikm.as_slice()
        }
        None => shared,
    };
    let info: [&[u8]; 5] = [
        &id(src.statement().node_id),
        &id(dst.statement().node_id),
        &network.0.to_be_bytes(),
        &src.hash(),
        &dst.hash(),
    ];
    let mut okm = Zeroizing::new([0; KEY_LEN + PREFIX_LEN]);
    hkdf_sha256(SALT, ikm, &info, okm.as_mut())?;
    let (key, prefix) = okm.split_first_chunk::<KEY_LEN>().ok_or(CryptoError)?;
    Ok(DirectionKey { key: Zeroizing::new(*key), prefix: prefix.try_into().map_err(|_| CryptoError)? })
}

const _: () = assert!(AAD_LEN == 11 && TAG_LEN == 16 && NONCE_LEN == PREFIX_LEN + 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonce_is_prefix_then_counter() {
        let nonce = nonce([0xdf, 0xe2, 0x6a, 0x5f], 0x0102_0304_0506_0708);
        assert_eq!(hex::encode(nonce), "dfe26a5f0102030405060708");
        assert_eq!(split_nonce(nonce), ([0xdf, 0xe2, 0x6a, 0x5f], 0x0102_0304_0506_0708));
    }

    #[test]
    fn aes_needs_both() {
        let all = u32::MAX;
        let without = all & !capabilities::AES_256_GCM;
        for (ours, theirs, suite) in [
            (0, 0, Suite::ChaCha20Poly1305),
            (all, without, Suite::ChaCha20Poly1305),
            (without, all, Suite::ChaCha20Poly1305),
            (2, 3, Suite::Aes256Gcm),
            (all, all, Suite::Aes256Gcm),
        ] {
            assert_eq!(Suite::negotiated(ours, theirs), suite, "{ours:x} {theirs:x}");
        }
    }
}
