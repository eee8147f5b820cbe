//! The ledger: the tombstones of what was revoked, in ConfigMaps beside the pepper. It outlives the ApiTokens, so that nothing
//! that was revoked comes back with a restored copy.
//!
//! Only ever added to. What this process knows is written again where a restored cluster lacks it. No revocation waits for the
//! ledger, and what could not be written is tried again until it is.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::metrics::Metrics;
use crate::objects::params;
use tokenward_core::crd::labels::{LEDGER_LABEL, PART_OF, PART_OF_VALUE};
use tokenward_core::tombstone::{TOMBSTONE_BYTES, Tombstone, Tombstones};
use tokenward_runtime::backoff::{Backoff, WatchBackoff};
use tokenward_runtime::cluster::error::{message, watch_message};
use tokenward_runtime::cluster::lease::Claim;
use tokenward_runtime::cluster::watch::in_pages;
use tokenward_runtime::failpoint;

/// Before the number in the name of a ConfigMap of the ledger.
const NAME: &str = "tokenward-ledger-";
/// The key of its data.
const DATA_KEY: &str = "revoked";
/// How many tombstones a ConfigMap takes: 64 KiB, which each addition writes again.
const MAX_TOMBSTONES: usize = 4096;
/// How long after a write the next one is, so that what a lock revokes by the thousand is written together.
const SPACING: Duration = Duration::from_millis(200);
/// The waits after failed writes in a row.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));

/// The ledger, as all reconciliations share it.
#[derive(Clone)]
pub(crate) struct Ledger {
    tombstones: Arc<Tombstones>,
    to_write: mpsc::UnboundedSender<Vec<Tombstone>>,
    /// `None` until it is listed; then how often others have added to it.
    changes: watch::Receiver<Option<u64>>,
}

impl Ledger {
    /// What was revoked.
    pub(crate) fn tombstones(&self) -> &Tombstones {
        &self.tombstones
    }

    /// Adds to it: at once for this process, and to the cluster soon.
    pub(crate) fn enter(&self, tombstones: Vec<Tombstone>) {
        let new = self.tombstones.extend(tombstones);
        if !new.is_empty() {
            // An error means that the task has ended, which whoever polls it notices.
            let _ = self.to_write.send(new);
        }
    }

    /// Ends when it is listed.
    pub(crate) async fn listed(&self) {
        // An error means that the watch has ended, which whoever polls it notices.
        drop(self.changes.clone().wait_for(Option::is_some).await);
    }

    /// Each time that somebody else has added to it.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<u64>> {
        self.changes.clone()
    }
}

/// The ledger in this namespace, and the task that reads and writes it. Only who holds the lease writes.
pub(crate) fn follow(
    client: Client,
    namespace: &str,
    claim: watch::Receiver<Claim>,
    metrics: Metrics,
) -> (Ledger, impl Future<Output = ()> + use<>) {
    let (to_write, entered) = mpsc::unbounded_channel();
    let (publish, changes) = watch::channel(None);
    let tombstones = Arc::<Tombstones>::default();
    let task = Task {
        api: Api::namespaced(client, namespace),
        claim,
        metrics,
        tombstones: tombstones.clone(),
        publish,
        stored: Stored::default(),
        unwritten: HashSet::new(),
        failures: 0,
    };
    (Ledger { tombstones, to_write, changes }, task.run(entered))
}

/// The ConfigMaps: how many tombstones each has, by its name.
#[derive(Debug, Default)]
struct Stored {
    sizes: BTreeMap<String, usize>,
    /// Of the list that is under way.
    listed: HashSet<Tombstone>,
    is_listing: bool,
}

struct Task {
    api: Api<ConfigMap>,
    claim: watch::Receiver<Claim>,
    metrics: Metrics,
    tombstones: Arc<Tombstones>,
    publish: watch::Sender<Option<u64>>,
    stored: Stored,
    unwritten: HashSet<Tombstone>,
    /// Writes that failed in a row.
    failures: u32,
}

