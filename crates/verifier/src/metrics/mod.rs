//! The verifier's metrics. None is labelled by token, so their number does not grow with use.
//!
//! A check adds to three atomics: the counter of its outcome, and a bucket and the sum of the latencies. Counters are
//! looked up once, at start, so no check hashes labels or takes a lock.

mod histogram;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};

use self::histogram::LatencyHistogram;
use crate::outcome::Outcome;
use tokenward_core::check::Code;
use tokenward_runtime::telemetry::metrics::register;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    endpoint: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

/// The metrics of a verifier process.
#[derive(Clone, Debug)]
pub struct Metrics {
    checks: Family<CheckLabels, Counter>,
    latency: Family<EndpointLabels, LatencyHistogram>,
    pub(super) tokens: Gauge,
    pub(super) locks: Gauge,
    pub(super) watch_staleness: Gauge<f64, AtomicU64>,
    /// In seconds since the epoch; 0 before the first one.
    pub(super) checkpoint: Gauge,
    pub(super) connections: ConnectionMetrics,
    /// In seconds since the epoch; 0 without TLS.
    pub(super) certificate_expiry: Gauge,
}

/// Metrics of connections, which HTTP and gRPC share.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionMetrics {
    pub(super) open: Gauge,
    /// Connections closed to make room for new ones.
    pub(super) displaced: Counter,
}

/// The metrics of one endpoint: a counter for each [`Outcome`], and the latency.
#[derive(Clone, Debug)]
pub(super) struct EndpointMetrics {
    allowed: Counter,
    /// In the order of [`Code::ALL`], which is that of the discriminants.
    denied: [Counter; Code::ALL.len()],
    no_token: Counter,
    malformed: Counter,
    caller_denied: Counter,
    unavailable: Counter,
    latency: LatencyHistogram,
}

impl Metrics {
    /// Registers all metrics of the verifier.
    pub fn register(registry: &mut Registry) -> Self {
        Self {
            checks: register(registry, "checks", "Checks, by endpoint and outcome"),
            latency: register_seconds(
                registry,
                "check_duration",
                "Time from a request's head to its response, by endpoint",
            ),
            tokens: register(registry, "tokens_indexed", "ApiTokens in the index"),
            locks: register(registry, "locks", "TokenLocks and ClusterTokenLocks that checks go by"),
            watch_staleness: register_seconds(
                registry,
                "watch_staleness",
                "Time since the API server last sent anything on the watch of ApiTokens",
            ),
            checkpoint: register(
                registry,
                "checkpoint_timestamp_seconds",
                "When the checkpoint was last written, in seconds since the epoch; 0 before that, or without --checkpoint-dir",
            ),
            connections: ConnectionMetrics {
                open: register(registry, "connections", "Open connections of clients"),
                displaced: register(
                    registry,
                    "connections_displaced",
                    "Connections closed to make room for new ones, since --max-connections were open",
                ),
            },
            certificate_expiry: register(
                registry,
                "certificate_expiry_timestamp_seconds",
                "When the TLS certificate in use ends, in seconds since the epoch; 0 without TLS",
            ),
        }
    }

    pub(super) fn endpoint(&self, endpoint: &'static str) -> EndpointMetrics {
        let counter = |outcome: Outcome| {
            self.checks.get_or_create_owned(&CheckLabels { endpoint, code: outcome.as_str() })
        };
        EndpointMetrics {
            allowed: counter(Outcome::Allowed),
            denied: Code::ALL.map(|code| counter(Outcome::Denied(code))),
            no_token: counter(Outcome::NoToken),
            malformed: counter(Outcome::Malformed),
            caller_denied: counter(Outcome::CallerDenied),
            unavailable: counter(Outcome::Unavailable),
            latency: self.latency.get_or_create_owned(&EndpointLabels { endpoint }),
        }
    }
}

impl EndpointMetrics {
    /// The counter of what could not be read.
    pub(super) fn malformed(&self) -> Counter {
        self.malformed.clone()
    }

    pub(super) fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Allowed => &self.allowed,
            Outcome::Denied(code) => &self.denied[code as usize],
            Outcome::NoToken => &self.no_token,
            Outcome::Malformed => &self.malformed,
            Outcome::CallerDenied => &self.caller_denied,
            Outcome::Unavailable => &self.unavailable,
        };
        counter.inc();
    }

    pub(super) fn observe_latency(&self, latency: Duration) {
        self.latency.observe(latency);
    }
}

fn register_seconds<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("text");
        text
    }

    #[test]
    fn every_outcome_has_its_own_counter() {
        let others = [
            Outcome::Allowed,
            Outcome::NoToken,
            Outcome::Malformed,
            Outcome::CallerDenied,
            Outcome::Unavailable,
        ];
        for outcome in Code::ALL.map(Outcome::Denied).into_iter().chain(others) {
            let mut registry = Registry::default();
            Metrics::register(&mut registry).endpoint("auth").count(outcome);
            let text = scrape(&registry);
            let counted: Vec<_> = text
                .lines()
                .filter(|line| line.starts_with("checks_total") && line.ends_with(" 1"))
                .collect();
            let expected = format!("checks_total{{endpoint=\"auth\",code=\"{}\"}} 1", outcome.as_str());
            assert_eq!(counted, [expected], "{outcome:?}");
        }
    }

    #[test]
    fn latencies_are_encoded_as_cumulative_buckets() {
        let mut registry = Registry::with_prefix("tokenward");
        let metrics = Metrics::register(&mut registry).endpoint("auth");
        for latency in [Duration::from_micros(5), Duration::from_micros(6), Duration::from_secs(3)] {
            metrics.observe_latency(latency);
        }
        let text = scrape(&registry);
        for expected in [
            "tokenward_check_duration_seconds_bucket{le=\"0.000005\",endpoint=\"auth\"} 1",
            "tokenward_check_duration_seconds_bucket{le=\"0.00001\",endpoint=\"auth\"} 2",
            "tokenward_check_duration_seconds_bucket{le=\"1.0\",endpoint=\"auth\"} 2",
            "tokenward_check_duration_seconds_bucket{le=\"+Inf\",endpoint=\"auth\"} 3",
            "tokenward_check_duration_seconds_count{endpoint=\"auth\"} 3",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} is missing in\n{text}");
        }
    }
}
