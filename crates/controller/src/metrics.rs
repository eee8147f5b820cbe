//! The controller's metrics. None is labelled by token or namespace, so their number does not grow with use.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use tokenward_core::crd::RotationReason;
use tokenward_runtime::telemetry::metrics::{register, register_durations};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone)]
pub(crate) struct Metrics {
    minted: Family<ReasonLabel, Counter>,
    failures: Family<ReasonLabel, Counter>,
    reconciled: Histogram,
    pub(crate) conflicts: Counter,
    pub(crate) status_writes: Counter,
    pub(crate) secret_writes: Counter,
    pub(crate) secret_reads: Counter,
    pub(crate) leader: Gauge,
    pub(crate) ledger_unwritten: Gauge,
    pub(crate) webhooks: WebhookMetrics,
}

/// Metrics of webhook deliveries.
#[derive(Clone)]
pub(crate) struct WebhookMetrics {
    attempts: Family<OutcomeLabel, Counter>,
    dead: Family<ReasonLabel, Counter>,
    attempt_duration: Histogram,
    delivery_duration: Histogram,
    pub(crate) status_writes: Counter,
    pub(crate) pending: Gauge,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        Self {
            minted: register(registry, "secrets_minted", "Secrets minted, by reason"),
            failures: register(
                registry,
                "reconcile_failures",
                "Failed reconciliations of ApiTokens, by reason",
            ),
            reconciled: register_durations(
                registry,
                "reconcile_duration",
                "How long a reconciliation of an ApiToken took, with all its writes",
                exponential_buckets(0.0001, 4.0, 9),
            ),
            conflicts: register(registry, "write_conflicts", "Writes that were rejected with a conflict"),
            status_writes: register(registry, "status_writes", "Writes of ApiToken statuses"),
            secret_writes: register(registry, "secret_writes", "Writes and deletions of Secrets"),
            secret_reads: register(registry, "secret_reads", "Reads of Secrets with their data"),
            leader: register(registry, "leader", "1 while this replica is the leader, else 0"),
            ledger_unwritten: register(
                registry,
                "ledger_unwritten",
                "Revoked tokens and secrets that are not stored in the ledger yet",
            ),
            webhooks: WebhookMetrics::register(registry),
        }
    }

    pub(crate) fn minted(&self, reason: RotationReason) {
        self.minted.get_or_create(&ReasonLabel { reason: reason.as_str().to_owned() }).inc();
    }

    pub(crate) fn failed(&self, reason: &str) {
        self.failures.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    pub(crate) fn reconciled(&self, took: Duration) {
        self.reconciled.observe(took.as_secs_f64());
    }
}

impl WebhookMetrics {
    fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("webhook");
        Self {
            attempts: register(registry, "attempts", "Requests to webhook endpoints, by outcome"),
            dead: register(registry, "dead_letters", "Dead-lettered events, by reason"),
            attempt_duration: register_durations(
                registry,
                "attempt_duration",
                "Duration of a request to a webhook endpoint",
                exponential_buckets(0.001, 4.0, 8),
            ),
            delivery_duration: register_durations(
                registry,
                "delivery_duration",
                "Time from an event to its acceptance by a webhook endpoint",
                exponential_buckets(0.01, 4.0, 12),
            ),
            status_writes: register(registry, "status_writes", "Writes of TokenWebhook statuses"),
            pending: register(registry, "pending", "Events that are not delivered yet"),
        }
    }

    pub(crate) fn attempted(&self, outcome: &'static str, took: Duration) {
        self.attempts.get_or_create(&OutcomeLabel { outcome }).inc();
        self.attempt_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn delivered(&self, after: Duration) {
        self.delivery_duration.observe(after.as_secs_f64());
    }

    pub(crate) fn dead(&self, reason: &str) {
        self.dead.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }
}