impl Task {
    async fn run(mut self, mut entered: mpsc::UnboundedReceiver<Vec<Tombstone>>) {
        loop {
            let selector = format!("{LEDGER_LABEL}=true");
            let mut events = watcher(self.api.clone(), in_pages().labels(&selector))
                .backoff(WatchBackoff::default())
                .boxed();
            let mut write_at = Instant::now();
            loop {
                let is_due = !self.unwritten.is_empty()
                    && !self.stored.is_listing
                    && self.publish.borrow().is_some()
                    && self.claim.borrow().is_valid();
                tokio::select! {
                    // What is already known first, so that it is written together.
                    biased;
                    Some(tombstones) = entered.recv() => self.unwritten.extend(tombstones),
                    event = events.next() => match event {
                        Some(Ok(event)) => {
                            if self.take(event) {
                                break;
                            }
                        }
                        Some(Err(error)) => warn!(
                            error = watch_message(&error),
                            "the ledger can't be watched; no token is handled before it was read once"
                        ),
                        None => return,
                    },
                    changed = self.claim.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep_until(write_at), if is_due => {
                        write_at = Instant::now() + self.write().await;
                    }
                }
                self.metrics.ledger_unwritten.set(i64::try_from(self.unwritten.len()).unwrap_or(i64::MAX));
            }
        }
    }

    /// Takes in an event. Returns whether some of what was stored is gone, so that all has to be listed.
    fn take(&mut self, event: Event<ConfigMap>) -> bool {
        match event {
            Event::Init => {
                self.stored = Stored { is_listing: true, ..Default::default() };
                false
            }
            Event::InitApply(page) => {
                let tombstones = parse(&page);
                self.stored.sizes.insert(page.name_any(), tombstones.len());
                self.stored.listed.extend(tombstones);
                false
            }
            Event::InitDone => {
                self.stored.is_listing = false;
                let listed = std::mem::take(&mut self.stored.listed);
                let lacking = self.tombstones.all().into_iter().filter(|known| !listed.contains(known));
                self.unwritten = lacking.collect();
                let (tombstones, lacking) = (listed.len(), self.unwritten.len());
                info!(tombstones, lacking, "listed the ledger");
                self.learn(listed);
                self.publish
                    .send_if_modified(|changes| changes.replace(changes.unwrap_or_default()).is_none());
                false
            }
            Event::Apply(page) => {
                let tombstones = parse(&page);
                let before = self.stored.sizes.insert(page.name_any(), tombstones.len());
                let lost = before.is_some_and(|before| before > tombstones.len());
                self.learn(tombstones);
                lost
            }
            Event::Delete(page) => {
                self.stored.sizes.remove(&page.name_any());
                true
            }
        }
    }

    /// Adds what is stored to what is known.
    fn learn(&mut self, stored: impl IntoIterator<Item = Tombstone>) {
        let stored: Vec<_> = stored.into_iter().collect();
        for tombstone in &stored {
            self.unwritten.remove(tombstone);
        }
        if !self.tombstones.extend(stored).is_empty() {
            self.publish.send_if_modified(|changes| {
                changes.as_mut().is_some_and(|changes| {
                    *changes += 1;
                    true
                })
            });
        }
    }

    /// Writes as many as one ConfigMap takes. Returns after what time to write the rest, or to try again.
    async fn write(&mut self) -> Duration {
        let (name, size) = self.stored.open();
        let batch: Vec<_> = self.unwritten.iter().copied().take(MAX_TOMBSTONES - size).collect();
        match self.append(&name, &batch).await {
            Ok(size) => {
                self.failures = 0;
                self.stored.sizes.insert(name, size);
                for tombstone in &batch {
                    self.unwritten.remove(tombstone);
                }
                SPACING
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                warn!(
                    error = message(&error),
                    unwritten = self.unwritten.len(),
                    "ConfigMap {name} of the ledger can't be written; trying again"
                );
                BACKOFF.wait(self.failures)
            }
        }
    }

