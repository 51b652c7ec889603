//! Machine keys: a device's lasting Ed25519 identity (specification §3.1).

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use rand_core::Rng;
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// A machine's private key. Zeroized when dropped; `Debug` shows the public half's fingerprint only.
pub struct MachineKey(SigningKey);

impl MachineKey {
    /// The key whose RFC 8032 seed this is.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        Self(SigningKey::from_bytes(&seed))
    }

    /// A new key; `rng` must be cryptographically secure.
    pub fn generate(rng: &mut (impl Rng + ?Sized)) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut());
        Self(SigningKey::from_bytes(&seed))
    }

    /// The RFC 8032 seed, for the key file.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> MachinePublic {
        MachinePublic(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` (plain Ed25519, RFC 8032). Callers sign only messages that begin with a domain of their own:
    /// key statements and [`crate::challenge`]s.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for MachineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MachineKey").field(&self.public()).finish()
    }
}

/// A machine's public key: who it is. Any 32 bytes can be held; only those of a good key verify anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachinePublic(pub [u8; 32]);

impl MachinePublic {
    /// Verifies strictly: no malleable signatures, no small-order keys or points (`verify_strict`).
    ///
    /// # Errors
    /// [`BadSignature`] for a signature that is not 64 bytes, does not verify, or a key that is none.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = Signature::from_slice(signature).map_err(|_| BadSignature)?;
        key.verify_strict(message, &signature).map_err(|_| BadSignature)
    }

    /// `sha256:` and the lower-case hex SHA-256 of the key, as in tokens and on screens (specification §4.2).
    pub fn fingerprint(&self) -> String {
        format!("sha256:{}", hex::encode(crate::sha256(&self.0)))
    }
}

/// Lower-case hex of the key.
impl fmt::Display for MachinePublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for MachinePublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachinePublic({self})")
    }
}

impl FromStr for MachinePublic {
    type Err = BadMachinePublic;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut key = [0; 32];
        hex::decode_to_slice(text, &mut key).map_err(|_| BadMachinePublic)?;
        Ok(Self(key))
    }
}

/// A signature does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("signature verification failed")]
pub struct BadSignature;

/// A text is no machine key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a machine key is 64 hexadecimal digits")]
pub struct BadMachinePublic;

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// RFC 8032 §7.1, tests 1 to 3: seed, public key, message, signature.
    #[test]
    fn rfc_8032_vectors() {
        let vectors = [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            ),
            (
                "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
                "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
                "af82",
                "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
            ),
        ];
        for (seed, public, message, signature) in vectors {
            let key = MachineKey::from_seed(unhex(seed));
            let message = hex::decode(message).unwrap();
            assert_eq!(key.public(), public.parse().unwrap());
            assert_eq!(key.sign(&message), unhex(signature));
            assert_eq!(key.public().verify(&message, &unhex::<64>(signature)), Ok(()));
            assert_eq!(*key.seed(), unhex(seed));
        }
    }

    #[test]
    fn small_order_keys_verify_nothing() {
        // The neutral element as key and as R, S = 0: a lax verifier takes this for any message.
        let neutral = unhex("0100000000000000000000000000000000000000000000000000000000000000");
        let mut forged = [0; 64];
        forged[0] = 1;
        assert_eq!(MachinePublic(neutral).verify(b"anything", &forged), Err(BadSignature));
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let key = MachineKey::from_seed([7; 32]);
        let good = key.sign(b"message");
        for bit in 0..512 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.public().verify(b"message", &bad), Err(BadSignature), "bit {bit}");
        }
        for len in 0..64 {
            assert_eq!(key.public().verify(b"message", &good[..len]), Err(BadSignature));
        }
        assert_eq!(key.public().verify(b"massage", &good), Err(BadSignature));
        assert_eq!(MachineKey::from_seed([8; 32]).public().verify(b"message", &good), Err(BadSignature));
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = MachineKey::from_seed([0xab; 32]);
        assert_eq!(format!("{key:?}"), format!("MachineKey(MachinePublic({}))", key.public()));
        assert!(!format!("{key:?}").contains("abab"));
    }

    #[test]
    fn fingerprint_is_the_hash_of_the_raw_key() {
        // printf '\x00%.0s' {1..32} | sha256sum
        assert_eq!(
            MachinePublic([0; 32]).fingerprint(),
            "sha256:66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"
        );
        assert_eq!("00".repeat(31).parse::<MachinePublic>(), Err(BadMachinePublic));
        assert_eq!("zz".repeat(32).parse::<MachinePublic>(), Err(BadMachinePublic));
    }
}
