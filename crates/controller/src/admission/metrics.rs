//! Metrics of the admission webhook.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use tokenward_runtime::telemetry::metrics::register;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Review {
    kind: &'static str,
    verdict: &'static str,
}

/// The outcome of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The object may be stored.
    Admitted,
    /// It violates a rule.
    Denied,
    /// It could not be checked, so it may not be stored.
    Failed,
}

#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    reviews: Family<Review, Counter>,
    /// When the serving certificate expires, in seconds since the epoch. 0: there is none yet.
    pub(crate) certificate_expiry: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            reviews: register(registry, "admission_reviews", "Admission reviews, by kind and verdict"),
            certificate_expiry: register(
                registry,
                "admission_certificate_expiry_timestamp_seconds",
                "When the serving certificate of the admission webhook expires, in seconds since the epoch; 0: none yet",
            ),
        }
    }

    pub(crate) fn reviewed(&self, kind: &'static str, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Admitted => "ADMITTED",
            Verdict::Denied => "DENIED",
            Verdict::Failed => "FAILED",
        };
        self.reviews.get_or_create(&Review { kind, verdict }).inc();
    }
}
