//! TLS at every listener: versions 1.2 and 1.3 (RFC 5246, RFC 8446) by rustls, with its own choice of cipher suites.
//!
//! The certificate can be replaced at any time. It comes from [`files`], or from the controller's admission webhook, which
//! generates its own.

pub mod files;

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoClientAuth, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;

/// The certificate that handshakes present, shared by listeners.
#[derive(Clone, Debug)]
pub struct ServingCertificate {
    provider: Arc<CryptoProvider>,
    in_use: Arc<InUse>,
}

#[derive(Debug, Default)]
struct InUse(ArcSwapOption<CertifiedKey>);

/// Why a certificate and a key can't be used. Never quotes the key.
#[derive(Debug, Error)]
pub enum PairError {
    #[error("no certificate in PEM")]
    NoCertificate,
    #[error("no private key in PEM")]
    NoKey,
    #[error("the key is not that of the first certificate")]
    Mismatch,
    /// rustls does not accept them.
    #[error(transparent)]
    Unusable(rustls::Error),
}

/// Which clients a listener accepts.
#[derive(Clone, Debug)]
pub struct Clients(Arc<dyn ClientCertVerifier>);

/// Why authorities can't be used to verify certificates.
#[derive(Debug, Error)]
pub enum AuthorityError {
    #[error("no certificate in PEM")]
    NoCertificate,
    /// rustls does not accept it as an authority.
    #[error("a certificate can't be used: {0}")]
    Certificate(rustls::Error),
    /// rustls does not accept the authorities together.
    #[error(transparent)]
    Unusable(VerifierBuilderError),
}

impl Clients {
    /// All, with or without a certificate.
    pub fn anybody() -> Self {
        Self(Arc::new(NoClientAuth))
    }

    /// Those with a certificate that one of these authorities, in PEM, has signed (RFC 8446 section 4.4.2.4).
    pub fn signed_by(authorities: &[u8]) -> Result<Self, AuthorityError> {
        let roots = Arc::new(authorities_of(authorities)?);
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        verifier.map(Self).map_err(AuthorityError::Unusable)
    }
}

impl Default for ServingCertificate {
    /// Presents nothing yet: handshakes fail.
    fn default() -> Self {
        Self { provider: Arc::new(ring::default_provider()), in_use: Arc::default() }
    }
}

impl ServingCertificate {
    /// Presents this pair from now on: a chain in PEM, the server's own certificate first, and the key of that one.
    pub fn present(&self, chain: &[u8], key: &[u8]) -> Result<(), PairError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| PairError::NoCertificate)?;
        if chain.first().and_then(|leaf| not_after(leaf)).is_none() {
            return Err(PairError::NoCertificate);
        }
        // The parser's own error may quote the key.
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| PairError::NoKey)?;
        let key = CertifiedKey::from_der(chain, key, &self.provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => PairError::Mismatch,
            reason => PairError::Unusable(reason),
        })?;
        self.in_use.0.store(Some(Arc::new(key)));
        Ok(())
    }

    /// When the certificate that is presented expires.
    pub fn ends_at(&self) -> Option<Timestamp> {
        self.in_use.0.load().as_ref()?.cert.first().and_then(|leaf| not_after(leaf))
    }

    /// An acceptor for a listener that speaks these protocols (ALPN, RFC 7301), the preferred one first, to these clients.
    /// Each handshake presents the certificate that is in use at the time.
    pub fn acceptor(&self, protocols: &[&[u8]], clients: &Clients) -> Result<TlsAcceptor, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_client_cert_verifier(clients.0.clone())
            .with_cert_resolver(self.in_use.clone());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for InUse {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// The authorities in a text in PEM. At least one, so that a mistake does not mean that nobody is trusted.
pub fn authorities_of(pem: &[u8]) -> Result<RootCertStore, AuthorityError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| AuthorityError::NoCertificate)?;
        roots.add(certificate).map_err(AuthorityError::Certificate)?;
    }
    if roots.is_empty() { Err(AuthorityError::NoCertificate) } else { Ok(roots) }
}

/// When a certificate expires (RFC 5280, section 4.1.2.5). `None`: it can't be parsed.
fn not_after(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}
