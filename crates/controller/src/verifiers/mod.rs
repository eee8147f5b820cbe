//! The verifiers, asked how far they have come, so that a revocation or a lock is called in force once it is.
//!
//! They are asked while something waits for it, and now and then. What they say carries a MAC under the pepper, so no connection has
//! to be trusted.

mod ask;
mod endpoints;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{StreamExt, future};
use jiff::Timestamp;
use kube::Client;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tracing::debug;

use self::endpoints::{Endpoint, Endpoints};
use tokenward_core::proof::{Confirmations, Heard, Watermark, Written};
use tokenward_runtime::cluster::pepper::PepperState;

/// How often they are asked while something waits, for each [`CONCURRENT`] that there are: less and less, for the sake of one that
/// stays silent, and again as often once something newer waits.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
const LONGEST_BUSY_INTERVAL: Duration = Duration::from_secs(1);
/// How often they are asked otherwise, so that the policy of one that falls silent is known.
const QUIET_INTERVAL: Duration = Duration::from_secs(10);
/// For how long they are asked often after something has waited.
const BUSY_TIME: Duration = Duration::from_secs(3);
/// Verifiers that are asked at a time.
const CONCURRENT: usize = 32;

/// What the verifiers have said, for those who wait for it.
#[derive(Clone)]
pub(crate) struct Verifiers {
    heard: watch::Receiver<Arc<Vec<Heard>>>,
    wanted: Arc<Wanted>,
    /// Whether any are known at all. If not, nobody is asked, and nothing waits.
    are_known: bool,
}

/// What waits for verifiers.
#[derive(Default)]
struct Wanted {
    notify: Notify,
    /// The highest resourceVersion that was waited for.
    newest: AtomicU64,
    /// Whether it has risen since they were asked.
    is_newer: AtomicBool,
}

impl Wanted {
    fn ask(&self, resource_version: u64) {
        if self.newest.fetch_max(resource_version, Ordering::Relaxed) < resource_version {
            self.is_newer.store(true, Ordering::Relaxed);
        }
        self.notify.notify_one();
    }
}

impl Verifiers {
    /// How many verifiers know what was written `at` an instant. `None`: the controller was told of none.
    pub(crate) fn confirmations(&self, written: Option<Written<'_>>, at: Timestamp) -> Option<Confirmations> {
        if !self.are_known {
            return None;
        }
        let heard = self.heard.borrow().clone();
        // Not even the list of them has been read.
        let unknown = || Confirmations {
            missing: vec!["the verifiers are not known yet".to_owned()],
            ..Default::default()
        };
        let confirmations = match written {
            Some(written) if !heard.is_empty() => Confirmations::count(&heard, written, at),
            _ => unknown(),
        };
        if !confirmations.are_complete() {
            self.wanted.ask(written.map_or(0, |written| written.resource_version()));
        }
        Some(confirmations)
    }
}

/// The verifiers of these flags, and the task that asks them.
pub(crate) fn follow(
    client: &Client,
    namespace: &str,
    args: &crate::config::VerifierArgs,
    peppers: watch::Receiver<PepperState>,
) -> (Verifiers, impl Future<Output = ()> + use<>) {
    let (publish, heard) = watch::channel(Arc::default());
    let wanted = Arc::<Wanted>::default();
    let endpoints = Endpoints::of(client, namespace, args);
    let verifiers = Verifiers { heard, wanted: wanted.clone(), are_known: endpoints.is_some() };
    let run = async move {
        match endpoints {
            Some((endpoints, watch)) => {
                future::join(watch, ask_all(endpoints, publish, wanted, peppers)).await;
            }
            None => future::pending().await,
        }
    };
    (verifiers, run)
}

async fn ask_all(
    endpoints: Endpoints,
    publish: watch::Sender<Arc<Vec<Heard>>>,
    wanted: Arc<Wanted>,
    peppers: watch::Receiver<PepperState>,
) {
    // Without those of the Service, all of the others would pass for all there are.
    endpoints.listed().await;
    let mut known = Known::default();
    // Each by itself, so that one that is silent delays none.
    let (mut asked, mut in_flight) = (FuturesUnordered::new(), HashSet::new());
    let permits = Arc::new(Semaphore::new(CONCURRENT));
    let (mut busy_until, mut interval) = (Instant::now(), BUSY_INTERVAL);
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {
                let is_busy = Instant::now() < busy_until;
                let current = endpoints.current();
                known.update(&current);
                let shortest = shortest_interval(current.len());
                interval = if is_busy { (interval * 5 / 4).min(LONGEST_BUSY_INTERVAL) } else { shortest };
                if wanted.is_newer.swap(false, Ordering::Relaxed) {
                    interval = shortest;
                }
                next = Instant::now() + if is_busy { interval } else { QUIET_INTERVAL };
                let PepperState::Present(peppers) = peppers.borrow().clone() else { continue };
                for (endpoint, may_serve) in current {
                    if in_flight.insert(endpoint.clone()) {
                        let (peppers, permits) = (peppers.clone(), permits.clone());
                        asked.push(async move {
                            let _permit = permits.acquire().await;
                            let answer = ask::ask(endpoint.address, &peppers).await;
                            (endpoint, may_serve, answer)
                        });
                    }
                }
            }
            Some((endpoint, may_serve, answer)) = asked.next() => {
                in_flight.remove(&endpoint);
                known.note(endpoint, may_serve, answer, Timestamp::now());
            }
            () = wanted.notify.notified() => {
                let now = Instant::now();
                if now >= busy_until {
                    next = now;
                } else if wanted.is_newer.load(Ordering::Relaxed) {
                    next = next.min(now + shortest_interval(known.heard.len()));
                }
                busy_until = now + BUSY_TIME;
                continue;
            }
        }
        let mut heard: Vec<_> = known.heard.values().cloned().collect();
        heard.sort_by(|a, b| a.name.cmp(&b.name));
        publish.send_if_modified(|before| {
            let changed = **before != heard;
            if changed {
                *before = Arc::new(heard);
            }
            changed
        });
    }
}

