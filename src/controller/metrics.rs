//! The controller's metrics. None is labelled by token or namespace, so their number does not grow with use.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::crd::RotationReason;

/// Why something happened, in one word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// The controller's metrics.
#[derive(Clone)]
pub(super) struct Metrics {
    minted: Family<Reason, Counter>,
    failures: Family<Reason, Counter>,
    reconciled: Histogram,
    pub(super) conflicts: Counter,
    pub(super) status_writes: Counter,
    pub(super) secret_writes: Counter,
    pub(super) secret_reads: Counter,
    pub(super) leader: Gauge,
}

impl Metrics {
    /// Registers them all.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            minted: Family::default(),
            failures: Family::default(),
            reconciled: Histogram::new(exponential_buckets(0.0001, 4.0, 9)),
            conflicts: Counter::default(),
            status_writes: Counter::default(),
            secret_writes: Counter::default(),
            secret_reads: Counter::default(),
            leader: Gauge::default(),
        };
        registry.register("minted", "Secrets minted, by reason", metrics.minted.clone());
        registry.register(
            "reconcile_failures",
            "Looks at a token that failed, by reason",
            metrics.failures.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "How long a look at a token took, all its writes included",
            Unit::Seconds,
            metrics.reconciled.clone(),
        );
        registry.register(
            "write_conflicts",
            "Writes that lost a race and were decided anew",
            metrics.conflicts.clone(),
        );
        registry.register("status_writes", "Statuses written", metrics.status_writes.clone());
        registry.register("secret_writes", "Secrets written or deleted", metrics.secret_writes.clone());
        registry.register("secret_reads", "Secrets read in full", metrics.secret_reads.clone());
        registry.register("leader", "1 while this replica holds the lease", metrics.leader.clone());
        metrics
    }

    pub(super) fn minted(&self, reason: RotationReason) {
        self.minted.get_or_create(&Reason { reason: format!("{reason:?}") }).inc();
    }

    pub(super) fn failed(&self, reason: &str) {
        self.failures.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    pub(super) fn reconciled(&self, took: Duration) {
        self.reconciled.observe(took.as_secs_f64());
    }
}
