//! The controller's metrics. None is labelled by token or namespace, so their number does not grow with use.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use tokenward_core::crd::RotationReason;

/// The label `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone)]
pub(crate) struct Metrics {
    minted: Family<Reason, Counter>,
    failures: Family<Reason, Counter>,
    reconciled: Histogram,
    pub(crate) conflicts: Counter,
    pub(crate) status_writes: Counter,
    pub(crate) secret_writes: Counter,
    pub(crate) secret_reads: Counter,
    pub(crate) leader: Gauge,
    pub(crate) webhooks: WebhookMetrics,
}

/// Metrics of webhook deliveries.
#[derive(Clone)]
pub(crate) struct WebhookMetrics {
    attempts: Family<Outcome, Counter>,
    dead: Family<Reason, Counter>,
    attempt_duration: Histogram,
    delivery_duration: Histogram,
    pub(crate) status_writes: Counter,
    pub(crate) pending: Gauge,
}

/// The label `outcome`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            minted: Family::default(),
            failures: Family::default(),
            reconciled: Histogram::new(exponential_buckets(0.0001, 4.0, 9)),
            conflicts: Counter::default(),
            status_writes: Counter::default(),
            secret_writes: Counter::default(),
            secret_reads: Counter::default(),
            leader: Gauge::default(),
            webhooks: WebhookMetrics::register(registry),
        };
        registry.register("secrets_minted", "Secrets minted, by reason", metrics.minted.clone());
        registry.register(
            "reconcile_failures",
            "Failed reconciliations of ApiTokens, by reason",
            metrics.failures.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "How long a reconciliation of an ApiToken took, with all its writes",
            Unit::Seconds,
            metrics.reconciled.clone(),
        );
        registry.register(
            "write_conflicts",
            "Writes that were rejected with a conflict",
            metrics.conflicts.clone(),
        );
        registry.register("status_writes", "Writes of ApiToken statuses", metrics.status_writes.clone());
        registry.register("secret_writes", "Writes and deletions of Secrets", metrics.secret_writes.clone());
        registry.register("secret_reads", "Reads of Secrets with their data", metrics.secret_reads.clone());
        registry.register("leader", "1 while this replica is the leader, else 0", metrics.leader.clone());
        metrics
    }

    pub(crate) fn minted(&self, reason: RotationReason) {
        self.minted.get_or_create(&Reason { reason: reason.as_str().to_owned() }).inc();
    }

    pub(crate) fn failed(&self, reason: &str) {
        self.failures.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    pub(crate) fn reconciled(&self, took: Duration) {
        self.reconciled.observe(took.as_secs_f64());
    }
}

impl WebhookMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            attempts: Family::default(),
            dead: Family::default(),
            attempt_duration: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            delivery_duration: Histogram::new(exponential_buckets(0.01, 4.0, 12)),
            status_writes: Counter::default(),
            pending: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("webhook");
        registry.register("attempts", "Requests to webhook endpoints, by outcome", metrics.attempts.clone());
        registry.register("dead_letters", "Dead-lettered events, by reason", metrics.dead.clone());
        registry.register_with_unit(
            "attempt_duration",
            "Duration of a request to a webhook endpoint",
            Unit::Seconds,
            metrics.attempt_duration.clone(),
        );
        registry.register_with_unit(
            "delivery_duration",
            "Time from an event to its acceptance by a webhook endpoint",
            Unit::Seconds,
            metrics.delivery_duration.clone(),
        );
        registry.register("status_writes", "Writes of TokenWebhook statuses", metrics.status_writes.clone());
        registry.register("pending", "Events that are not delivered yet", metrics.pending.clone());
        metrics
    }

    pub(crate) fn attempted(&self, outcome: &'static str, took: Duration) {
        self.attempts.get_or_create(&Outcome { outcome }).inc();
        self.attempt_duration.observe(took.as_secs_f64());
    }

    pub(crate) fn delivered(&self, after: Duration) {
        self.delivery_duration.observe(after.as_secs_f64());
    }

    pub(crate) fn dead(&self, reason: &str) {
        self.dead.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }
}
