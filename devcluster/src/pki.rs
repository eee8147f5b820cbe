//! The cluster's certificate authority and the certificates that it signs.
//!
//! The authority's key never leaves the process: it signs the API server's serving certificate and the client
//! certificates of kubeconfigs. Service-account tokens are signed with a key of their own.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::Error;

/// As long as a detached cluster may be left running.
const VALIDITY: Duration = Duration::from_hours(365 * 24);
/// How far a client's clock may be behind, as in a virtual machine.
const CLOCK_SKEW: Duration = Duration::from_hours(1);

/// Signs certificates for one cluster.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, both PEM.
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// The key pair behind service-account tokens, both PEM.
pub(crate) struct TokenKeys {
    pub(crate) private: String,
    pub(crate) public: String,
}

// === impl Authority ===

impl Authority {
    pub(crate) fn new() -> Result<Self, Error> {
        let mut params = params("devcluster-ca", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// The authority's own certificate, PEM.
    pub(crate) fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A serving certificate for `names` (host names and IP addresses).
    pub(crate) fn server(&self, common_name: &str, names: &[&str]) -> Result<Pair, Error> {
        self.sign(params(common_name, names)?, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client certificate. The API server takes the common name for the user and the organization for the
    /// group. One group only, as rcgen's names have one value of a kind.
    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> Result<Pair, Error> {
        let mut params = params(user, &[])?;
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        self.sign(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, mut params: CertificateParams, usage: ExtendedKeyUsagePurpose) -> Result<Pair, Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

// === impl TokenKeys ===

impl TokenKeys {
    pub(crate) fn new() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        Ok(Self { private: key.serialize_pem(), public: key.public_key_pem() })
    }
}

fn params(common_name: &str, names: &[&str]) -> Result<CertificateParams, Error> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALIDITY).into();
    Ok(params)
}