    /// Adds to a ConfigMap, or makes it. Returns how many tombstones it has then.
    async fn append(&self, name: &str, batch: &[Tombstone]) -> Result<usize, kube::Error> {
        let found = self.api.get_opt(name).await?;
        let exists = found.is_some();
        let mut page = found.unwrap_or_else(|| empty(name));
        let data = page.binary_data.get_or_insert_default().entry(DATA_KEY.to_owned());
        let data = &mut data.or_insert_with(|| ByteString(Vec::new())).0;
        // What somebody has cut is no tombstone, and would shift those behind it.
        data.truncate(data.len() / TOMBSTONE_BYTES * TOMBSTONE_BYTES);
        data.extend(batch.iter().flat_map(Tombstone::as_bytes));
        if let Some(text) = &mut page.data {
            // No key may be in both.
            text.remove(DATA_KEY);
        }
        failpoint::before("ledger");
        let written = if exists {
            self.api.replace(name, &params(), &page).await
        } else {
            self.api.create(&params(), &page).await
        };
        failpoint::after("ledger");
        Ok(parse(&written?).len())
    }
}

impl Stored {
    /// The ConfigMap that takes more, and how many tombstones it has.
    fn open(&self) -> (String, usize) {
        let numbered = |number: usize| format!("{NAME}{number}");
        (0..)
            .map(|number| (numbered(number), self.sizes.get(&numbered(number)).copied().unwrap_or_default()))
            .find(|(_, size)| *size < MAX_TOMBSTONES)
            .unwrap_or_default()
    }
}

/// A ConfigMap of the ledger without tombstones.
fn empty(name: &str) -> ConfigMap {
    let labels = [(PART_OF, PART_OF_VALUE), (LEDGER_LABEL, "true")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let metadata = ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..Default::default() };
    ConfigMap { metadata, ..Default::default() }
}

/// The tombstones of a ConfigMap.
fn parse(page: &ConfigMap) -> Vec<Tombstone> {
    let data = page.binary_data.as_ref().and_then(|data| data.get(DATA_KEY));
    let Some(data) = data else {
        error!(
            config_map = page.name_any(),
            "a ConfigMap of the ledger lacks binaryData.{DATA_KEY}: apply the newest ledger that was saved"
        );
        return Vec::new();
    };
    let (tombstones, rest) = data.0.as_chunks();
    if !rest.is_empty() {
        error!(
            config_map = page.name_any(),
            bytes = rest.len(),
            "a ConfigMap of the ledger was cut: apply the newest ledger that was saved"
        );
    }
    tombstones.iter().copied().map(Tombstone::from_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(data: Option<&[u8]>) -> ConfigMap {
        let data = data.map(|data| [(DATA_KEY.to_owned(), ByteString(data.to_vec()))].into());
        ConfigMap { binary_data: data, ..Default::default() }
    }

    #[test]
    fn what_can_be_read_of_a_damaged_page_is_read() {
        let whole = [[1; TOMBSTONE_BYTES], [2; TOMBSTONE_BYTES]].concat();
        let both = [1, 2].map(|byte| Tombstone::from_bytes([byte; TOMBSTONE_BYTES])).to_vec();
        for (data, expected) in [
            (None, vec![]),
            (Some(&b""[..]), vec![]),
            (Some(&whole), both.clone()),
            (Some(&whole[..TOMBSTONE_BYTES]), both[..1].to_vec()),
            (Some(&whole[..TOMBSTONE_BYTES + 3]), both[..1].to_vec()),
        ] {
            assert_eq!(parse(&page(data)), expected, "{data:?}");
        }
    }

    #[test]
    fn a_full_page_is_followed_by_another() {
        let mut stored = Stored::default();
        assert_eq!(stored.open(), ("tokenward-ledger-0".to_owned(), 0));
        stored.sizes.insert("tokenward-ledger-0".to_owned(), MAX_TOMBSTONES);
        stored.sizes.insert("saved".to_owned(), 1);
        assert_eq!(stored.open(), ("tokenward-ledger-1".to_owned(), 0));
        stored.sizes.insert("tokenward-ledger-1".to_owned(), 7);
        assert_eq!(stored.open(), ("tokenward-ledger-1".to_owned(), 7));
    }
}
