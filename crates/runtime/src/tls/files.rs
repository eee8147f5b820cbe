//! A certificate and its key in two files, reloaded when they change.
//!
//! The files are read every two seconds and compared by content. Kubernetes swaps a mounted Secret by renaming a
//! symbolic link two levels up, which a watch on the file itself does not see. A pair that can't be used
//! leaves the one before in use: a mistake in a renewal must not end the service.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fs, io};

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::{Clients, PairError, ServingCertificate};
use crate::sync::lock;

/// How often the files are read. The kubelet itself takes a minute or two to update them.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

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
    presented: ServingCertificate,
    /// The hash of both files, to notice a new pair without another copy of the key.
    digest: Mutex<[u8; 32]>,
    /// When it expires, in seconds since the epoch.
    expiry: Gauge,
}

/// Why a certificate can't be used. Never quotes the key's file.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file is not there, or may not be read.
    #[error("{} can't be read: {source}; mount it, or correct the path", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// The certificate's file contains something else.
    #[error("{} holds no certificate; it takes PEM, the server's own certificate first", .0.display())]
    NoCertificate(PathBuf),
    /// The key's file contains something else.
    #[error("{} holds no private key; it takes PEM (PKCS#8, PKCS#1 or SEC1), not encrypted", .0.display())]
    NoKey(PathBuf),
    /// The two do not belong together.
    #[error("the key in {} is not that of the first certificate in {}; put both from one issue there",
        .0.key.display(), .0.certificate.display())]
    Mismatch(Files),
    /// TLS can't be spoken with it.
    #[error("{} and {} can't be used for TLS: {reason}", files.certificate.display(), files.key.display())]
    Unusable { files: Files, reason: rustls::Error },
    /// TLS can't be spoken at all.
    #[error("TLS can't be set up: {0}")]
    Setup(rustls::Error),
}

impl Certificates {
    /// Loads the pair. At the start there is none before it to use instead, so a bad one is an error.
    pub fn load(files: Files, expiry: Gauge) -> Result<Self, CertificateError> {
        let certificates =
            Self { files, presented: ServingCertificate::default(), digest: Mutex::default(), expiry };
        certificates.renew()?;
        Ok(certificates)
    }

    /// See [`ServingCertificate::acceptor`].
    pub fn acceptor(&self, protocols: &[&[u8]], clients: &Clients) -> Result<TlsAcceptor, CertificateError> {
        self.presented.acceptor(protocols, clients).map_err(CertificateError::Setup)
    }

    /// Reloads the files when they change, for as long as it is polled.
    pub async fn follow(self: Arc<Self>) {
        let mut debounce = ErrorDebounce::default();
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let certificates = self.clone();
            // A mount may hang.
            let Ok(renewed) = tokio::task::spawn_blocking(move || certificates.renew()).await else { return };
            match renewed {
                Ok(()) => debounce = ErrorDebounce::default(),
                Err(error) if debounce.should_log(&error) => {
                    warn!(%error, "the new TLS certificate can't be used; the one before stays in use");
                }
                Err(_) => {}
            }
        }
    }

    /// Loads the files, if they have changed and can be used.
    fn renew(&self) -> Result<(), CertificateError> {
        let (chain, key) = (read(&self.files.certificate)?, Zeroizing::new(read(&self.files.key)?));
        let digest = Sha256::digest([Sha256::digest(&chain), Sha256::digest(&*key)].concat()).into();
        let mut in_use = lock(&self.digest);
        if digest != *in_use {
            self.presented.present(&chain, &key).map_err(|error| CertificateError::of(error, &self.files))?;
            *in_use = digest;
            self.report();
        }
        Ok(())
    }

    /// Logs what is in use and until when.
    fn report(&self) {
        let Some(end) = self.presented.ends_at() else { return };
        self.expiry.set(end.as_second());
        let certificate = self.files.certificate.display();
        if end < Timestamp::now() {
            warn!(%certificate, %end, "the TLS certificate has expired; clients will reject it");
        } else {
            info!(%certificate, %end, "TLS certificate in use");
        }
    }
}

impl CertificateError {
    fn of(error: PairError, files: &Files) -> Self {
        match error {
            PairError::NoCertificate => Self::NoCertificate(files.certificate.clone()),
            PairError::NoKey => Self::NoKey(files.key.clone()),
            PairError::Mismatch => Self::Mismatch(files.clone()),
            PairError::Unusable(reason) => Self::Unusable { files: files.clone(), reason },
        }
    }
}

/// The same error of reloads in a row.
#[derive(Default)]
struct ErrorDebounce {
    error: String,
    seen: u32,
}

impl ErrorDebounce {
    /// Once for each error: when it occurs for the second time, as the first reload may fall between the changes of the two
    /// files.
    fn should_log(&mut self, error: &CertificateError) -> bool {
        let error = error.to_string();
        if self.error == error {
            self.seen += 1;
        } else {
            *self = Self { error, seen: 1 };
        }
        self.seen == 2
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::Unreadable { path: path.to_owned(), source })
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
    fn a_new_pair_is_loaded_and_a_broken_one_is_not() {
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
    fn an_error_is_logged_once_and_not_at_first_sight() {
        let (one, other) = (CertificateError::NoKey("a".into()), CertificateError::NoKey("b".into()));
        let mut debounce = ErrorDebounce::default();
        let logged = [&one, &one, &one, &other, &one, &one].map(|error| debounce.should_log(error));
        assert_eq!(logged, [false, true, false, false, false, true]);
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
