//! Trust by key instead of by CA.

use std::{fmt, str::FromStr, sync::Arc};

use aws_lc_rs::digest;
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::validity::validity;

/// The SHA-256 hash of a certificate's SubjectPublicKeyInfo, written `sha256:` + base64.
///
/// A pin names either the server's own key or the key of a CA in the chain that the server sends:
///
/// - the server's own: its certificate must be inside its validity period; names and CAs do not matter, since nobody else
///   holds that key;
/// - a CA's: the chain up to it, all validity periods and the host name must be right as usual.
///
/// The handshake's signature proves possession of the key in both cases.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin(pub [u8; 32]);

const PREFIX: &str = "sha256:";

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Pin {
    /// The pin of a DER certificate; `None` when it is not one.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let spki = ParsedCertificate::try_from(certificate).ok()?.subject_public_key_info();
        digest::digest(&digest::SHA256, &spki).as_ref().try_into().ok().map(Self)
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64.encode(self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pin is `sha256:` and the base64 of 32 bytes, as the controller prints it at start")]
pub struct BadPin;

impl FromStr for Pin {
    type Err = BadPin;

    fn from_str(text: &str) -> Result<Self, BadPin> {
        let base64 = text.trim().strip_prefix(PREFIX).ok_or(BadPin)?;
        let bytes = BASE64.decode(base64).map_err(|_| BadPin)?;
        bytes.try_into().map(Self).map_err(|_| BadPin)
    }
}

/// Neither the server's certificate nor a CA that it sent has the pinned key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the configured pin is {expected}, but the server presented {}",
    presented.iter().map(Pin::to_string).collect::<Vec<_>>().join(", then ")
)]
pub struct PinMismatch {
    /// What the configuration says.
    pub expected: Pin,
    /// What the server sent, leaf first.
    pub presented: Vec<Pin>,
}

/// Verifies a server against a [`Pin`] instead of a set of CAs.
#[derive(Debug)]
pub(super) struct PinVerifier {
    pin: Pin,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinVerifier {
    pub(super) fn new(pin: Pin, provider: &CryptoProvider) -> Self {
        Self { pin, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = Pin::of(end_entity).ok_or(CertificateError::BadEncoding)?;
        if leaf == self.pin {
            check_validity(end_entity, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        let matches = |ca: &&CertificateDer<'_>| Pin::of(ca) == Some(self.pin);
        let Some(ca) = intermediates.iter().find(matches) else {
            let presented = std::iter::once(leaf).chain(intermediates.iter().filter_map(Pin::of)).collect();
            let mismatch = PinMismatch { expected: self.pin, presented };
            return Err(CertificateError::Other(OtherError(Arc::new(mismatch))).into());
        };
        // A trust anchor's own period is nobody's business for webpki; for us it is.
        check_validity(ca, now)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, intermediates, now, self.algorithms.all)?;
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), CertificateError> {
    let (not_before, not_after) = validity(certificate).ok_or(CertificateError::BadEncoding)?;
    let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    if now.as_secs() < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before: at(not_before) });
    }
    if now.as_secs() > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after: at(not_after) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let pin = Pin([0xa5; 32]);
        let text = "sha256:paWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaU=";
        assert_eq!(pin.to_string(), text);
        assert_eq!(text.parse(), Ok(pin));
        assert_eq!(text.trim_end_matches('=').parse(), Ok(pin), "padding is what people lose when they copy");
        for bad in ["", "sha256:", "sha256:AAAA", "sha1:paWl", &text[7..], &format!("{text}x")] {
            assert_eq!(bad.parse::<Pin>(), Err(BadPin), "{bad}");
        }
    }

    /// The pin is what OpenSSL computes: SHA-256 over the SubjectPublicKeyInfo in DER.
    #[test]
    fn hashes_the_whole_subject_public_key_info() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
        let expected = digest::digest(&digest::SHA256, &rcgen::PublicKeyData::subject_public_key_info(&key));
        assert_eq!(Pin::of(certificate.der()).unwrap().0, expected.as_ref());
    }
}
