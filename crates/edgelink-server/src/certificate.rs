//! A controller's or relay's own CA and certificate, for those who configure none (DESIGN §8).
//!
//! The CA is made once and kept; nodes pin its public key, so the certificate below it can be made anew at every start
//! with whatever names and addresses the host has by then.

use anyhow::{Context as _, Result};
use edgelink_net::tls::{Pin, spki_pin};
use edgelink_os::files;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Certificates are valid from this long ago, for nodes whose clock is behind (DESIGN §8).
const BACKDATED: Duration = Duration::from_secs(48 * 3600);
/// The CA outlives any hardware.
const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// The certificate is made anew at every start; this is for the controller that is never restarted.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// A certificate chain with its key, and what to pin.
pub struct OwnCertificate {
    /// Certificate and CA, PEM.
    pub chain: String,
    /// Private key, PEM.
    pub key: String,
    /// The CA's public key.
    pub pin: Pin,
}

/// The certificate for `names` (host names and IP addresses), below the CA in `dir`, which is made at the first start.
///
/// # Errors
/// When `dir` holds half a CA or cannot be written, or a name is malformed.
pub fn own(dir: &Path, names: &BTreeSet<String>, now: SystemTime) -> Result<OwnCertificate> {
    let ca = Ca::open(dir, now)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())
        .context("a host name of the certificate is malformed")?;
    validity(&mut params, now, CERTIFICATE_LIFETIME);
    params.distinguished_name = named("EdgeLink");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &Issuer::new(ca_params(now), &ca.key))?;
    Ok(OwnCertificate {
        chain: certificate.pem() + &ca.certificate,
        key: key.serialize_pem(),
        pin: spki_pin(ca.certificate.as_bytes())?,
    })
}

/// A CA as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct CaFiles {
    /// PEM; public.
    pub certificate: String,
    /// Private key, PEM.
    pub key: String,
}

/// The CA in `dir`, which is made at the first start.
///
/// # Errors
/// As [`own`].
pub fn ca(dir: &Path, now: SystemTime) -> Result<CaFiles> {
    let ca = Ca::open(dir, now)?;
    Ok(CaFiles { key: ca.key.serialize_pem(), certificate: ca.certificate })
}

/// Puts another CA in the place of the one in `dir`.
///
/// # Errors
/// When `dir` cannot be written.
pub fn replace_ca(dir: &Path, ca: &CaFiles) -> Result<()> {
    files::write_public(dir.join("ca.pem"), ca.certificate.as_bytes())?;
    files::write_private(dir.join("ca.key"), ca.key.as_bytes())?;
    Ok(())
}

struct Ca {
    certificate: String,
    key: KeyPair,
}

impl Ca {
    fn open(dir: &Path, now: SystemTime) -> Result<Self> {
        let (key_path, certificate_path) = (dir.join("ca.key"), dir.join("ca.pem"));
        match files::read_private(&key_path) {
            Ok(pem) => {
                let key = KeyPair::from_pem(&pem).with_context(|| {
                    format!("{} holds no private key; restore it from a backup", key_path.display())
                })?;
                let certificate = std::fs::read_to_string(&certificate_path).with_context(|| {
                    format!("{} is missing beside ca.key; restore it from a backup", certificate_path.display())
                })?;
                Ok(Self { certificate, key })
            }
            Err(error) if error.is_not_found() => {
                let key = KeyPair::generate()?;
                let certificate = ca_params(now).self_signed(&key)?.pem();
                // The certificate first: a crash between the two leaves no key without its certificate.
                files::write_public(&certificate_path, certificate.as_bytes())?;
                files::write_private(&key_path, key.serialize_pem().as_bytes())?;
                tracing::info!(file = %certificate_path.display(), "made a CA of its own");
                Ok(Self { certificate, key })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The CA as it signs itself and others: name, constraints and key usage are the same at every start.
fn ca_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    validity(&mut params, now, CA_LIFETIME);
    params.distinguished_name = named("EdgeLink CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn validity(params: &mut CertificateParams, now: SystemTime, lifetime: Duration) {
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_survives_restarts_and_new_names() {
        let dir = tempfile::tempdir().unwrap();
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect();
        let first = own(dir.path(), &names(&["localhost", "10.0.0.1"]), SystemTime::now()).unwrap();
        let second = own(dir.path(), &names(&["localhost", "10.0.0.2", "vpn.example.com"]), SystemTime::now()).unwrap();
        assert_eq!(first.pin, second.pin);
        assert_ne!(first.chain, second.chain);
        edgelink_net::tls::server_config(second.chain.as_bytes(), second.key.as_bytes()).unwrap();
    }

    #[test]
    fn a_key_without_its_certificate_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let names = BTreeSet::from(["localhost".to_owned()]);
        own(dir.path(), &names, SystemTime::now()).unwrap();
        std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
        let error = own(dir.path(), &names, SystemTime::now()).err().unwrap();
        assert!(format!("{error:#}").contains("ca.pem is missing"), "{error:#}");
    }
}
