//! Why a reconciliation failed, and how it is classified for the retry.

use thiserror::Error;
use tokenward_runtime::cluster::error::{ErrorClass, classify, is_namespace_terminating, message};
use tokenward_runtime::entropy::NoEntropy;

/// Why the reconciliation of an ApiToken ended early.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// Its metadata lacks what every API server sets.
    #[error("the ApiToken has no namespace, name or uid")]
    Unidentified,
    #[error("the ApiToken could not be read: {0}")]
    ReadToken(kube::Error),
    /// A Secret that can't be read is never treated as absent.
    #[error("Secret {name} could not be read: {source}")]
    ReadSecret { name: String, source: kube::Error },
    #[error("Secret {name} could not be written: {source}")]
    WriteSecret { name: String, source: kube::Error },
    #[error("the status could not be written: {0}")]
    WriteStatus(kube::Error),
    /// The API server stored none of what is new in it.
    #[error("the API server dropped fields of the status: install the CRDs of this version of tokenward")]
    StatusDropped,
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
            Self::Unidentified => "unidentified",
            Self::ReadToken(_) => "read_token",
            Self::ReadSecret { .. } => "read_secret",
            Self::WriteSecret { .. } => "write_secret",
            Self::WriteStatus(_) => "write_status",
            Self::StatusDropped => "status_dropped",
            Self::WriteFinalizer(_) => "write_finalizer",
            Self::StoreEvents(_) => "store_events",
            Self::Random(_) => "random",
            Self::Pepper => "pepper",
        }
    }

    pub(crate) fn classify(&self) -> ErrorClass {
        match self {
            Self::Unidentified => ErrorClass::Invalid,
            _ => self.source().map_or(ErrorClass::Retry, classify),
        }
    }

    /// Whether it is because the namespace is being deleted.
    pub(crate) fn is_namespace_terminating(&self) -> bool {
        self.source().is_some_and(is_namespace_terminating)
    }

    /// The API server's own message where there is one.
    pub(crate) fn cause(&self) -> String {
        self.source().map_or_else(|| self.to_string(), message)
    }

    fn source(&self) -> Option<&kube::Error> {
        match self {
            Self::ReadSecret { source, .. }
            | Self::WriteSecret { source, .. }
            | Self::ReadToken(source)
            | Self::WriteStatus(source)
            | Self::WriteFinalizer(source) => Some(source),
            Self::Unidentified
            | Self::StatusDropped
            | Self::StoreEvents(_)
            | Self::Random(_)
            | Self::Pepper => None,
        }
    }
}
