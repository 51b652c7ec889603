//! A relay's side: verifies the tokens that nodes and other relays show.

use super::issuer::mesh_audience;
use super::jwt::{self, Verifier};
use super::keys::MIN_SECRET_LEN;
use super::{Algorithm, KeyError, MeshClaims, RelayClaims, TokenError};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use edgelink_model::ServerId;
use jsonwebtoken::DecodingKey;

/// What a relay holds to verify tokens; the fields of `RelayKeys` in the protocol. `Debug` shows the algorithms only.
#[derive(Clone, Debug)]
pub struct RelayVerifier {
    relay: Verifier,
    mesh: Verifier,
}

impl RelayVerifier {
    /// From the algorithm's name, its key (EdDSA: 32 raw bytes; RS256: public key in DER; HS256: the secret), and
    /// RELAY_AUTH_KEY's public half.
    ///
    /// # Errors
    /// [`KeyError::UnknownAlgorithm`], [`KeyError::BadPublicKey`], [`KeyError::ShortSecret`].
    pub fn from_parts(algorithm: &str, key: &[u8], relay_auth_pub: &[u8]) -> Result<Self, KeyError> {
        let algorithm: Algorithm = algorithm.parse()?;
        let decoding = match algorithm {
            Algorithm::EdDsa => ed25519(key)?,
            Algorithm::Hs256 if key.len() < MIN_SECRET_LEN => return Err(KeyError::ShortSecret { len: key.len() }),
            Algorithm::Hs256 => DecodingKey::from_secret(key),
            Algorithm::Rs256 => {
                ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
                    .map_err(|_| KeyError::BadPublicKey(algorithm))?;
                DecodingKey::from_rsa_der(key)
            }
        };
        let mesh = Verifier::new(Algorithm::EdDsa, ed25519(relay_auth_pub)?);
        Ok(Self { relay: Verifier::new(algorithm, decoding), mesh })
    }

    /// Verifies a node's relay token at the relay `my_id` and the time `now_unix` (seconds). `grace_secs` is how long
    /// after its expiry a token is still honoured: 0, or up to a day while the controller is away (DESIGN §3).
    ///
    /// Revocation ([`super::Revocations`]) and the signature of the key in `cnf` are the caller's to check.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(
        &self,
        token: &str,
        my_id: ServerId,
        now_unix: u64,
        grace_secs: u64,
    ) -> Result<RelayClaims, TokenError> {
        let claims: RelayClaims = self.relay.verify(token, jwt::RELAY, now_unix, grace_secs)?;
        if !claims.allowed_relays.contains(&my_id) {
            return Err(TokenError::OtherRelay);
        }
        Ok(claims)
    }

    /// Verifies another relay's mesh token; its audience must be this relay. Revocation is the caller's to check.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify_mesh(
        &self,
        token: &str,
        my_id: ServerId,
        now_unix: u64,
        grace_secs: u64,
    ) -> Result<MeshClaims, TokenError> {
        self.mesh.verify(token, &mesh_audience(my_id), now_unix, grace_secs)
    }
}

fn ed25519(key: &[u8]) -> Result<DecodingKey, KeyError> {
    let bad = KeyError::BadPublicKey(Algorithm::EdDsa);
    let bytes: &[u8; 32] = key.try_into().map_err(|_| bad.clone())?;
    match ed25519_dalek::VerifyingKey::from_bytes(bytes) {
        Ok(point) if !point.is_weak() => Ok(DecodingKey::from_ed_der(key)),
        _ => Err(bad),
    }
}
