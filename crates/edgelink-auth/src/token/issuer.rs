//! The controller's side: makes every kind of token, and verifies those that come back to it.

use super::jwt::{self, Signer, Verifier};
use super::keys::Configured;
use super::{
    AdminClaims, Algorithm, AuthClaims, KeyError, MeshClaims, RelayClaims, RelayVerifier, ServerClaims, TokenError,
    TokenKeys,
};
use crate::MachineKey;
use edgelink_model::ServerId;
use jsonwebtoken::{DecodingKey, EncodingKey};
use std::fmt;
use zeroize::Zeroizing;

/// Makes and verifies tokens at the controller. `Debug` shows the algorithm only.
pub struct Issuer {
    /// Auth and admin tokens.
    own: Signer,
    own_verifier: Verifier,
    /// Relay tokens.
    relay: Signer,
    /// Server and mesh tokens: RELAY_AUTH_KEY.
    relay_auth: Signer,
    relay_auth_verifier: Verifier,
    relay_key: Zeroizing<Vec<u8>>,
    relay_auth_pub: [u8; 32],
}

impl Issuer {
    /// An issuer with these keys.
    pub fn new(keys: &TokenKeys) -> Self {
        let generated = &keys.generated;
        let (relay_auth, relay_auth_verifier, relay_auth_pub) = ed25519(&generated.relay_auth_seed);
        let (own, own_verifier, relay, relay_key) = match &keys.configured {
            Configured::EdDsa => {
                let (own, verifier, public) = ed25519(&generated.signing_seed);
                (own, verifier, ed25519(&generated.signing_seed).0, public.to_vec())
            }
            Configured::Hs256(secret) => {
                let secret = secret.as_ref().map_or(generated.relay_secret.as_slice(), |secret| secret);
                let (own, verifier) = hs256(&generated.internal_secret);
                (own, verifier, hs256(secret).0, secret.to_vec())
            }
            Configured::Rs256 { private, public } => {
                let signer = || Signer::new(Algorithm::Rs256, EncodingKey::from_rsa_der(private));
                let verifier = Verifier::new(Algorithm::Rs256, DecodingKey::from_rsa_der(public));
                (signer(), verifier, signer(), public.clone())
            }
        };
        let relay_key = Zeroizing::new(relay_key);
        Self { own, own_verifier, relay, relay_auth, relay_auth_verifier, relay_key, relay_auth_pub }
    }

    /// The installation's algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.own_verifier.algorithm()
    }

    /// A node's token for the controller.
    ///
    /// # Errors
    /// [`TokenError::Signing`], as for all tokens.
    pub fn auth(&self, claims: &AuthClaims) -> Result<String, TokenError> {
        self.own.sign(claims, jwt::CONTROLLER)
    }

    /// A node's token for relays.
    ///
    /// # Errors
    /// [`TokenError::Signing`].
    pub fn relay(&self, claims: &RelayClaims) -> Result<String, TokenError> {
        self.relay.sign(claims, jwt::RELAY)
    }

    /// An administrator's token.
    ///
    /// # Errors
    /// [`TokenError::Signing`].
    pub fn admin(&self, claims: &AdminClaims) -> Result<String, TokenError> {
        self.own.sign(claims, jwt::API)
    }

    /// A stand-alone server's token.
    ///
    /// # Errors
    /// [`TokenError::Signing`].
    pub fn server(&self, claims: &ServerClaims) -> Result<String, TokenError> {
        self.relay_auth.sign(claims, jwt::CONTROLLER)
    }

    /// A relay's token for dialling the relay `dialled`, and no other.
    ///
    /// # Errors
    /// [`TokenError::Signing`].
    pub fn mesh(&self, claims: &MeshClaims, dialled: ServerId) -> Result<String, TokenError> {
        self.relay_auth.sign(claims, &mesh_audience(dialled))
    }

    /// Verifies a node's token for the controller at `now_unix` (seconds). Revocation is the caller's to check.
    ///
    /// # Errors
    /// [`TokenError`], as for all tokens.
    pub fn verify_auth(&self, token: &str, now_unix: u64) -> Result<AuthClaims, TokenError> {
        self.own_verifier.verify(token, jwt::CONTROLLER, now_unix, 0)
    }

    /// Verifies an administrator's token. Revocation is the caller's to check.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify_admin(&self, token: &str, now_unix: u64) -> Result<AdminClaims, TokenError> {
        self.own_verifier.verify(token, jwt::API, now_unix, 0)
    }

    /// Verifies a stand-alone server's token. Revocation is the caller's to check.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify_server(&self, token: &str, now_unix: u64) -> Result<ServerClaims, TokenError> {
        self.relay_auth_verifier.verify(token, jwt::CONTROLLER, now_unix, 0)
    }

    /// What relays need to verify tokens: algorithm name, key (with HS256 the shared secret, else a public key), and
    /// RELAY_AUTH_KEY's public half. The fields of `RelayKeys` in the protocol.
    pub fn relay_keys(&self) -> (String, Vec<u8>, Vec<u8>) {
        (self.algorithm().name().to_owned(), self.relay_key.to_vec(), self.relay_auth_pub.to_vec())
    }

    /// The verifier that a relay builds from [`Issuer::relay_keys`], for the built-in relay.
    ///
    /// # Errors
    /// None for keys that [`TokenKeys`] accepted.
    pub fn relay_verifier(&self) -> Result<RelayVerifier, KeyError> {
        RelayVerifier::from_parts(self.algorithm().name(), &self.relay_key, &self.relay_auth_pub)
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}

/// The audience of mesh tokens for one relay.
pub(super) fn mesh_audience(dialled: ServerId) -> String {
    format!("{}/{dialled}", jwt::RELAY)
}

fn ed25519(seed: &[u8; 32]) -> (Signer, Verifier, [u8; 32]) {
    /// PKCS#8 (RFC 8410 §7) around a 32-byte Ed25519 seed: all that comes before the seed.
    const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let der = Zeroizing::new([PKCS8.as_slice(), seed].concat());
    let public = MachineKey::from_seed(*seed).public().0;
    (
        Signer::new(Algorithm::EdDsa, EncodingKey::from_ed_der(&der)),
        Verifier::new(Algorithm::EdDsa, DecodingKey::from_ed_der(&public)),
        public,
    )
}

fn hs256(secret: &[u8]) -> (Signer, Verifier) {
    (
        Signer::new(Algorithm::Hs256, EncodingKey::from_secret(secret)),
        Verifier::new(Algorithm::Hs256, DecodingKey::from_secret(secret)),
    )
}
