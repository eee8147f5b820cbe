//! The verifier's metrics. None is labelled by token, so their number does not grow with use.
//!
//! A check adds to three atomics: its outcome, and the latency's bucket and sum. Nothing on its path takes a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

use tokenward_core::check::{Code, Decision};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    endpoint: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

/// The verifier's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    checks: Family<CheckLabels, Counter>,
    latency: Family<EndpointLabels, Latency>,
    pub(super) tokens: Gauge,
    pub(super) watch_staleness: Gauge<f64, AtomicU64>,
    pub(super) connections: ConnectionMetrics,
    /// When the TLS certificate ends. 0: without TLS.
    pub(super) certificate_expiry: Gauge,
}

/// What concerns connections, whatever is asked on them.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionMetrics {
    pub(super) open: Gauge,
    /// Connections closed to make room for new ones.
    pub(super) displaced: Counter,
}

/// What became of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The token is valid for what was asked.
    Allowed,
    /// It is not.
    Denied(Code),
    /// No token was presented.
    NoToken,
    /// The request broke the endpoint's protocol.
    Malformed,
    /// Whoever asked may not.
    CallerRefused,
    /// There was nothing to answer from.
    Unavailable,
}

/// The metrics of one endpoint, looked up once at start.
#[derive(Clone, Debug)]
pub(super) struct EndpointMetrics {
    outcomes: [Counter; Outcome::COUNT],
    latency: Latency,
}

impl Metrics {
    /// Registers them all.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            checks: Family::default(),
            latency: Family::default(),
            tokens: Gauge::default(),
            watch_staleness: Gauge::default(),
            connections: ConnectionMetrics::default(),
            certificate_expiry: Gauge::default(),
        };
        registry.register("checks", "Checks, by endpoint and outcome", metrics.checks.clone());
        registry.register_with_unit(
            "check_duration",
            "Time from a request's head to its response, by endpoint",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register("tokens_indexed", "ApiTokens in the index", metrics.tokens.clone());
        registry.register_with_unit(
            "watch_staleness",
            "Time since the API server last sent anything on the watch of ApiTokens",
            Unit::Seconds,
            metrics.watch_staleness.clone(),
        );
        registry.register("connections", "Open connections of clients", metrics.connections.open.clone());
        registry.register(
            "connections_displaced",
            "Connections closed to make room for new ones, since --max-connections were open",
            metrics.connections.displaced.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the TLS certificate in use ends, in seconds since the epoch; 0 without TLS",
            metrics.certificate_expiry.clone(),
        );
        metrics
    }

    pub(super) fn endpoint(&self, endpoint: &'static str) -> EndpointMetrics {
        let counter = |code| self.checks.get_or_create_owned(&CheckLabels { endpoint, code });
        EndpointMetrics {
            outcomes: Outcome::all().map(|outcome| counter(outcome.as_str())),
            latency: self.latency.get_or_create_owned(&EndpointLabels { endpoint }),
        }
    }
}

impl From<&Decision<'_>> for Outcome {
    fn from(decision: &Decision<'_>) -> Self {
        match decision {
            Decision::Allow(_) => Self::Allowed,
            Decision::Deny(code) => Self::Denied(*code),
        }
    }
}

impl Outcome {
    const COUNT: usize = Code::ALL.len() + 5;

    /// Every outcome, each at its own [`Self::index`].
    fn all() -> [Self; Self::COUNT] {
        let others = [Self::Allowed, Self::NoToken, Self::Malformed, Self::CallerRefused, Self::Unavailable];
        std::array::from_fn(|index| match Code::ALL.get(index) {
            Some(code) => Self::Denied(*code),
            None => others[index - Code::ALL.len()],
        })
    }

    fn index(self) -> usize {
        match self {
            Self::Denied(code) => code as usize,
            Self::Allowed => Code::ALL.len(),
            Self::NoToken => Code::ALL.len() + 1,
            Self::Malformed => Code::ALL.len() + 2,
            Self::CallerRefused => Code::ALL.len() + 3,
            Self::Unavailable => Code::ALL.len() + 4,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "ALLOWED",
            Self::Denied(code) => code.as_str(),
            Self::NoToken => "NO_TOKEN",
            Self::Malformed => "MALFORMED",
            Self::CallerRefused => "CALLER_REFUSED",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

impl EndpointMetrics {
    pub(super) fn count(&self, outcome: Outcome) {
        self.outcomes[outcome.index()].inc();
    }

    pub(super) fn took(&self, duration: Duration) {
        self.latency.observe(duration);
    }
}

/// Upper bounds of the latency's buckets, in nanoseconds. A check takes a few microseconds.
const BOUNDS: [u64; 12] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    5_000_000,
    25_000_000,
    100_000_000,
    1_000_000_000,
];

/// A histogram of durations, of atomics alone: the library's own takes a lock for each observation.
#[derive(Clone, Debug, Default)]
struct Latency(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// One for each bound, and one for what is above them all.
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Latency {
    fn observe(&self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // From below: almost every check ends in the first bucket.
        let bucket = BOUNDS.iter().position(|bound| nanoseconds <= *bound).unwrap_or(BOUNDS.len());
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let seconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(self.0.nanoseconds.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_a_counter_of_its_own() {
        for (index, outcome) in Outcome::all().into_iter().enumerate() {
            assert_eq!(outcome.index(), index, "{outcome:?}");
        }
    }

    #[test]
    fn what_was_observed_is_encoded() {
        let mut registry = Registry::with_prefix("tokenward");
        let metrics = Metrics::register(&mut registry).endpoint("auth");
        metrics.count(Outcome::Denied(Code::Revoked));
        for took in [Duration::from_micros(5), Duration::from_micros(6), Duration::from_secs(3)] {
            metrics.took(took);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        for line in [
            "tokenward_checks_total{endpoint=\"auth\",code=\"REVOKED\"} 1",
            "tokenward_check_duration_seconds_bucket{le=\"0.000005\",endpoint=\"auth\"} 1",
            "tokenward_check_duration_seconds_bucket{le=\"0.00001\",endpoint=\"auth\"} 2",
            "tokenward_check_duration_seconds_bucket{le=\"1.0\",endpoint=\"auth\"} 2",
            "tokenward_check_duration_seconds_bucket{le=\"+Inf\",endpoint=\"auth\"} 3",
            "tokenward_check_duration_seconds_count{endpoint=\"auth\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
