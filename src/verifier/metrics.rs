//! The verifier's metrics. None is labelled by token, so their number does not grow with use.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::check::Code;

/// At which door, and with which outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Check {
    door: &'static str,
    code: &'static str,
}

/// The verifier's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    checks: Family<Check, Counter>,
    pub(super) tokens: Gauge,
    pub(super) heard: Gauge,
    pub(super) connections: ConnectionMetrics,
    /// When the TLS certificate ends. 0: without TLS.
    pub(super) certificate_expiry: Gauge,
}

/// What concerns connections, whatever is asked on them.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionMetrics {
    pub(super) open: Gauge,
    /// Those that had to make room for new ones.
    pub(super) displaced: Counter,
}

/// The counters of one door, looked up once: a check only adds to one of them.
#[derive(Clone, Debug)]
pub(super) struct DoorMetrics {
    allowed: Counter,
    denied: [Counter; Code::ALL.len()],
    malformed: Counter,
}

impl Metrics {
    /// Registers them all.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            checks: Family::default(),
            tokens: Gauge::default(),
            heard: Gauge::default(),
            connections: ConnectionMetrics::default(),
            certificate_expiry: Gauge::default(),
        };
        registry.register("checks", "Checks answered, by door and outcome", metrics.checks.clone());
        registry.register("tokens_indexed", "ApiTokens in the index", metrics.tokens.clone());
        registry.register(
            "last_event_timestamp_seconds",
            "When the API server was last heard of, in seconds since the epoch",
            metrics.heard.clone(),
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

    pub(super) fn door(&self, door: &'static str) -> DoorMetrics {
        let counter = |code| self.checks.get_or_create_owned(&Check { door, code });
        DoorMetrics {
            allowed: counter("ALLOWED"),
            denied: Code::ALL.map(|code| counter(code.as_str())),
            malformed: counter("MALFORMED"),
        }
    }
}

impl DoorMetrics {
    pub(super) fn allowed(&self) {
        self.allowed.inc();
    }

    pub(super) fn denied(&self, code: Code) {
        if let Some(counter) =
            Code::ALL.iter().position(|other| *other == code).and_then(|i| self.denied.get(i))
        {
            counter.inc();
        }
    }

    pub(super) fn malformed(&self) {
        self.malformed.inc();
    }
}
