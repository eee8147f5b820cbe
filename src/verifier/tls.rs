//! TLS at the doors: one certificate for every listener, taken up again when its files change.
//!
//! The files are read every two seconds and compared by content. Kubernetes swaps a mounted Secret by renaming a
//! symbolic link two levels up, which a watch on the file itself does not see. A pair that can't be used leaves
//! the one in use where it is: a mistake in a renewal must not end the checks.
//!
//! TLS 1.2 and 1.3 (RFC 5246, RFC 8446) by rustls, with its own choice of cipher suites.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, ServerConfig};
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};
use zeroize::Zeroizing;

/// How often the files are looked at. The kubelet itself needs a minute or two to bring a new one.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where the certificate and its key are, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate, followed by those of the authorities between it and one that clients know.
    pub certificate: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
}

/// The certificate in use, shared by every listener.
#[derive(Debug)]
pub struct Certificates {
    files: Files,
    provider: Arc<CryptoProvider>,
    in_use: Arc<InUse>,
    /// When it ends, in seconds since the epoch.
    expiry: Gauge,
}

/// What a handshake presents.
#[derive(Debug)]
struct InUse(ArcSwap<Loaded>);

/// A pair of which both files are sound and belong together.
#[derive(Debug)]
struct Loaded {
    key: Arc<CertifiedKey>,
    /// Of both files, to tell a new pair from the one in use without keeping the key twice.
    digest: [u8; 32],
}

/// Why a certificate can't be used. Never says what is in the key's file.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file is not there, or may not be read.
    #[error("{} can't be read: {source}; mount it, or correct the path", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate's file holds something else.
    #[error("{} holds no certificate; it takes PEM, the server's own certificate first", .0.display())]
    NoCertificate(PathBuf),
    /// The key's file holds something else.
    #[error("{} holds no private key; it takes PEM (PKCS#8, PKCS#1 or SEC1), not encrypted", .0.display())]
    NoKey(PathBuf),
    /// The two do not belong together.
    #[error("the key in {} is not that of the first certificate in {}; put both from one issue there",
        .0.key.display(), .0.certificate.display())]
    Mismatch(Files),
    /// TLS can't be spoken with it.
    #[error("{} and {} can't be used for TLS: {reason}", files.certificate.display(), files.key.display())]
    Unusable {
        /// Which files.
        files: Files,
        /// What rustls said.
        reason: rustls::Error,
    },
    /// TLS can't be spoken at all.
    #[error("TLS can't be set up: {0}")]
    Setup(rustls::Error),
}

impl Certificates {
    /// Loads the pair. At the start there is none to go on with, so what is wrong with it is an error.
    pub fn load(files: Files, expiry: Gauge) -> Result<Self, CertificateError> {
        let provider = Arc::new(ring::default_provider());
        let loaded = Pair::read(&files)?.parse(&files, &provider)?;
        let certificates =
            Self { files, provider, in_use: Arc::new(InUse(ArcSwap::from_pointee(loaded))), expiry };
        certificates.tell();
        Ok(certificates)
    }

    /// What turns a connection into one with TLS, for a listener that speaks these protocols (RFC 7301), the
    /// preferred one first. Each handshake presents what is in use at the time.
    pub fn acceptor(&self, protocols: &[&[u8]]) -> Result<TlsAcceptor, CertificateError> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(CertificateError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(self.in_use.clone());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Takes up what the files hold, for as long as it is polled.
    pub async fn follow(self: Arc<Self>) {
        let mut trouble = Trouble::default();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let certificates = self.clone();
            // A mount may hang.
            let Ok(renewed) = tokio::task::spawn_blocking(move || certificates.renew()).await else { return };
            match renewed {
                Ok(()) => trouble = Trouble::default(),
                Err(error) if trouble.is_worth_telling(&error) => {
                    warn!(%error, "the new TLS certificate can't be used; the one before stays in use");
                }
                Err(_) => {}
            }
        }
    }

    /// Takes up what the files hold now, if it is new and sound.
    fn renew(&self) -> Result<(), CertificateError> {
        let pair = Pair::read(&self.files)?;
        if pair.digest() != self.in_use.0.load().digest {
            self.in_use.0.store(Arc::new(pair.parse(&self.files, &self.provider)?));
            self.tell();
        }
        Ok(())
    }

    /// Says what is in use.
    fn tell(&self) {
        let loaded = self.in_use.0.load();
        let Some(end) = loaded.key.cert.first().and_then(|leaf| not_after(leaf)) else { return };
        self.expiry.set(end.as_second());
        let certificate = self.files.certificate.display();
        if end < Timestamp::now() {
            warn!(%certificate, %end, "the TLS certificate has expired; clients will refuse it");
        } else {
            info!(%certificate, %end, "TLS certificate in use");
        }
    }
}