/// The shortest interval for so many verifiers, so that the answers of very many are no load.
fn shortest_interval(verifiers: usize) -> Duration {
    BUSY_INTERVAL * u32::try_from(verifiers / CONCURRENT + 1).unwrap_or(u32::MAX)
}

/// What is known of the verifiers.
#[derive(Default)]
struct Known {
    /// All that may decide checks, whether or not they have been heard.
    heard: HashMap<Endpoint, Heard>,
    /// Those of which no process runs.
    gone: HashSet<Endpoint>,
}

impl Known {
    /// Takes in which verifiers there are now. Each counts from then on, and not only once it has answered.
    fn update(&mut self, current: &[(Endpoint, bool)]) {
        self.heard.retain(|endpoint, _| current.iter().any(|(other, _)| other == endpoint));
        self.gone.retain(|endpoint| current.iter().any(|(other, may_serve)| other == endpoint && !may_serve));
        for (endpoint, _) in current.iter().filter(|(endpoint, _)| !self.gone.contains(endpoint)) {
            self.heard.entry(endpoint.clone()).or_insert_with(|| unheard(endpoint));
        }
    }

    /// Notes what a verifier has said, or that it says nothing.
    fn note(
        &mut self,
        endpoint: Endpoint,
        may_serve: bool,
        answer: Result<Watermark, ask::Error>,
        now: Timestamp,
    ) {
        match answer {
            Ok(last) => {
                self.gone.remove(&endpoint);
                let heard = Heard { last: Some(last), ..unheard(&endpoint) };
                self.heard.insert(endpoint, heard);
            }
            // No process of it runs, by the API server and by its own port.
            Err(ask::Error::Refused) if !may_serve => {
                self.heard.remove(&endpoint);
                self.gone.insert(endpoint);
            }
            Err(error) => {
                debug!(verifier = endpoint.name, %error, "a verifier does not say how far it has come");
                self.gone.remove(&endpoint);
                let heard = self.heard.entry(endpoint).or_insert_with_key(unheard);
                heard.silent_since.get_or_insert(now);
            }
        }
    }
}

/// A verifier that has not been asked yet.
fn unheard(endpoint: &Endpoint) -> Heard {
    Heard { name: endpoint.name.clone(), last: None, silent_since: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(name: &str) -> Endpoint {
        Endpoint { name: name.to_owned(), address: "192.0.2.1:9090".parse().expect("an address") }
    }

    fn states(known: &Known) -> Vec<(bool, Option<Timestamp>)> {
        known.heard.values().map(|heard| (heard.last.is_some(), heard.silent_since)).collect()
    }

    #[test]
    fn one_that_is_silent_counts_unless_none_runs() {
        let at = |second| Timestamp::from_second(second).expect("an instant");
        let mut known = Known::default();
        let mut note = |may_serve, answer, second| {
            known.update(&[(endpoint("a"), may_serve)]);
            known.note(endpoint("a"), may_serve, answer, at(second));
            states(&known).first().copied()
        };
        assert_eq!(note(false, Err(ask::Error::Refused), 0), None);
        assert_eq!(note(true, Err(ask::Error::Refused), 1), Some((false, Some(at(1)))));
        assert_eq!(note(true, Err(ask::Error::TimedOut), 2), Some((false, Some(at(1)))));
        assert_eq!(note(true, Ok(Watermark::default()), 3), Some((true, None)));
        assert_eq!(note(false, Err(ask::Error::TimedOut), 4), Some((true, Some(at(4)))));
        assert_eq!(note(false, Err(ask::Error::NotAuthentic), 5), Some((true, Some(at(4)))));
        assert_eq!(note(false, Err(ask::Error::Refused), 6), None);
        assert_eq!(note(false, Err(ask::Error::Refused), 7), None);
    }

    /// Else what the first of them says would pass for the word of all.
    #[test]
    fn one_counts_before_it_is_heard() {
        let mut known = Known::default();
        known.update(&[(endpoint("a"), true), (endpoint("b"), true), (endpoint("c"), false)]);
        known.note(endpoint("a"), true, Ok(Watermark::default()), Timestamp::UNIX_EPOCH);
        let mut states = states(&known);
        states.sort_unstable();
        assert_eq!(states, [(false, None), (false, None), (true, None)]);
        // One of which no process runs is forgotten until it is said to run.
        known.note(endpoint("c"), false, Err(ask::Error::Refused), Timestamp::UNIX_EPOCH);
        known.update(&[(endpoint("b"), true), (endpoint("c"), false)]);
        assert_eq!(known.heard.len(), 1);
        known.update(&[(endpoint("b"), true), (endpoint("c"), true)]);
        assert_eq!(known.heard.len(), 2);
    }
}
