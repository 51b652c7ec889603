//! rustls configurations for both ends: TLS 1.2 accepted, 1.3 preferred, aws-lc-rs, ALPN `http/1.1`.

mod pin;
mod validity;

use std::{io, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

pub use pin::{BadPin, Pin, PinMismatch};

/// How a client decides whom to trust. The default: the system's CA certificates.
#[derive(Debug, Clone, Default)]
pub struct ClientTls {
    /// A PEM file with CA certificates to trust *instead of* the system's.
    pub ca_file: Option<PathBuf>,
    /// The same as text; added to those of `ca_file` when both are given.
    pub ca_pem: Option<String>,
    /// Trust exactly the key with this hash and no CA at all; see [`Pin`]. Wins over both others.
    pub pin: Option<Pin>,
}

/// A client configuration for [`crate::ws::Dial`]. Make it once and share it: loading the system's CA certificates takes
/// milliseconds, and TLS sessions are resumed through it.
///
/// # Errors
/// When a CA file cannot be read or holds no certificate.
pub fn client_config(options: &ClientTls) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match options.pin {
        Some(pin) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(pin::PinVerifier::new(pin, &provider)))
        }
        None => builder.with_root_certificates(roots(options)?),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = alpn();
    Ok(Arc::new(config))
}

/// A server configuration from a PEM certificate chain (leaf first) and its PEM private key (PKCS #8, PKCS #1 or SEC 1).
///
/// Every certificate of the chain is sent. A server with a CA of its own sends that CA's certificate too: a client that
/// pinned the CA can only then see it.
///
/// # Errors
/// When either is not PEM, the key cannot be used, or it is another certificate's key.
pub fn server_config(cert_pem: &[u8], key_pem: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(cert_pem).map_err(|why| TlsError::Certificate { why })?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| TlsError::PrivateKey { why: pem_error(&e) })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| match source {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch,
            source => TlsError::Rustls(source),
        })?;
    config.alpn_protocols = alpn();
    Ok(Arc::new(config))
}

/// The pin of a certificate, PEM (the first in the text) or DER: what a controller prints for its users to copy.
///
/// # Errors
/// When it is neither.
pub fn spki_pin(certificate: &[u8]) -> Result<Pin, TlsError> {
    let der = if certificate.trim_ascii_start().starts_with(b"-----BEGIN") {
        CertificateDer::from_pem_slice(certificate).map_err(|e| TlsError::Certificate { why: pem_error(&e) })?
    } else {
        CertificateDer::from(certificate)
    };
    Pin::of(&der).ok_or_else(|| TlsError::Certificate { why: "it is not an X.509 certificate".into() })
}

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// `ca_file` cannot be read.
    #[error("cannot read the CA file {}: {source}", path.display())]
    CaFile {
        /// As configured.
        path: PathBuf,
        /// From the operating system.
        source: io::Error,
    },
    /// The CA text holds no usable certificate.
    #[error("{from}: {why}; it must hold CA certificates in PEM form (`-----BEGIN CERTIFICATE-----`)")]
    Ca {
        /// The file, or "CA text".
        from: String,
        /// What is wrong.
        why: String,
    },
    /// The server's certificate is unusable.
    #[error("certificate: {why}")]
    Certificate {
        /// What is wrong.
        why: String,
    },
    /// The server's private key is unusable.
    #[error("private key: {why}")]
    PrivateKey {
        /// What is wrong; nothing of the key.
        why: String,
    },
    /// The server's private key does not belong to its certificate.
    #[error(
        "the private key does not belong to the first certificate of the chain; put the server's own certificate first"
    )]
    KeyMismatch,
    /// Anything else.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // AES-128 first, as browsers have it: ten rounds in place of fourteen, on both legs of every relayed packet. What is inside
    // is sealed end to end.
    provider.cipher_suites.sort_by_key(|suite| {
        use rustls::CipherSuite::{
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS13_AES_128_GCM_SHA256,
        };
        match suite.suite() {
            TLS13_AES_128_GCM_SHA256 => 0,
            TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 | TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 2,
            suite if suite.as_str().is_some_and(|name| name.starts_with("TLS13")) => 1,
            _ => 3,
        }
    });
    Arc::new(provider)
}

fn alpn() -> Vec<Vec<u8>> {
    vec![b"http/1.1".to_vec()]
}

fn roots(options: &ClientTls) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &options.ca_file {
        let pem = std::fs::read(path).map_err(|source| TlsError::CaFile { path: path.clone(), source })?;
        add_roots(&mut roots, &path.display().to_string(), &pem)?;
    }
    if let Some(pem) = &options.ca_pem {
        add_roots(&mut roots, "CA text", pem.as_bytes())?;
    }
    if options.ca_file.is_none() && options.ca_pem.is_none() {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            // Not an error yet: a client of a plain `ws` URL, say inside a container, needs none.
            let errors = native.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            tracing::warn!(
                errors,
                "no CA certificates found on this system: install them (package ca-certificates), or set ca_file or pin"
            );
        }
    }
    Ok(roots)
}

fn add_roots(roots: &mut RootCertStore, from: &str, pem: &[u8]) -> Result<(), TlsError> {
    let error = |why| TlsError::Ca { from: from.to_owned(), why };
    for certificate in certificates(pem).map_err(error)? {
        roots.add(certificate).map_err(|e| error(e.to_string()))?;
    }
    Ok(())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|e| pem_error(&e))?;
    if certificates.is_empty() { Err("no certificate in it".into()) } else { Ok(certificates) }
}

/// What is wrong with a PEM text, without the text.
fn pem_error(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::NoItemsFound => "no PEM section of the right kind in it".into(),
        Error::MissingSectionEnd { .. } => "a PEM section does not end".into(),
        Error::Base64Decode(_) => "a PEM section is not base64".into(),
        Error::IllegalSectionStart { .. } => "a PEM section begins in an illegal way".into(),
        _ => "not readable as PEM".into(),
    }
}
