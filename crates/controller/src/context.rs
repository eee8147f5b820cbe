//! The state that all reconciliations share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::SignedDuration;
use kube::Client;
use kube::runtime::reflector::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::apitoken::cache::StateCache;
use crate::apitoken::terminating::Terminating;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::objects::SecretMeta;
use crate::recorder::EventRecorder;
use crate::requeue::Load;
use crate::tokenlock::KnownLocks;
use crate::tokenwebhook::Webhooks;
use crate::tokenwebhook::resolve::Resolve;
use crate::verifiers::Verifiers;
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_core::outbox::retry::Schedule;
use tokenward_runtime::cluster::lease::Claim;
use tokenward_runtime::cluster::pepper::PepperState;

/// What the controllers of all watched namespaces share.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) client: Client,
    pub(crate) claim: watch::Receiver<Claim>,
    pub(crate) peppers: watch::Receiver<PepperState>,
    pub(crate) locks: KnownLocks,
    pub(crate) ledger: Ledger,
    pub(crate) verifiers: Verifiers,
    pub(crate) events: EventRecorder,
    pub(crate) metrics: Metrics,
    /// To which addresses webhooks may be sent.
    pub(crate) addresses: Arc<AddressPolicy>,
    pub(crate) resolve: Resolve,
    /// When failed deliveries are repeated.
    pub(crate) schedule: Schedule,
    pub(crate) propagation: SignedDuration,
    pub(crate) expiry_notice: SignedDuration,
    pub(crate) stop: CancellationToken,
}

/// What the reconciliations of one controller share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) claim: watch::Receiver<Claim>,
    /// Whether a write was skipped for want of the lease, so that everything is reconciled once this replica leads.
    pub(crate) skipped: AtomicBool,
    pub(crate) peppers: watch::Receiver<PepperState>,
    pub(crate) locks: KnownLocks,
    pub(crate) ledger: Ledger,
    pub(crate) verifiers: Verifiers,
    pub(crate) secrets: Store<SecretMeta>,
    pub(crate) cache: Arc<StateCache>,
    /// The namespaces in which nothing can be made any more.
    pub(crate) terminating: Terminating,
    pub(crate) events: EventRecorder,
    pub(crate) metrics: Metrics,
    pub(crate) propagation: SignedDuration,
    pub(crate) expiry_notice: SignedDuration,
    pub(crate) webhooks: Webhooks,
    pub(crate) load: Load,
}

impl Context {
    /// Whether this replica may write. To be called just before each write.
    pub(crate) fn may_write(&self) -> bool {
        let is_leader = self.claim.borrow().is_valid();
        if !is_leader {
            self.skipped.store(true, Ordering::Relaxed);
        }
        is_leader
    }
}
