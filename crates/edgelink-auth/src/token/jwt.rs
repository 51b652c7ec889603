//! Signing and verifying one kind of JWT under one algorithm.

use super::{
    AdminClaims, Algorithm, AuthClaims, LEEWAY_SECS, MAX_TOKEN_LEN, MeshClaims, RelayClaims, ServerClaims, TokenError,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;

pub(super) const CONTROLLER: &str = "edgelink-controller";
pub(super) const API: &str = "edgelink-api";
pub(super) const RELAY: &str = "edgelink-relay";

/// What every kind of claims has.
pub(super) trait Claims: Serialize + DeserializeOwned {
    const TYPE: &'static str;
    fn issued_and_expires(&self) -> (u64, u64);
}

macro_rules! claims {
    ($($claims:ident = $ty:literal;)*) => {
        $(impl Claims for $claims {
            const TYPE: &'static str = $ty;
            fn issued_and_expires(&self) -> (u64, u64) {
                (self.iat, self.exp)
            }
        })*
    };
}

claims! {
    AuthClaims = "auth";
    RelayClaims = "relay";
    AdminClaims = "admin";
    ServerClaims = "server";
    MeshClaims = "mesh";
}

#[derive(Serialize)]
struct Outgoing<'a, C> {
    #[serde(rename = "type")]
    ty: &'a str,
    aud: &'a str,
    #[serde(flatten)]
    claims: &'a C,
}

#[derive(Deserialize)]
struct Incoming<C> {
    #[serde(rename = "type")]
    ty: String,
    aud: String,
    #[serde(default)]
    nbf: Option<u64>,
    #[serde(flatten)]
    claims: C,
}

/// Makes tokens of one algorithm.
pub(super) struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    pub(super) fn new(algorithm: Algorithm, key: EncodingKey) -> Self {
        Self { algorithm, key }
    }

    pub(super) fn sign<C: Claims>(&self, claims: &C, aud: &str) -> Result<String, TokenError> {
        let header = Header::new(jwa(self.algorithm));
        jsonwebtoken::encode(&header, &Outgoing { ty: C::TYPE, aud, claims }, &self.key)
            .map_err(|_| TokenError::Signing)
    }
}

/// What a token of the right type says, unverified.
pub(super) fn peek<C: Claims>(token: &str) -> Option<C> {
    if token.len() > MAX_TOKEN_LEN {
        return None;
    }
    let body = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let incoming: Incoming<C> = serde_json::from_slice(&body).ok()?;
    (incoming.ty == C::TYPE).then_some(incoming.claims)
}

/// Verifies tokens of one algorithm. The key fixes the algorithm; the token's header has no say.
#[derive(Clone)]
pub(super) struct Verifier {
    algorithm: Algorithm,
    key: DecodingKey,
    validation: Validation,
}

impl Verifier {
    pub(super) fn new(algorithm: Algorithm, key: DecodingKey) -> Self {
        let mut validation = Validation::new(jwa(algorithm));
        // The library would read the system's clock; times and audience are checked below.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Self { algorithm, key, validation }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn verify<C: Claims>(
        &self,
        token: &str,
        aud: &str,
        now_unix: u64,
        grace_secs: u64,
    ) -> Result<C, TokenError> {
        if token.len() > MAX_TOKEN_LEN {
            return Err(TokenError::Invalid);
        }
        let token = jsonwebtoken::decode::<Incoming<C>>(token, &self.key, &self.validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        if token.ty != C::TYPE || token.aud != aud {
            return Err(TokenError::Invalid);
        }
        let (iat, exp) = token.claims.issued_and_expires();
        let latest = now_unix.saturating_add(LEEWAY_SECS);
        if iat > latest || token.nbf.is_some_and(|nbf| nbf > latest) {
            return Err(TokenError::NotYetValid);
        }
        if now_unix >= exp.saturating_add(LEEWAY_SECS).saturating_add(grace_secs) {
            return Err(TokenError::Expired);
        }
        Ok(token.claims)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

fn jwa(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
    }
}
