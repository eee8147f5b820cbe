//! What the reconciliations of all ApiTokens share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::SignedDuration;
use kube::Client;
use kube::runtime::reflector::Store;
use tokenward_runtime::cluster::lease::Claim;
use tokenward_runtime::cluster::pepper::PepperState;
use tokio::sync::watch;

use crate::apitoken::cache::StateCache;
use crate::metrics::Metrics;
use crate::objects::SecretMeta;
use crate::recorder;
use crate::requeue::Load;
use crate::tokenwebhook::Webhooks;

/// What every look at a token shares.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) claim: watch::Receiver<Claim>,
    /// A write was left undone for want of the lease, so whoever gets it must look at everything.
    pub(crate) skipped: AtomicBool,
    pub(crate) peppers: watch::Receiver<PepperState>,
    pub(crate) secrets: Store<SecretMeta>,
    pub(crate) memories: Arc<StateCache>,
    pub(crate) events: recorder::Sender,
    pub(crate) metrics: Metrics,
    pub(crate) propagation: SignedDuration,
    pub(crate) expiry_notice: SignedDuration,
    pub(crate) webhooks: Webhooks,
    pub(crate) load: Load,
}

impl Context {
    /// Whether this replica may write. Asked just before each write.
    pub(crate) fn may_write(&self) -> bool {
        let may = self.claim.borrow().holds();
        if !may {
            self.skipped.store(true, Ordering::Relaxed);
        }
        may
    }
}