impl ResolvesServerCert for InUse {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().key.clone())
    }
}

/// The error of looks in a row.
#[derive(Default)]
struct Trouble {
    error: String,
    looks: u32,
}

impl Trouble {
    /// Once for each error: when it is seen for the second time, as a look may fall between the two files' change.
    fn is_worth_telling(&mut self, error: &CertificateError) -> bool {
        let error = error.to_string();
        if self.error == error {
            self.looks += 1;
        } else {
            *self = Self { error, looks: 1 };
        }
        self.looks == 2
    }
}

/// Both files as they are.
struct Pair {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Pair {
    fn read(files: &Files) -> Result<Self, CertificateError> {
        Ok(Self { certificate: read(&files.certificate)?, key: read(&files.key)?.into() })
    }

    fn digest(&self) -> [u8; 32] {
        let each = [Sha256::digest(&self.certificate), Sha256::digest(&*self.key)];
        Sha256::digest(each.concat()).into()
    }

    fn parse(&self, files: &Files, provider: &CryptoProvider) -> Result<Loaded, CertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| CertificateError::NoCertificate(files.certificate.clone()))?;
        if chain.first().and_then(|leaf| not_after(leaf)).is_none() {
            return Err(CertificateError::NoCertificate(files.certificate.clone()));
        }
        // What the parser says may quote the file.
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| CertificateError::NoKey(files.key.clone()))?;
        match CertifiedKey::from_der(chain, key, provider) {
            Ok(key) => Ok(Loaded { key: Arc::new(key), digest: self.digest() }),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err(CertificateError::Mismatch(files.clone()))
            }
            Err(reason) => Err(CertificateError::Unusable { files: files.clone(), reason }),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::Unreadable { path: path.to_owned(), source })
}

/// When a certificate ends (RFC 5280, section 4.1.2.5). `None`: it is none.
fn not_after(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    /// Files of their own, with the pair of a certificate that ends in a year of its own.
    fn files(dir: &TempDir, pair: &(String, String)) -> Files {
        let files = Files { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
        fs::write(&files.certificate, &pair.0).unwrap();
        fs::write(&files.key, &pair.1).unwrap();
        files
    }

    fn pair(year: i32) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn year(expiry: &Gauge) -> i16 {
        Timestamp::from_second(expiry.get()).unwrap().to_zoned(jiff::tz::TimeZone::UTC).year()
    }

    #[test]
    fn a_new_pair_is_taken_up_and_a_broken_one_is_not() {
        let (dir, expiry) = (TempDir::new().unwrap(), Gauge::default());
        let (first, second, third) = (pair(2101), pair(2102), pair(2103));
        let certificates = Certificates::load(files(&dir, &first), expiry.clone()).unwrap();
        assert_eq!(year(&expiry), 2101);
        files(&dir, &second);
        certificates.renew().unwrap();
        assert_eq!(year(&expiry), 2102);
        let nothing = || String::new();
        for (broken, says) in [
            ((third.0.clone(), second.1.clone()), "is not that of the first certificate"),
            ((nothing(), third.1.clone()), "tls.crt holds no certificate"),
            ((third.1.clone(), third.1.clone()), "tls.crt holds no certificate"),
            ((third.0.replace("MII", "MIJ"), third.1.clone()), "tls.crt holds no certificate"),
            ((third.0.clone(), nothing()), "tls.key holds no private key"),
            ((third.0.clone(), third.1[..60].to_owned()), "tls.key holds no private key"),
        ] {
            files(&dir, &broken);
            let error = certificates.renew().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
            assert_eq!(year(&expiry), 2102);
        }
        fs::remove_file(dir.path().join("tls.key")).unwrap();
        assert!(certificates.renew().unwrap_err().to_string().contains("tls.key can't be read"));
        files(&dir, &third);
        certificates.renew().unwrap();
        assert_eq!(year(&expiry), 2103);
    }

    #[test]
    fn an_error_is_told_once_and_not_at_first_sight() {
        let (one, other) = (CertificateError::NoKey("a".into()), CertificateError::NoKey("b".into()));
        let mut trouble = Trouble::default();
        let told = [&one, &one, &one, &other, &one, &one].map(|error| trouble.is_worth_telling(error));
        assert_eq!(told, [false, true, false, false, false, true]);
    }

    #[test]
    fn no_error_quotes_a_key() {
        let dir = TempDir::new().unwrap();
        let (certificate, key) = pair(2101);
        let secret = key.lines().nth(1).unwrap();
        for broken in
            [key.replace("-----END", "----END"), key.replace("BEGIN", "BEGAN"), key.replace('\n', "")]
        {
            let error = Certificates::load(files(&dir, &(certificate.clone(), broken)), Gauge::default())
                .unwrap_err();
            assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
        }
    }
}
