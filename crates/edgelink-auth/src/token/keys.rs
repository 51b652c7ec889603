//! The controller's token keys: made once, kept in its database; a secret or RSA key may come from the configuration.

use super::Algorithm;
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::EncodingKey;
use rand_core::Rng;
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The shortest HS256 secret, in bytes (RFC 7518 §3.2).
pub(super) const MIN_SECRET_LEN: usize = 32;

const VERSION: u32 = 1;

/// All keys under which the controller makes tokens. Zeroized when dropped; `Debug` shows the algorithm only.
///
/// The generated ones are kept in the controller's settings table ([`TokenKeys::serialise`]); an HS256 secret or RSA
/// key from the configuration is laid over them at each start and is not stored.
pub struct TokenKeys {
    pub(super) generated: Generated,
    pub(super) configured: Configured,
}

/// Made once per installation; 32 random bytes each.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Generated {
    /// EdDSA: seed of the key for auth, admin and relay tokens.
    pub(super) signing_seed: [u8; 32],
    /// HS256 without a configured secret: for relay tokens; relays get it.
    pub(super) relay_secret: [u8; 32],
    /// HS256: for auth and admin tokens; never leaves the controller.
    pub(super) internal_secret: [u8; 32],
    /// Seed of RELAY_AUTH_KEY; never leaves the controller.
    pub(super) relay_auth_seed: [u8; 32],
}

pub(super) enum Configured {
    EdDsa,
    Hs256(Option<Zeroizing<Vec<u8>>>),
    /// PKCS#1 DER and the public half in PKCS#1 DER.
    Rs256 {
        private: Zeroizing<Vec<u8>>,
        public: Vec<u8>,
    },
}

impl TokenKeys {
    /// New keys, to be used with EdDSA; `rng` must be cryptographically secure.
    pub fn generate(rng: &mut (impl Rng + ?Sized)) -> Self {
        let mut generated = Generated {
            signing_seed: [0; 32],
            relay_secret: [0; 32],
            internal_secret: [0; 32],
            relay_auth_seed: [0; 32],
        };
        for key in [
            &mut generated.signing_seed,
            &mut generated.relay_secret,
            &mut generated.internal_secret,
            &mut generated.relay_auth_seed,
        ] {
            rng.fill_bytes(key);
        }
        Self { generated, configured: Configured::EdDsa }
    }

    /// The same keys with HS256, and the configured secret for relay tokens, or a generated one.
    ///
    /// # Errors
    /// [`KeyError::Placeholder`], [`KeyError::ShortSecret`].
    pub fn with_hs256(mut self, secret: Option<&str>) -> Result<Self, KeyError> {
        let secret = secret.map(check_secret).transpose()?;
        self.configured = Configured::Hs256(secret);
        Ok(self)
    }

    /// The same keys with RS256 and a private key in PEM (PKCS#8 or PKCS#1), of 2048 to 8192 bits.
    ///
    /// # Errors
    /// [`KeyError::BadRsaKey`].
    pub fn with_rs256(mut self, private_pem: &str) -> Result<Self, KeyError> {
        let key = EncodingKey::from_rsa_pem(private_pem.as_bytes()).map_err(|_| KeyError::BadRsaKey)?;
        // Refuses public keys, keys that contradict themselves, and bad sizes.
        let pair = aws_lc_rs::rsa::KeyPair::from_der(key.as_bytes()).map_err(|_| KeyError::BadRsaKey)?;
        let public = pair.public_key().as_ref().to_vec();
        self.configured = Configured::Rs256 { private: Zeroizing::new(key.as_bytes().to_vec()), public };
        Ok(self)
    }

    /// The algorithm that these keys are used with.
    pub fn algorithm(&self) -> Algorithm {
        match self.configured {
            Configured::EdDsa => Algorithm::EdDsa,
            Configured::Hs256(_) => Algorithm::Hs256,
            Configured::Rs256 { .. } => Algorithm::Rs256,
        }
    }

    /// The generated keys as JSON, for the controller's settings table. It is a secret.
    pub fn serialise(&self) -> Zeroizing<String> {
        let key = |bytes: &[u8; 32]| STANDARD.encode(bytes);
        let stored = Stored {
            version: VERSION,
            signing_seed: key(&self.generated.signing_seed),
            relay_secret: key(&self.generated.relay_secret),
            internal_secret: key(&self.generated.internal_secret),
            relay_auth_seed: key(&self.generated.relay_auth_seed),
        };
        // Serialising strings into memory cannot fail.
        Zeroizing::new(serde_json::to_string(&stored).unwrap_or_default())
    }

    /// Keys from [`TokenKeys::serialise`], to be used with EdDSA until told otherwise.
    ///
    /// # Errors
    /// [`KeyError::Damaged`]; it does not quote the text.
    pub fn deserialise(text: &str) -> Result<Self, KeyError> {
        let stored: Stored = serde_json::from_str(text).map_err(|_| KeyError::Damaged)?;
        if stored.version != VERSION {
            return Err(KeyError::Damaged);
        }
        let key = |text: &str| -> Result<[u8; 32], KeyError> {
            let mut room = Zeroizing::new([0; 33]);
            match STANDARD.decode_slice(text, room.as_mut()) {
                Ok(32) => room.first_chunk().copied().ok_or(KeyError::Damaged),
                _ => Err(KeyError::Damaged),
            }
        };
        let generated = Generated {
            signing_seed: key(&stored.signing_seed)?,
            relay_secret: key(&stored.relay_secret)?,
            internal_secret: key(&stored.internal_secret)?,
            relay_auth_seed: key(&stored.relay_auth_seed)?,
        };
        Ok(Self { generated, configured: Configured::EdDsa })
    }
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKeys").field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    signing_seed: String,
    relay_secret: String,
    internal_secret: String,
    relay_auth_seed: String,
}

/// Refuses secrets that an attacker tries first.
fn check_secret(secret: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let folded = Zeroizing::new(secret.to_ascii_lowercase().replace('-', "_"));
    if ["change_me", "changeme", "your_secret", "same_secret_as_controller"].iter().any(|p| folded.contains(p)) {
        return Err(KeyError::Placeholder);
    }
    if secret.len() < MIN_SECRET_LEN {
        return Err(KeyError::ShortSecret { len: secret.len() });
    }
    // "aaaa…" is long enough and still no secret.
    if secret.bytes().collect::<std::collections::BTreeSet<_>>().len() < 8 {
        return Err(KeyError::Placeholder);
    }
    Ok(Zeroizing::new(secret.as_bytes().to_vec()))
}

/// Why a token key is refused; the texts say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The example's secret, or one like it.
    #[error(
        "jwt.secret is a placeholder; make a real one with `openssl rand -base64 48`, or remove it to let the controller make one"
    )]
    Placeholder,
    /// Below 32 bytes.
    #[error("jwt.secret has {len} bytes and needs at least 32; make one with `openssl rand -base64 48`")]
    ShortSecret {
        /// Its length in bytes.
        len: usize,
    },
    /// Not a private RSA key in PEM, or of a size outside 2048 to 8192 bits.
    #[error(
        "the RS256 key is not a private RSA key in PEM of 2048 to 8192 bits; make one with `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072`"
    )]
    BadRsaKey,
    /// A verification key is not what its algorithm needs.
    #[error("the {0} verification key is malformed")]
    BadPublicKey(Algorithm),
    /// No such algorithm.
    #[error("unknown token algorithm {0:?}; use EdDSA, HS256 or RS256")]
    UnknownAlgorithm(String),
    /// The stored keys cannot be read.
    #[error("the token keys in the database are damaged; restore the database from a backup")]
    Damaged,
}
