//! Measures the age of the snapshot, and acts on it.
//!
//! A verifier that is cut off from the API server still decides from memory: what it knows was true, and whatever ends at
//! a given time still ends. But it does not learn of revocations. So after `--max-staleness` it is no longer ready, which
//! takes it out of a Service that has other replicas, and with `--stale-policy deny` it denies every check.

use std::sync::Arc;
use std::time::Duration;

use tracing::{error, info};

use crate::config::StalePolicy;
use crate::heartbeat::Heartbeat;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use tokenward_runtime::telemetry::probes::Part;

/// How often the age is measured, and so by how much readiness may lag. Small beside `--max-staleness`, which is minutes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The age above which a snapshot is stale, and what a verifier does then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub max_staleness: Duration,
    pub policy: StalePolicy,
}

/// Measures the age of a snapshot for as long as it is polled. Of several watches, the oldest counts.
pub(super) async fn watch(
    watches: Vec<Heartbeat>,
    limit: Limit,
    snapshot: Arc<Snapshot>,
    ready: Part,
    metrics: Metrics,
) {
    let mut stale = false;
    ready.set(true);
    loop {
        let age = Heartbeat::oldest(&watches);
        metrics.watch_staleness.set(age.as_secs_f64());
        if (age > limit.max_staleness) != stale {
            stale = !stale;
            ready.set(!stale);
            snapshot.set_stale(stale && limit.policy == StalePolicy::Deny);
            log(stale, age, limit);
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

fn log(stale: bool, age: Duration, limit: Limit) {
    let (seconds, max) = (age.as_secs(), limit.max_staleness.as_secs());
    match (stale, limit.policy) {
        (false, _) => info!("ready again: the API server sends again"),
        (true, StalePolicy::Serve) => error!(
            "not ready: the API server sent nothing readable for {seconds} s, more than the {max} s of --max-staleness; \
             checks go on from memory, revocations are not seen"
        ),
        (true, StalePolicy::Deny) => error!(
            "not ready: the API server sent nothing readable for {seconds} s, more than the {max} s of --max-staleness; by \
             --stale-policy every check is denied"
        ),
    }
}
