//! Why a reconciliation failed, and how it is classified for the retry.

use thiserror::Error;
use tokenward_runtime::cluster::error::{ErrorClass, classify, message};
use tokenward_runtime::entropy::NoEntropy;

/// Why the reconciliation of an ApiToken ended early.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The object does not parse: the CRD that is installed is of another version.
    #[error(
        "the ApiToken can't be read, so nothing is done for it: {0}; install the CRDs of this version of tokenward"
    )]
    Unreadable(String),
    /// A Secret that can't be read is never treated as absent.
    #[error("Secret {name} could not be read: {source}")]
    ReadSecret { name: String, source: kube::Error },
    #[error("Secret {name} could not be written: {source}")]
    WriteSecret { name: String, source: kube::Error },
    #[error("the status could not be written: {0}")]
    WriteStatus(kube::Error),
    #[error("the finalizer could not be written: {0}")]
    WriteFinalizer(kube::Error),
    /// The undelivered events of a deleted token could not be stored in this TokenWebhook.
    #[error("undelivered events could not be stored in TokenWebhook {0}")]
    StoreEvents(String),
    #[error(transparent)]
    Random(#[from] NoEntropy),
    #[error("the pepper is missing or damaged")]
    Pepper,
}

impl Error {
    /// The value of the metric label `reason`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::ReadSecret { .. } => "read_secret",
            Self::WriteSecret { .. } => "write_secret",
            Self::WriteStatus(_) => "write_status",
            Self::WriteFinalizer(_) => "write_finalizer",
            Self::StoreEvents(_) => "store_events",
            Self::Random(_) => "random",
            Self::Pepper => "pepper",
        }
    }

    pub(crate) fn classify(&self) -> ErrorClass {
        match self {
            Self::Unreadable(_) => ErrorClass::Invalid,
            _ => self.source().map_or(ErrorClass::Retry, classify),
        }
    }

    /// The API server's own message where there is one.
    pub(crate) fn cause(&self) -> String {
        self.source().map_or_else(|| self.to_string(), message)
    }

    fn source(&self) -> Option<&kube::Error> {
        match self {
            Self::ReadSecret { source, .. }
            | Self::WriteSecret { source, .. }
            | Self::WriteStatus(source)
            | Self::WriteFinalizer(source) => Some(source),
            Self::Unreadable(_) | Self::StoreEvents(_) | Self::Random(_) | Self::Pepper => None,
        }
    }
}
