//! Leader election through a Kubernetes Lease.
//!
//! Only writes need the lease; every replica watches, so a new leader has warm caches. The leader has a [`Claim`]
//! that ends by itself: it is checked just before each write, so a process that was paused, or cut off from the API
//! server, stops writing before another one starts. The rules are those of client-go's leader election: a
//! follower measures by its own clock for how long the Lease was not renewed, never by the times in the Lease.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::error::{ErrorClass, classify, is_already_exists, is_not_found, message};

/// The share of the lease's duration, counted from before the renewal, for which a replica considers itself the leader.
/// Other replicas wait for the whole duration, counted from when they read the renewal. The fifth in between, 3 s by
/// default, is for a write that is under way when the claim ends and for clocks of different speed. It is a guess.
const CLAIMED_SHARE: f32 = 0.8;

/// The parameters of an election.
#[derive(Clone, Debug)]
pub struct Config {
    /// The namespace of the Lease, which is the operator's own.
    pub namespace: String,
    /// The name of the Lease.
    pub name: String,
    /// Unique among all processes that ever compete for the Lease.
    pub identity: String,
    /// How long the Lease is valid after its last renewal. At least 1 s, the unit of the Lease's field.
    pub duration: Duration,
}

/// The right to write, until an instant of this process's own clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claim(Option<Instant>);

impl Claim {
    /// Whether this process may write now.
    pub fn is_valid(&self) -> bool {
        self.0.is_some_and(|until| Instant::now() < until)
    }
}

/// Takes and renews the Lease while it runs, and publishes the claim.
pub struct Election {
    api: Api<Lease>,
    config: Config,
    claim: watch::Sender<Claim>,
    /// The Lease as last read, and when this process first read it in that form.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Election {
    /// Prepares an election. No request is sent before [`Self::run`].
    pub fn new(client: Client, config: Config) -> (Self, watch::Receiver<Claim>) {
        let (claim, receiver) = watch::channel(Claim::default());
        (Self { api: Api::namespaced(client, &config.namespace), config, claim, seen: None }, receiver)
    }

    /// Takes part in the election until `stop`, then releases the Lease, so that a successor need not wait.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        // A third of the duration leaves room for two failed renewals.
        let period = self.config.duration / 3;
        loop {
            self.round().await;
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                () = &mut stop => break,
            }
        }
        self.release().await;
    }

    /// Takes or renews the Lease once, and publishes what that means for the claim.
    async fn round(&mut self) {
        let start = Instant::now();
        match tokio::time::timeout(self.config.duration / 2, self.take_or_renew()).await {
            Ok(Ok(true)) => {
                let until = start + self.config.duration.mul_f32(CLAIMED_SHARE);
                if !self.claim.send_replace(Claim(Some(until))).is_valid() {
                    info!(
                        lease = self.config.name,
                        identity = self.config.identity,
                        "leading: this replica writes"
                    );
                }
            }
            Ok(Ok(false)) => {
                if self.claim.send_replace(Claim::default()).is_valid() {
                    warn!(lease = self.config.name, "no longer leading: another replica holds the lease");
                }
            }
            Ok(Err(error)) => self.not_renewed(&message(&error)),
            Err(_) => self.not_renewed("no response in time"),
        }
    }

    /// The claim is valid until its end. Receivers are notified, so that they check whether it has ended.
    fn not_renewed(&self, error: &str) {
        debug!(error, "the lease could not be renewed");
        self.claim.send_modify(|_| {});
    }

    /// Takes the Lease if it is free, or renews it if it is ours. Returns whether it is ours now.
    async fn take_or_renew(&mut self) -> Result<bool, kube::Error> {
        let name = self.config.name.clone();
        let mut lease = match self.api.get(&name).await {
            Ok(lease) => lease,
            Err(error) if is_not_found(&error) => {
                let metadata = ObjectMeta { name: Some(name), ..Default::default() };
                let lease = Lease { metadata, spec: Some(self.record(None)) };
                return match self.api.create(&PostParams::default(), &lease).await {
                    Ok(_) => Ok(true),
                    Err(error) if is_already_exists(&error) => Ok(false),
                    Err(error) => Err(error),
                };
            }
            Err(error) => return Err(error),
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if !self.may_take(&spec) {
            return Ok(false);
        }
        lease.spec = Some(self.record(Some(&spec)));
        // With the resourceVersion that was read, this fails if anybody was faster.
        match self.api.replace(&name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(error) if classify(&error) == ErrorClass::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn may_take(&mut self, spec: &LeaseSpec) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.config.identity {
            return true;
        }
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, since)) if seen == spec => *since,
            _ => {
                self.seen = Some((spec.clone(), now));
                now
            }
        };
        let duration = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        now.duration_since(since) > Duration::from_secs(duration)
    }

    fn record(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let same =
            before.is_some_and(|b| b.holder_identity.as_deref() == Some(self.config.identity.as_str()));
        let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: i32::try_from(self.config.duration.as_secs().max(1)).ok(),
            acquire_time: before
                .filter(|_| same)
                .and_then(|b| b.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(!same && before.is_some()))),
            ..Default::default()
        }
    }

    async fn release(self) {
        if !self.claim.send_replace(Claim::default()).is_valid() {
            return;
        }
        let release = async {
            let mut lease = self.api.get(&self.config.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(self.config.identity.as_str()) {
                spec.holder_identity = Some(String::new());
                self.api.replace(&self.config.name, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        match tokio::time::timeout(Duration::from_secs(2), release).await {
            Ok(Ok(())) => info!(lease = self.config.name, "released the lease"),
            Ok(Err(error)) => debug!(error = message(&error), "the lease was not released; it expires"),
            Err(_) => debug!("the lease was not released in time; it expires"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_ends_by_itself() {
        assert!(!Claim::default().is_valid());
        assert!(Claim(Some(Instant::now() + Duration::from_secs(60))).is_valid());
        assert!(!Claim(Some(Instant::now())).is_valid());
    }
}
