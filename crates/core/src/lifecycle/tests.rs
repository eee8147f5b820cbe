//! No sequence of edits, clock steps, crashes and accidents breaks the invariants. A model plays the API server,
//! the Secret and the memory of the process. Whether a token works is decided as in the verifier.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use proptest::prelude::*;

use super::*;
use crate::check::{Audience, Code, Decision, Entry, Indexed, Request, ScopePool, decide};
use crate::crd::CreationPolicy;
use crate::crd::labels::{
    MANAGED_BY, NAMESPACE_ANNOTATION, REVOKED_LABEL, SCOPES_ANNOTATION, SEAL_ANNOTATION, TOKEN_LABEL,
    WEBHOOKS_FINALIZER,
};
use crate::crd::{
    ApiToken, ApiTokenSpec, ApiTokenStatus, ClusterTokenLock, ClusterTokenLockSpec, ConditionType,
    LockAction, LockMatch, LockSpec, OnDelete, OnRevoke, OnSpecChange, RevocationSource, Rotation,
    SecretSpec, TokenVersion, TokenWebhook, TokenWebhookSpec, VersionState, find_condition,
};
use crate::lock::{Candidate, Lock, Locks, Progress};
use crate::outbox::events::{Receipt, Receipts};
use crate::outbox::subscription::Subscription;
use crate::token::format;
use crate::token::format::{KeyId, Prefix};
use crate::token::seal::{Seal, Sealed};
use crate::token::{Hash, Peppers, Plaintext, Token};
use crate::tombstone::{Tombstone, Tombstones};

/// A scope that no secret is ever issued with.
const FORGED_SCOPE: &str = "forged:scope";
const START: i64 = 1_800_000_000_000;

/// The world around the decision.
struct World {
    token: ApiToken,
    secret: Option<Secret>,
    secret_writes: u64,
    minted: Option<(KeyId, Plaintext)>,
    now: Timestamp,
    generated: u8,
    peppers: Peppers,
    /// Every token that was ever in the Secret, by key id.
    delivered: BTreeMap<String, String>,
    /// Until when a replaced token was promised to work, and its version.
    promised: BTreeMap<String, (Timestamp, i64)>,
    transitions: Vec<TransitionKind>,
    subscriptions: Vec<Subscription>,
    /// What the TokenWebhooks have accepted since the last status write.
    receipts: Receipts,
    /// The id and type of every event that was ever in the outbox.
    sent: Vec<(String, String)>,
    /// Somebody has restored an older Secret, whose version may no longer be in the status.
    restored: bool,
    /// A status as it was once.
    earlier: Option<ApiTokenStatus>,
    /// Somebody else has written the status, so transitions may happen again, whose events have the ids that they had.
    rewritten: bool,
    /// The locks as the API server and the verifiers have them.
    locks: Locks,
    /// The same as the controller has them, which may be late.
    known_locks: Locks,
    /// The ledger.
    tombstones: Tombstones,
    generated_uids: u32,
}

/// The objects at one time.
struct Backup {
    token: ApiToken,
    secret: Option<Secret>,
    tombstones: Vec<Tombstone>,
}

/// What can happen between two steps.
#[derive(Clone, Debug)]
enum Happening {
    Scopes(u8),
    Trigger(u8),
    Interval(Option<u8>),
    Overlap(u8),
    Keep(bool),
    Suspend(bool),
    Revoke,
    Expire(Option<i32>),
    /// Sets `rotation.notBefore`, in seconds from now, as far as the CRD lets it move back.
    Cut(i32),
    OnRevoke(bool),
    Retain(bool),
    PreviousKey(bool),
    Clock(i32),
    /// The process dies, and loses what is in memory.
    Crash,
    /// Makes this number of steps.
    Steps(u8),
    DeleteSecret,
    EditSecret,
    StripSecret,
    /// An older Secret is restored.
    RestoreSecret,
    WipeStatus,
    /// Somebody else writes the status: every secret is live for good, with more scopes.
    ForgeStatus,
    /// Somebody else writes an earlier status.
    SetBackStatus,
    /// A TokenWebhook is created or deleted.
    Subscribe(bool),
    /// Every event in the outbox is accepted.
    Accept,
    Collect,
}

/// What can happen to locks.
#[derive(Clone, Debug)]
enum LockAct {
    Create(LockAction, Matched),
    /// All are deleted that may be.
    Delete,
    /// The controller learns of the locks.
    Learn,
    Nothing,
}

/// What a lock of a test matches.
#[derive(Clone, Debug)]
enum Matched {
    All,
    /// What was issued before so many milliseconds ago.
    IssuedBefore(i64),
    /// One of the delivered secrets.
    KeyId(usize),
    Scope(u8),
    Nothing,
}

fn lock_act() -> impl Strategy<Value = LockAct> {
    let action = prop_oneof![Just(LockAction::Revoke), Just(LockAction::Suspend)];
    let matched = prop_oneof![
        Just(Matched::All),
        (0i64..5000).prop_map(Matched::IssuedBefore),
        (0usize..4).prop_map(Matched::KeyId),
        (1u8..8).prop_map(Matched::Scope),
        Just(Matched::Nothing),
    ];
    prop_oneof![
        2 => (action, matched).prop_map(|(action, matched)| LockAct::Create(action, matched)),
        2 => Just(LockAct::Delete),
        4 => Just(LockAct::Learn),
        12 => Just(LockAct::Nothing),
    ]
}

/// What can be restored.
#[derive(Clone, Debug)]
enum RestoreAct {
    BackUp,
    /// Object by object, with the status or without.
    ByApi(bool),
    Etcd,
    Nothing,
}

fn restore_act() -> impl Strategy<Value = RestoreAct> {
    prop_oneof![
        3 => Just(RestoreAct::BackUp),
        2 => any::<bool>().prop_map(RestoreAct::ByApi),
        2 => Just(RestoreAct::Etcd),
        12 => Just(RestoreAct::Nothing),
    ]
}

/// The type of event that TokenWebhooks receive, by the documentation.
fn wire_name(kind: TransitionKind) -> Option<&'static str> {
    match kind {
        TransitionKind::Minted => Some("token.created"),
        TransitionKind::Rotated => Some("token.rotated"),
        TransitionKind::KeyRetired => Some("token.key_retired"),
        TransitionKind::Revoked => Some("token.revoked"),
        TransitionKind::Suspended => Some("token.suspended"),
        TransitionKind::Resumed => Some("token.resumed"),
        TransitionKind::Expiring => Some("token.expiring"),
        TransitionKind::Expired => Some("token.expired"),
        TransitionKind::EventLost | TransitionKind::Rebuilt | TransitionKind::Stalled => None,
    }
}

fn webhook(events: &[&str]) -> Subscription {
    let events = events.iter().map(|event| (*event).to_owned()).collect();
    let spec = TokenWebhookSpec { events, ..Default::default() };
    Subscription::of(&TokenWebhook::new("hook", spec)).expect("a subscription")
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    prop_oneof![
        3 => (1u8..8).prop_map(Scopes),
        3 => (0u8..4).prop_map(Trigger),
        1 => proptest::option::of(0u8..3).prop_map(Interval),
        2 => (0u8..4).prop_map(Overlap),
        1 => any::<bool>().prop_map(Keep),
        1 => any::<bool>().prop_map(Suspend),
        1 => Just(Revoke),
        1 => proptest::option::of(-100i32..10_000).prop_map(Expire),
        1 => (-1000i32..1000).prop_map(Cut),
        1 => any::<bool>().prop_map(OnRevoke),
        1 => any::<bool>().prop_map(Retain),
        1 => any::<bool>().prop_map(PreviousKey),
        4 => (-500i32..8000).prop_map(Clock),
        3 => Just(Crash),
        12 => (1u8..6).prop_map(Steps),
        1 => Just(DeleteSecret),
        1 => Just(EditSecret),
        1 => Just(StripSecret),
        1 => Just(RestoreSecret),
        1 => Just(ForgeStatus),
        1 => Just(SetBackStatus),
        2 => any::<bool>().prop_map(Subscribe),
        3 => Just(Accept),
        1 => Just(Collect),
    ]
}

impl World {
    fn new() -> Self {
        let spec = ApiTokenSpec { scopes: vec!["s:1".to_owned()], ..Default::default() };
        let mut token = ApiToken::new("name", spec);
        token.metadata.namespace = Some("ns".to_owned());
        token.metadata.uid = Some("0f8fad5b-d9cb-469f-a165-70867728950e".to_owned());
        token.metadata.generation = Some(1);
        let start = Timestamp::from_millisecond(START).expect("an instant");
        token.metadata.creation_timestamp = Some(Time(start));
        Self {
            token,
            secret: None,
            secret_writes: 0,
            minted: None,
            now: Timestamp::from_millisecond(START).expect("an instant"),
            generated: 0,
            peppers: Peppers::from_data(&Peppers::new_data(&[1; 32])).expect("peppers"),
            delivered: BTreeMap::new(),
            promised: BTreeMap::new(),
            transitions: Vec::new(),
            subscriptions: Vec::new(),
            receipts: Receipts::default(),
            sent: Vec::new(),
            restored: false,
            earlier: None,
            rewritten: false,
            locks: Locks::default(),
            known_locks: Locks::default(),
            tombstones: Tombstones::default(),
            generated_uids: 0,
        }
    }

    fn observed(&self) -> Observed<'_> {
        let spec = Spec::of(&self.token);
        let secret = match (&self.secret, &spec) {
            (Some(secret), Ok(spec)) => inspect(secret, &self.token, spec, &self.peppers, &self.tombstones),
            _ => SecretState::Absent,
        };
        Observed {
            token: &self.token,
            spec,
            secret,
            locks: &self.known_locks,
            tombstones: &self.tombstones,
            peppers: &self.peppers,
            minted: self.minted.as_ref().map(|(key_id, _)| *key_id),
            rejection: None,
            contests: Contests::default(),
            propagation: SignedDuration::from_secs(1),
            subscriptions: &self.subscriptions,
            receipts: self.receipts.clone(),
            confirmations: None,
            expiry_notice: SignedDuration::from_secs(500),
        }
    }

    /// A lock that is created now.
    fn lock(&self, action: LockAction, what: &Matched, number: u32) -> ClusterTokenLock {
        let mut matches = LockMatch::default();
        match what {
            Matched::All => matches.all = Some(true),
            Matched::IssuedBefore(ago) => {
                matches.issued_before = Some(self.now - SignedDuration::from_millis(*ago));
            }
            Matched::KeyId(at) => {
                let key_ids: Vec<_> = self.delivered.keys().collect();
                matches.key_ids = Some(vec![key_ids[at % key_ids.len()].clone()]);
            }
            Matched::Scope(scope) => matches.scopes = Some(vec![format!("s:{scope}")]),
            Matched::Nothing => matches.names = Some(vec!["another".to_owned()]),
        }
        let lock = LockSpec { matches, action, ..Default::default() };
        let mut lock = ClusterTokenLock::new(&format!("lock-{number}"), ClusterTokenLockSpec { lock });
        lock.metadata.uid = Some(format!("uid-{number}"));
        lock.metadata.creation_timestamp = Some(Time(self.now));
        lock
    }

    /// Makes the next step, as `controller::apply` does. Returns whether there was one.
    fn step(&mut self) -> bool {
        let before = self.token.status.clone();
        let observed = self.observed();
        match next_step(&observed, self.now) {
            Step::Wait(until) => {
                assert!(until.is_none_or(|until| until > self.now), "waiting for the past");
                return false;
            }
            Step::Announce(announcement) => {
                let generated = self.generated + 1;
                let key_id = KeyId::from_bytes([generated; 16]);
                let plaintext = format::make(&Prefix::default(), key_id, &[generated; 32]);
                let hash = self.peppers.hash("ns", "name", &plaintext).expect("a hash");
                let (status, transitions) =
                    announce(&observed, *announcement, &Material { key_id, hash }, self.now);
                self.generated = generated;
                self.record(status, transitions);
                self.minted = Some((key_id, plaintext));
            }
            Step::EnterIntoLedger(tombstones) => {
                self.tombstones.extend(tombstones);
                return true;
            }
            Step::Record(status, transitions) => self.record(*status, transitions),
            Step::WriteSecret { key_id, content } => {
                let status = before.clone().expect("a status precedes the Secret");
                let version = status
                    .versions
                    .iter()
                    .find(|v| v.key_id == key_id)
                    .expect("the version is in the status");
                let spec = observed.spec.clone().expect("a spec");
                let metadata = SecretMetadata::of(&self.token, &spec, version, &status);
                let minted =
                    (content == Content::Minted).then(|| self.minted.as_ref().expect("a minted token"));
                let desired = DesiredData {
                    version,
                    plaintext: minted.map(|(_, p)| p),
                    previous: previous_version(&status, content),
                };
                if spec.creation_policy == CreationPolicy::Merge {
                    let theirs = self.secret.as_ref().expect("none is made in the place of somebody else's");
                    assert!(consents(&theirs.metadata, "name"), "written without consent");
                }
                let secret =
                    compose(self.secret.clone(), &self.token, &spec, &self.peppers, &metadata, &desired);
                let mut secret = secret.expect("a Secret");
                self.secret_writes += 1;
                secret.metadata.uid.get_or_insert_with(|| format!("uid-{}", self.secret_writes));
                secret.metadata.creation_timestamp.get_or_insert(Time(self.now));
                secret.metadata.resource_version = Some(self.secret_writes.to_string());
                let text = self.data(&secret, &spec.token_key).expect("a token");
                self.delivered.insert(key_id, text);
                self.secret = Some(secret);
                if content == Content::Minted {
                    self.minted = None;
                }
            }
            Step::DeleteSecret => self.secret = None,
            // These leave the status as somebody else may have written it.
            Step::AddFinalizer => {
                self.token.metadata.finalizers = Some(vec![WEBHOOKS_FINALIZER.to_owned()]);
                return true;
            }
            Step::RemoveFinalizer(_) => {
                self.token.metadata.finalizers = None;
                return true;
            }
        }
        self.check_invariants(before.as_ref());
        true
    }

    fn record(&mut self, status: ApiTokenStatus, transitions: Vec<Transition>) {
        self.transitions.extend(transitions.iter().map(|transition| transition.kind));
        let overlap = self.observed().spec.map(|spec| spec.overlap).unwrap_or_default();
        if overlap.is_zero()
            && transitions.iter().any(|transition| transition.kind == TransitionKind::Rotated)
        {
            self.promised.clear();
        }
        // Each event that a TokenWebhook subscribes to is recorded in the same write.
        let before = self.sent.len();
        for event in status.outbox.iter().flat_map(|outbox| &outbox.events) {
            if !self.sent.iter().any(|(id, _)| *id == event.id) {
                self.sent.push((event.id.clone(), event.type_.clone()));
            }
        }
        // A deletion is no Kubernetes Event, since its object is gone.
        let sent = self.sent[before..].iter().map(|(_, type_)| &**type_);
        let sent: Vec<&str> = sent.filter(|type_| *type_ != "token.deleted").collect();
        let wanted: Vec<&str> =
            transitions.iter().filter_map(|transition| wire_name(transition.kind)).collect();
        if !self.subscriptions.is_empty() && !self.rewritten {
            assert_eq!(sent, wanted, "the outbox and the transitions differ");
        }
        self.receipts.retain(status.outbox.as_ref());
        // As the API server would return it.
        let status = serde_json::to_value(status).expect("json");
        self.token.status = Some(serde_json::from_value(status).expect("a status"));
    }

    fn data(&self, secret: &Secret, key: &str) -> Option<String> {
        String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
    }

    fn current(&self) -> Option<String> {
        self.data(self.secret.as_ref()?, "token")
    }

    fn check(&self, text: &str) -> Result<(), Code> {
        self.check_for(text, &[])
    }

    /// By a verifier that has just started.
    fn check_for(&self, text: &str, scopes: &[&str]) -> Result<(), Code> {
        self.check_by(&Tombstones::default(), text, scopes)
    }

    /// By a verifier that remembers these.
    fn check_by(&self, remembered: &Tombstones, text: &str, scopes: &[&str]) -> Result<(), Code> {
        let Indexed { versions, .. } =
            Entry::of(&(&self.token).into(), &self.peppers, 0, &mut ScopePool::default(), remembered);
        let token = Token::parse(text).ok_or(Code::NotFound)?;
        match decide(
            versions.iter().map(|(_, version)| version),
            &self.peppers,
            &self.locks,
            &Request { token, scopes, audience: Audience::Unnamed, client: None },
            self.now,
        ) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(code) => Err(code),
        }
    }

    fn status(&self) -> ApiTokenStatus {
        self.token.status.clone().unwrap_or_default()
    }

    fn live(&self) -> Vec<i64> {
        let status = self.status();
        let live = status
            .versions
            .iter()
            .filter(|v| v.state.is_live() && v.retire_at.is_none_or(|at| at > self.now));
        live.map(|v| v.version).collect()
    }

    /// Checks the invariants that every write must preserve.
    fn check_invariants(&mut self, before: Option<&ApiTokenStatus>) {
        let status = self.status();
        assert!(self.live().len() <= 4, "five live: {status:#?}");
        if let Some(before) = before {
            assert!(before.revocation.is_none() || status.revocation.is_some(), "un-revoked");
            assert!(
                before.token_id.is_none() || before.token_id == status.token_id || self.rewritten,
                "another tokenId"
            );
            if before.revocation.is_some() {
                let newest = |s: &ApiTokenStatus| s.versions.first().map(|v| v.version);
                assert_eq!(newest(before), newest(&status), "a revoked token was rotated");
            }
        }
        if status.revocation.is_some() {
            assert!(status.versions.iter().all(|v| !v.state.is_live()), "a live version of a revoked token");
        }
        let numbers: BTreeSet<_> = status.versions.iter().map(|v| v.version).collect();
        assert_eq!(numbers.len(), status.versions.len(), "one number twice");
        assert!(status.versions.len() <= 7, "{} versions", status.versions.len());
        // The Secret never contains a token that the status does not know.
        if let Some(token) = self.current().as_deref().and_then(Token::parse)
            && !self.restored
        {
            let known = status.versions.iter().any(|v| v.key_id == token.key_id().as_str());
            assert!(known, "the Secret contains an unknown token");
        }
        for version in &status.versions {
            if let (VersionState::Retiring, Some(at)) = (version.state, version.retire_at) {
                let overlap = self.observed().spec.map(|spec| spec.overlap).unwrap_or_default();
                let promise = (self.now + overlap, version.version);
                let (promised, _) = self.promised.entry(version.key_id.clone()).or_insert(promise);
                // By the seal of an earlier Secret, a rewritten status can have a version replaced a second time.
                assert!(at >= *promised || self.rewritten, "the overlap is counted from the delivery");
            }
        }
    }

    /// Takes a backup.
    fn back_up(&self) -> Backup {
        Backup { token: self.token.clone(), secret: self.secret.clone(), tombstones: self.tombstones.all() }
    }

    /// Restores a backup as a tool does that creates objects by the API: they are other objects, made now.
    fn restore(&mut self, backup: &Backup, with_status: bool) {
        let generation = self.token.metadata.generation;
        self.token = backup.token.clone();
        self.token.metadata.generation = generation;
        self.generated_uids += 1;
        self.token.metadata.uid = Some(format!("{:08}-d9cb-469f-a165-70867728950e", self.generated_uids));
        self.token.metadata.finalizers = None;
        if !with_status {
            self.token.status = None;
        }
        self.secret = backup.secret.clone();
        if let Some(secret) = &mut self.secret {
            secret.metadata.creation_timestamp = Some(Time(self.now));
            secret.metadata.owner_references = None;
            secret.metadata.uid = Some(format!("restored-{}", self.generated_uids));
        }
        (self.restored, self.rewritten) = (true, true);
        self.minted = None;
    }

    /// Restores a backup of etcd: every object as it was. The ledger is, too, unless it was saved.
    fn restore_etcd(&mut self, backup: &Backup, with_ledger: bool) {
        (self.token, self.secret) = (backup.token.clone(), backup.secret.clone());
        if !with_ledger {
            self.tombstones = Tombstones::default();
            self.tombstones.extend(backup.tombstones.iter().copied());
        }
        (self.restored, self.rewritten) = (true, true);
        self.minted = None;
    }

    /// Deletes the object and creates it again: another uid, no status, the Secret still there.
    fn recreate(&mut self) {
        self.token.status = None;
        self.token.metadata.uid = Some("11111111-d9cb-469f-a165-70867728950e".to_owned());
        self.restored = true;
    }

    /// Gives the Secret the seal that earlier controllers made.
    fn seal_in_the_first_form(&mut self) {
        let version = self.status().versions.remove(0);
        let issued_at = version.issued_at.to_string();
        let sealed = Sealed {
            namespace: "ns",
            name: "name",
            uid: self.token.metadata.uid.as_deref().expect("a uid"),
            token_id: &self.status().token_id.expect("a token id"),
            issued_at: &issued_at,
            version: version.version,
            key_id: &version.key_id,
            scopes: None,
            revoked: false,
            hash: &Hash::parse(&version.hash).expect("a hash"),
        };
        let seal = Seal::make(&self.peppers, &sealed).expect("a seal").to_string();
        let secret = self.secret.as_mut().expect("a Secret");
        let annotations = secret.metadata.annotations.as_mut().expect("annotations");
        annotations.remove(SCOPES_ANNOTATION);
        annotations.insert(SEAL_ANNOTATION.to_owned(), seal);
    }

    fn spec(&mut self, change: impl FnOnce(&mut ApiTokenSpec)) {
        let before = self.token.spec.clone();
        change(&mut self.token.spec);
        if self.token.spec != before {
            self.token.metadata.generation = self.token.metadata.generation.map(|g| g + 1);
        }
    }

    fn rotation(&mut self, change: impl FnOnce(&mut Rotation)) {
        self.spec(|spec| change(spec.rotation.get_or_insert_default()));
    }

    fn secret_spec(&mut self, change: impl FnOnce(&mut SecretSpec)) {
        self.spec(|spec| change(spec.secret.get_or_insert_default()));
    }

    fn happen(&mut self, happening: &Happening, older: &mut Option<Secret>) {
        match happening {
            Happening::Scopes(bits) => {
                let scopes = (0..3).filter(|i| bits & (1 << i) != 0).map(|i| format!("s:{i}")).collect();
                self.spec(|spec| spec.scopes = scopes);
            }
            Happening::Trigger(n) => self.rotation(|r| r.trigger = (*n > 0).then(|| n.to_string())),
            Happening::Interval(n) => {
                // The CRD requires it to be longer than the overlap.
                self.rotation(|r| r.interval = n.map(|n| format!("{}h", 2 + n).as_str().into()));
            }
            Happening::Overlap(n) => {
                self.rotation(|r| r.overlap = Some(format!("{}s", u32::from(*n) * 1000).as_str().into()))
            }
            Happening::Keep(keep) => self.rotation(|r| {
                r.on_spec_change = Some(if *keep { OnSpecChange::Keep } else { OnSpecChange::Rotate });
            }),
            Happening::Suspend(suspend) => self.spec(|spec| spec.suspend = Some(*suspend)),
            Happening::Revoke => self.spec(|spec| spec.revoked = Some(true)),
            Happening::Expire(offset) => {
                let at = offset.map(|offset| self.now + SignedDuration::from_secs(offset.into()));
                self.spec(|spec| spec.expires_at = at);
            }
            Happening::Cut(offset) => {
                let at = self.now + SignedDuration::from_secs((*offset).into());
                let status = self.status();
                let recorded = status.rotation.as_ref().and_then(|rotation| rotation.not_before);
                let before = self.token.spec.rotation.as_ref().and_then(|rotation| rotation.not_before);
                let admitted = match before {
                    None => true,
                    Some(before) if at >= before => recorded == Some(before),
                    Some(_) => {
                        !status.versions.is_empty()
                            && status.versions.iter().all(|version| version.issued_at < at)
                    }
                };
                if admitted {
                    self.rotation(|rotation| rotation.not_before = Some(at));
                }
            }
            Happening::OnRevoke(delete) => {
                self.secret_spec(|s| {
                    s.on_revoke = Some(if *delete { OnRevoke::Delete } else { OnRevoke::Keep })
                });
            }
            Happening::Retain(retain) => {
                self.secret_spec(|s| {
                    s.on_delete = Some(if *retain { OnDelete::Retain } else { OnDelete::Delete })
                });
            }
            Happening::PreviousKey(wanted) => {
                let key = wanted.then(|| "previous".to_owned());
                self.secret_spec(|s| s.keys.get_or_insert_default().previous = key);
            }
            Happening::Clock(seconds) => self.now += SignedDuration::from_secs((*seconds).into()),
            Happening::Crash => self.minted = None,
            Happening::Steps(n) => {
                for _ in 0..*n {
                    self.step();
                }
            }
            Happening::DeleteSecret => self.secret = None,
            Happening::EditSecret => {
                if let Some(data) = self.secret.as_mut().and_then(|s| s.data.as_mut()) {
                    data.insert("token".to_owned(), ByteString(b"hunter2".to_vec()));
                }
            }
            Happening::StripSecret => {
                if let Some(secret) = &mut self.secret {
                    secret.metadata.labels = None;
                    secret.metadata.annotations = None;
                }
            }
            Happening::RestoreSecret => {
                std::mem::swap(&mut self.secret, older);
                self.restored = true;
            }
            Happening::WipeStatus => self.token.status = None,
            Happening::ForgeStatus => {
                let versions = self.token.status.iter_mut().flat_map(|status| &mut status.versions);
                for version in versions {
                    version.state = VersionState::Active;
                    version.retire_at = None;
                    version.scopes.push(FORGED_SCOPE.to_owned());
                }
                self.rewritten = true;
            }
            Happening::SetBackStatus => {
                std::mem::swap(&mut self.token.status, &mut self.earlier);
                (self.restored, self.rewritten) = (true, true);
            }
            Happening::Subscribe(wanted) => {
                self.subscriptions = if *wanted { vec![webhook(&["*"])] } else { Vec::new() };
            }
            Happening::Accept => self.accept(),
            Happening::Collect => self.receipts.due = true,
        }
        if older.is_none() {
            older.clone_from(&self.secret);
        }
        if self.earlier.is_none() {
            self.earlier.clone_from(&self.token.status);
        }
    }

    fn accept(&mut self) {
        let outbox = self.status().outbox.unwrap_or_default();
        for event in outbox.events {
            for webhook in event.webhooks {
                self.receipts.add(Receipt { id: event.id.as_str().into(), webhook: webhook.into() });
            }
        }
    }

    /// Makes steps until there is nothing left to do. Time passes where only that is waited for.
    fn run_to_rest(&mut self) {
        for _ in 0..200 {
            if self.step() {
                continue;
            }
            let status = self.status();
            let pending = status.versions.iter().any(|v| v.state == VersionState::Pending);
            let foreign = matches!(self.observed().secret, SecretState::Foreign(_));
            if !pending || foreign || status.revocation.is_some() || self.observed().expired(self.now) {
                return;
            }
            self.now += SignedDuration::from_secs(1);
        }
        panic!("there is always another step: {:#?}", self.status());
    }

    /// Whether Rotating is true only while a replaced secret works.
    fn rotating_is_true(&self) -> bool {
        let status = self.status();
        let works = |version: &TokenVersion| {
            let text = self.delivered.get(&version.key_id);
            version.state == VersionState::Retiring && text.is_some_and(|text| self.check(text).is_ok())
        };
        find_condition(&status.conditions, ConditionType::Rotating).is_none()
            || status.versions.iter().any(works)
    }

    /// Whether the spec lets the token work.
    fn wanted(&self) -> bool {
        let observed = self.observed();
        !observed.revocation_requested() && !observed.suspended() && !observed.expired(self.now)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// The invariants of every write are checked in `step`; the rest after every happening.
    #[test]
    fn invariants_hold_whatever_happens(happenings in proptest::collection::vec(happening(), 0..60)) {
        let mut world = World::new();
        let mut older = None;
        let mut repaired = false;
        for happening in &happenings {
            let dead: Vec<String> = match happening {
                Happening::Cut(_) => world.delivered.values().filter(|text| world.check(text).is_err()).cloned().collect(),
                _ => Vec::new(),
            };
            world.happen(happening, &mut older);
            // What a cut has ended stays ended, wherever the cut is moved.
            for text in dead {
                prop_assert!(world.check(&text).is_err(), "a cut was moved over a secret that it had ended");
            }
            repaired |= matches!(happening, Happening::DeleteSecret | Happening::EditSecret | Happening::RestoreSecret | Happening::StripSecret | Happening::ForgeStatus | Happening::SetBackStatus);
            // A replaced secret works until the promised end, unless the token as a whole does not, a cut has
            // passed it, or it made room as the oldest of four.
            let cut = world.token.spec.rotation.as_ref().and_then(|r| r.not_before).is_some();
            if world.wanted() && !cut && !repaired && world.status().revocation.is_none() {
                let newest = world.status().versions.first().map(|version| version.version).unwrap_or_default();
                for (key_id, (until, version)) in &world.promised {
                    if world.now < *until && newest - version < 4 {
                        // A clock that went past the end and back finds it ended.
                        let ended = world.status().versions.iter().any(|v| v.key_id == *key_id && v.state == VersionState::Retired);
                        prop_assert!(ended || world.check(&world.delivered[key_id]).is_ok(), "{key_id} was lost before {until}");
                    }
                }
            }
            for text in world.delivered.values() {
                prop_assert!(world.check_for(text, &[FORGED_SCOPE]).is_err(), "a forged scope works");
            }
            if world.token.spec.revoked == Some(true) {
                for text in world.delivered.values() {
                    prop_assert!(world.check(text).is_err(), "a revoked token works");
                }
            }
        }
        // What is accepted leaves the status, and nothing else does.
        world.run_to_rest();
        world.accept();
        let accepted = world.receipts.accepted.clone();
        world.receipts.due = true;
        world.run_to_rest();
        let waits = world.status().outbox.map(|outbox| outbox.events).unwrap_or_default();
        for event in &waits {
            prop_assert!(accepted.iter().all(|receipt| *receipt.id != *event.id), "{} still waits", event.type_);
        }
        prop_assert_eq!(world.token.metadata.finalizers.is_some(), !world.subscriptions.is_empty());
        // At rest, the Secret's content works if the spec wants it to.
        let stalled = find_condition(&world.status().conditions, crate::crd::ConditionType::Stalled).is_some();
        let throttled = matches!(world.secret.as_ref().and_then(|_| world.current()), Some(text) if Token::parse(&text).is_none())
            || world.secret.is_none();
        if world.wanted() && !stalled && !throttled {
            let current = world.current().expect("a Secret");
            let foreign = matches!(world.observed().secret, SecretState::Foreign(_));
            let contains_active = world.observed().secret.key_id().is_some_and(|key_id| world.status().versions.iter().any(|v| v.key_id == key_id.as_str() && v.state == VersionState::Active));
            prop_assert!(foreign || !contains_active || world.check(&current).is_ok(), "{:#?}", world.status());
        }
        prop_assert!(world.rotating_is_true(), "{:#?}", world.status());
        // No rotation waits for anything but the repair of the Secret.
        let accessible = matches!(world.observed().secret, SecretState::Ours(_) | SecretState::Absent);
        if let (Ok(spec), None) = (Spec::of(&world.token), &world.status().revocation)
            && accessible
            && !world.observed().expired(world.now)
        {
            let rotation = world.status().rotation.unwrap_or_default();
            prop_assert!(spec.trigger.is_none() || rotation.handled_trigger == spec.trigger, "the trigger waits");
            prop_assert!(stalled || throttled || rotation.spec_hash == Some(spec.hash), "the edit waits");
        }
        if world.token.spec.revoked == Some(true) {
            prop_assert!(world.status().revocation.and_then(|r| r.enforced_at).is_some(), "never enforced");
        }
        // And planning again changes nothing.
        let before = world.token.clone();
        prop_assert!(!world.step());
        prop_assert_eq!(before.status, world.token.status);
    }

    /// What a lock stops is refused while the lock is there, whatever else happens, and whenever the controller learns of it; and
    /// what a Revoke lock has stopped is refused for ever, unless somebody brings back what was stored before.
    #[test]
    fn what_a_lock_has_stopped_stays_stopped(
        acts in proptest::collection::vec((happening(), lock_act()), 0..40),
    ) {
        let mut world = World::new();
        world.run_to_rest();
        let mut older = None;
        let mut locks: Vec<(ClusterTokenLock, Arc<Lock>)> = Vec::new();
        let mut ended: BTreeSet<String> = BTreeSet::new();
        let mut brought_back = false;
        for (generation, (happening, act)) in (1..).zip(&acts) {
            // No two events of one kind happen in a millisecond.
            world.now += SignedDuration::from_millis(1);
            world.happen(happening, &mut older);
            brought_back |= matches!(
                happening,
                Happening::RestoreSecret | Happening::ForgeStatus | Happening::SetBackStatus | Happening::WipeStatus
            );
            match act {
                LockAct::Create(action, what) => {
                    let lock = world.lock(*action, what, generation);
                    let prepared = Arc::new(Lock::of(&lock));
                    locks.push((lock, prepared));
                }
                // What the controller has not taken note of can't be deleted; nor, by the finalizer, before all is recorded.
                LockAct::Delete => locks.retain(|(_, lock)| {
                    let status = world.status();
                    lock.action() == LockAction::Revoke
                        && (Candidate::of(&world.token, Some(&status)).progress(lock) == Progress::Outstanding
                            || world.known_locks.generation() != world.locks.generation())
                }),
                LockAct::Learn => world.known_locks = world.locks.clone(),
                LockAct::Nothing => {}
            }
            if matches!(act, LockAct::Create(..) | LockAct::Delete) {
                world.locks = Locks::new(generation, locks.iter().map(|(_, lock)| lock.clone()));
            }
            let status = world.status();
            let candidate = Candidate::of(&world.token, Some(&status));
            for version in &status.versions {
                let Some(text) = world.delivered.get(&version.key_id) else { continue };
                if let Some(lock) = candidate.lock_on(version, &world.locks) {
                    let refused = world.check(text).expect_err("what a lock stops works");
                    if lock.action() == LockAction::Revoke && refused == Code::Revoked {
                        ended.insert(text.clone());
                    }
                }
            }
            if !brought_back {
                for text in &ended {
                    prop_assert!(world.check(text).is_err(), "what a lock had stopped works again");
                }
            }
        }
        // At rest, the record says what verifiers do, and no Revoke lock is needed any more.
        world.now += SignedDuration::from_millis(1);
        world.known_locks = world.locks.clone();
        world.run_to_rest();
        let status = world.status();
        let candidate = Candidate::of(&world.token, Some(&status));
        for (_, lock) in &locks {
            prop_assert_ne!(candidate.progress(lock), Progress::Outstanding, "{} {:#?}", lock, status);
        }
        prop_assert!(world.rotating_is_true(), "{:#?}", status);
        let active = find_condition(&status.conditions, ConditionType::Active).map(|c| c.status == "True");
        if let (Some(true), Some(current)) = (active, world.current()) {
            prop_assert!(world.check(&current).is_ok(), "said to work, and refused");
        }
    }

    /// What some verifier rightly saw revoked never works again at it, whatever is restored; nor at any other, once the
    /// controller has seen the restore and has the ledger.
    #[test]
    fn what_was_seen_revoked_stays_dead_whatever_is_restored(
        acts in proptest::collection::vec((happening(), restore_act()), 0..40),
    ) {
        let mut world = World::new();
        world.run_to_rest();
        let mut older = None;
        let mut backup = world.back_up();
        let (remembered, mut seen) = (Tombstones::default(), BTreeSet::new());
        for (happening, act) in &acts {
            world.happen(happening, &mut older);
            match act {
                RestoreAct::BackUp => backup = world.back_up(),
                RestoreAct::ByApi(with_status) => {
                    // The controller has seen each state for long enough.
                    world.run_to_rest();
                    world.now += SignedDuration::from_mins(2);
                    world.restore(&backup, *with_status);
                }
                RestoreAct::Etcd => {
                    world.run_to_rest();
                    world.restore_etcd(&backup, true);
                }
                RestoreAct::Nothing => {}
            }
            for (key_id, text) in &world.delivered {
                let refused = world.check_by(&remembered, text, &[]);
                prop_assert!(refused.is_err() || !seen.contains(text), "{happening:?} {act:?}: it works again");
                // One that was replaced before is of no concern to a revocation.
                let status = world.status();
                let was_replaced = status.version_of(key_id).is_none_or(|v| v.state == VersionState::Retired);
                if refused == Err(Code::Revoked) && !was_replaced {
                    seen.insert(text.clone());
                }
            }
        }
        world.run_to_rest();
        for text in &seen {
            prop_assert!(world.check(text).is_err(), "at a verifier that has just started");
        }
    }

    /// With `creationPolicy: Merge`, whatever its owner does to the Secret.
    #[test]
    fn a_secret_of_somebody_else_is_written_with_consent_and_keeps_the_rest(
        acts in proptest::collection::vec((happening(), 0u8..8), 0..40),
    ) {
        let theirs = |consent: bool| Secret {
            metadata: ObjectMeta {
                labels: consent.then(|| [(TOKEN_LABEL.to_owned(), "name".to_owned())].into()),
                uid: Some("theirs".to_owned()),
                ..Default::default()
            },
            data: Some([("username".to_owned(), ByteString(b"ci".to_vec()))].into()),
            ..Default::default()
        };
        let mut world = World::new();
        world.secret_spec(|secret| secret.creation_policy = Some(CreationPolicy::Merge));
        for (happening, act) in &acts {
            let concerns_the_owner = matches!(
                happening,
                Happening::OnRevoke(_) | Happening::Retain(_) | Happening::StripSecret | Happening::RestoreSecret
                    | Happening::ForgeStatus | Happening::SetBackStatus
            );
            if !concerns_the_owner {
                world.happen(happening, &mut None);
            }
            match act {
                0 => world.secret = None,
                1 => world.secret = Some(theirs(true)),
                2 => world.secret = Some(theirs(false)),
                3 => {
                    if let Some(secret) = &mut world.secret {
                        secret.metadata.labels = None;
                    }
                }
                _ => _ = world.step(),
            }
            if let Some(secret) = &world.secret {
                prop_assert_eq!(world.data(secret, "username"), Some("ci".to_owned()));
                prop_assert!(secret.metadata.owner_references.as_ref().is_none_or(Vec::is_empty));
                prop_assert!(!secret.metadata.labels.iter().flatten().any(|(key, _)| key == MANAGED_BY));
            }
        }
        // In one whose owner agrees, there is a token that works in the end.
        world.secret = Some(theirs(true));
        for _ in 0..100 {
            if !world.step() {
                world.now += SignedDuration::from_secs(700);
            }
        }
        if world.wanted() && world.status().revocation.is_none() {
            let current = world.current().expect("a token");
            prop_assert!(world.check(&current).is_ok(), "{:#?}", world.status());
        }
    }

    /// A crash after any number of steps of a rotation, and no check of the Secret's content ever fails.
    #[test]
    fn a_crash_anywhere_in_a_rotation_costs_no_check(crash_after in 0usize..8, crashes in 1usize..4) {
        let mut world = World::new();
        world.run_to_rest();
        let old = world.current().expect("a Secret");
        world.rotation(|r| r.trigger = Some("now".to_owned()));
        for _ in 0..crashes {
            for _ in 0..crash_after {
                world.step();
                prop_assert!(world.check(&world.current().expect("a Secret")).is_ok());
                prop_assert!(world.check(&old).is_ok());
                world.now += SignedDuration::from_millis(400);
            }
            world.minted = None;
        }
        world.run_to_rest();
        let new = world.current().expect("a Secret");
        prop_assert_ne!(&new, &old);
        prop_assert!(world.check(&new).is_ok() && world.check(&old).is_ok());
        prop_assert_eq!(world.status().versions[0].version, 2);
    }
}

#[test]
fn a_new_token_takes_three_writes_and_no_more() {
    let mut world = World::new();
    assert!(world.step(), "announce");
    assert!(!world.step(), "verifiers get time to see it");
    world.now += SignedDuration::from_millis(999);
    assert!(!world.step(), "not a millisecond less");
    world.now += SignedDuration::from_millis(1);
    assert!(world.step(), "deliver");
    assert!(world.step(), "record");
    assert!(!world.step());
    assert_eq!(world.transitions, [TransitionKind::Minted]);
    assert!(matches!(next_step(&world.observed(), world.now), Step::Wait(None)));
}

#[test]
fn an_inaccessible_secret_is_neither_replaced_nor_minted_for() {
    let mut world = World::new();
    let mut older = None;
    for happening in [Happening::Steps(9), Happening::Trigger(1)] {
        for secret in [SecretState::Foreign(None), SecretState::Unreadable("forbidden".to_owned())] {
            let step = next_step(&Observed { secret, ..world.observed() }, world.now);
            assert!(matches!(step, Step::Record(..) | Step::Wait(Some(_))), "{step:?}");
        }
        world.run_to_rest();
        world.happen(&happening, &mut older);
    }
}

#[test]
fn a_lost_status_is_rebuilt_without_a_rotation() {
    let mut world = World::new();
    world.rotation(|r| r.trigger = Some("x".to_owned()));
    world.run_to_rest();
    let (current, before) = (world.current(), world.status());
    world.happen(&Happening::WipeStatus, &mut None);
    world.run_to_rest();
    assert_eq!(world.current(), current);
    let after = world.status();
    assert_eq!(after.token_id, before.token_id);
    assert_eq!(after.versions[0].key_id, before.versions[0].key_id);
    assert!(world.check(&current.expect("a Secret")).is_ok());
    assert!(world.transitions.contains(&TransitionKind::Rebuilt));
}

/// The deletion revoked it, and labels are the tenant's.
#[test]
fn the_seal_of_an_earlier_object_is_overwritten_and_never_revives_its_token() {
    for label in [None, Some("velero.io/restore-name")] {
        let mut world = World::new();
        world.run_to_rest();
        let old = world.current().expect("a Secret");
        world.recreate();
        world.token.metadata.labels = label.map(|label| [(label.to_owned(), "x".to_owned())].into());
        world.run_to_rest();
        assert_ne!(world.current().expect("a Secret"), old, "{label:?}");
        assert_eq!(world.check(&old), Err(Code::NotFound), "{label:?}");
    }
}

/// The Secret of a revoked token stays, and so does what it was sealed with.
#[test]
fn a_revoked_token_does_not_come_back_with_its_secret() {
    let mut world = World::new();
    world.run_to_rest();
    let old = world.current().expect("a Secret");
    world.spec(|spec| spec.revoked = Some(true));
    world.run_to_rest();
    assert_eq!(world.current().as_ref(), Some(&old), "the Secret is kept");
    // As no user can do it: the very object, unrevoked, and without a status.
    world.token.status = None;
    world.token.spec.revoked = None;
    world.restored = true;
    world.run_to_rest();
    assert_eq!(world.status().revocation.map(|revocation| revocation.source), Some(RevocationSource::Ledger));
    assert_eq!(world.current().as_ref(), Some(&old), "nothing is minted");
    assert!(world.check(&old).is_err());
    // Without the ledger, its seal tells.
    world.tombstones = Tombstones::default();
    world.token.status = None;
    world.run_to_rest();
    assert_ne!(world.current().expect("a Secret"), old);
    assert_eq!(world.check(&old), Err(Code::NotFound));
}

/// With a status or without: its MACs are those of the lost object.
#[test]
fn a_restored_token_goes_on_working() {
    for with_status in [false, true] {
        let mut world = World::new();
        world.rotation(|r| r.trigger = Some("x".to_owned()));
        world.run_to_rest();
        let (text, before) = (world.current().expect("a Secret"), world.status());
        let backup = world.back_up();
        world.now += SignedDuration::from_mins(2);
        world.restore(&backup, with_status);
        assert!(world.check(&text).is_err(), "before the controller has seen it");
        world.run_to_rest();
        assert_eq!(world.current().as_ref(), Some(&text), "nothing is minted");
        assert_eq!(world.check(&text), Ok(()));
        assert_eq!(world.status().token_id, before.token_id);
        assert_eq!(world.status().versions[0].version, before.versions[0].version);
        assert!(world.transitions.contains(&TransitionKind::Rebuilt));
        // Sealed for the new object.
        world.happen(&Happening::WipeStatus, &mut None);
        world.run_to_rest();
        assert_eq!(world.check(&text), Ok(()));
    }
}

#[test]
fn a_restored_token_that_was_revoked_stays_dead() {
    for (with_status, backed_up_before) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut world = World::new();
        world.run_to_rest();
        let old = world.current().expect("a Secret");
        let before = world.back_up();
        world.spec(|spec| spec.revoked = Some(true));
        world.run_to_rest();
        let mut backup = if backed_up_before { before } else { world.back_up() };
        // By a lock, say: nothing in the manifest tells.
        backup.token.spec.revoked = None;
        world.now += SignedDuration::from_mins(2);
        world.restore(&backup, with_status);
        world.run_to_rest();
        assert!(world.check(&old).is_err(), "{with_status} {backed_up_before}");
        assert_eq!(world.status().revocation.is_some(), with_status, "{backed_up_before}");
        assert_eq!(world.current().as_ref() == Some(&old), with_status, "else it is another token");
    }
}

/// A secret that was ended alone does not come back either.
#[test]
fn a_restored_secret_that_was_cut_stays_dead() {
    let mut world = World::new();
    world.run_to_rest();
    let old = world.current().expect("a Secret");
    let backup = world.back_up();
    world.now += SignedDuration::from_mins(2);
    world.happen(&Happening::Cut(-1), &mut None);
    world.run_to_rest();
    let rotated = world.current().expect("a Secret");
    assert_eq!(states(&world), [(2, VersionState::Active), (1, VersionState::Revoked)]);
    for (by_api, expected) in [(true, Code::NotFound), (false, Code::Retired)] {
        if by_api {
            world.restore(&backup, false);
        } else {
            world.restore_etcd(&backup, true);
            assert_eq!(world.check(&old), Ok(()), "until the controller has seen it");
        }
        world.run_to_rest();
        assert_eq!(world.check(&old), Err(expected));
        let current = world.current().expect("a Secret");
        assert!(current != old && current != rotated);
        assert_eq!(world.check(&current), Ok(()));
    }
}

/// However often it was announced anew since.
#[test]
fn what_the_secret_contains_is_never_forgotten() {
    let mut world = World::new();
    world.run_to_rest();
    for scopes in [3, 4, 1, 3, 4] {
        world.happen(&Happening::Scopes(scopes), &mut None);
        assert!(world.step(), "announced, and not delivered");
        world.happen(&Happening::ForgeStatus, &mut None);
    }
    world.spec(|spec| spec.revoked = Some(true));
    world.run_to_rest();
    let secret = world.secret.as_ref().expect("a Secret");
    let labels = secret.metadata.labels.as_ref().expect("labels");
    assert!(labels.contains_key(REVOKED_LABEL), "{:#?}", world.status());
}

/// Without the ledger, a verifier that was running remembers.
#[test]
fn a_running_verifier_remembers_what_an_older_etcd_does_not() {
    let mut world = World::new();
    world.run_to_rest();
    let text = world.current().expect("a Secret");
    let backup = world.back_up();
    let remembered = Tombstones::default();
    assert_eq!(world.check_by(&remembered, &text, &[]), Ok(()));
    world.spec(|spec| spec.revoked = Some(true));
    assert_eq!(world.check_by(&remembered, &text, &[]), Err(Code::Revoked));
    world.run_to_rest();
    world.restore_etcd(&backup, false);
    assert_eq!(world.check(&text), Ok(()), "one that has just started");
    assert_eq!(world.check_by(&remembered, &text, &[]), Err(Code::Revoked));
}

/// The pepper came along; what proves the token names the other namespace.
#[test]
fn in_another_namespace_it_is_minted_anew() {
    let mut world = World::new();
    world.run_to_rest();
    let old = world.current().expect("a Secret");
    let backup = world.back_up();
    world.now += SignedDuration::from_mins(2);
    world.restore(&backup, false);
    let secret = world.secret.as_mut().expect("a Secret");
    let annotations = secret.metadata.annotations.as_mut().expect("annotations");
    // As if it were from there.
    let status = backup.token.status.as_ref().expect("a status");
    let version = &status.versions[0];
    let pepper = Hash::parse(&version.hash).expect("a hash").pepper;
    let hash = world.peppers.hash_with(&pepper, "there", "name", &Token::parse(&old).expect("a token"));
    let sealed = Sealed {
        namespace: "there",
        name: "name",
        uid: backup.token.metadata.uid.as_deref().expect("a uid"),
        token_id: status.token_id.as_deref().expect("a token id"),
        issued_at: &version.issued_at.to_string(),
        version: version.version,
        key_id: &version.key_id,
        scopes: Some(&version.scopes.join(" ")),
        revoked: false,
        hash: &hash.expect("a hash"),
    };
    let seal = Seal::make(&world.peppers, &sealed).expect("a seal").to_string();
    annotations.insert(SEAL_ANNOTATION.to_owned(), seal);
    assert!(matches!(world.observed().secret, SecretState::Foreign(_)), "it may be anybody's");
    let secret = world.secret.as_mut().expect("a Secret");
    let annotations = secret.metadata.annotations.as_mut().expect("annotations");
    annotations.insert(NAMESPACE_ANNOTATION.to_owned(), "there".to_owned());
    world.run_to_rest();
    let current = world.current().expect("a Secret");
    assert_ne!(current, old);
    assert_eq!(world.check(&current), Ok(()));
    assert_eq!(world.check(&old), Err(Code::NotFound));
}

#[test]
fn a_rebuilt_version_has_the_scopes_that_it_was_issued_with() {
    let mut world = World::new();
    world.rotation(|r| r.on_spec_change = Some(OnSpecChange::Keep));
    world.run_to_rest();
    let issued = world.status().versions[0].scopes.clone();
    world.spec(|spec| spec.scopes.push("added:later".to_owned()));
    world.run_to_rest();
    world.happen(&Happening::WipeStatus, &mut None);
    world.run_to_rest();
    assert_eq!(world.status().versions[0].scopes, issued);
}

/// A world whose token was rotated without an overlap, and the replaced secret.
fn rotated() -> (World, String) {
    let mut world = World::new();
    world.rotation(|r| r.overlap = Some("0s".into()));
    world.run_to_rest();
    let old = world.current().expect("a Secret");
    world.earlier = world.token.status.clone();
    world.rotation(|r| r.trigger = Some("now".to_owned()));
    world.run_to_rest();
    assert_eq!(world.check(&old), Err(Code::Retired));
    (world, old)
}

#[test]
fn a_status_that_is_set_back_revives_nothing_for_longer_than_a_step() {
    let (mut world, old) = rotated();
    let current = world.current().expect("a Secret");
    world.happen(&Happening::SetBackStatus, &mut None);
    world.run_to_rest();
    assert_eq!(world.current().as_ref(), Some(&current), "no new secret");
    assert_eq!(world.check(&current), Ok(()));
    assert_eq!(world.check(&old), Err(Code::Retired));
    assert!(world.transitions.contains(&TransitionKind::Rebuilt));
}

#[test]
fn a_forged_status_gives_nothing_and_is_put_right() {
    let (mut world, old) = rotated();
    let (current, before) = (world.current().expect("a Secret"), world.status());
    world.happen(&Happening::ForgeStatus, &mut None);
    for text in [&current, &old] {
        assert_eq!(world.check(text), Err(Code::NotFound), "until the controller has seen it");
    }
    world.run_to_rest();
    assert_eq!(world.current().as_ref(), Some(&current), "no new secret");
    assert_eq!(world.check(&current), Ok(()));
    assert_eq!(world.check(&old), Err(Code::Retired));
    assert_eq!(world.status().versions[0], before.versions[0]);
}

/// The states of the versions, the newest first.
fn states(world: &World) -> Vec<(i64, VersionState)> {
    world.status().versions.iter().map(|version| (version.version, version.state)).collect()
}

#[test]
fn rotations_wait_for_no_overlap_and_a_fifth_ends_the_oldest() {
    use VersionState::{Active, Retired, Retiring};
    let mut world = World::new();
    world.run_to_rest();
    let mut secrets = vec![world.current().expect("a Secret")];
    for round in 1..=4 {
        world.now += SignedDuration::from_secs(60);
        world.rotation(|r| r.trigger = Some(round.to_string()));
        world.transitions.clear();
        world.run_to_rest();
        secrets.push(world.current().expect("a Secret"));
        let ended = world.transitions.iter().filter(|kind| **kind == TransitionKind::KeyRetired).count();
        assert_eq!(ended, usize::from(round == 4), "round {round}");
    }
    assert_eq!(states(&world), [(5, Active), (4, Retiring), (3, Retiring), (2, Retiring), (1, Retired)]);
    assert_eq!(world.check(&secrets[0]), Err(Code::Retired));
    assert!(secrets[1..].iter().all(|secret| world.check(secret).is_ok()));
    let ends: Vec<_> = world.status().versions.iter().filter_map(|version| version.retire_at).collect();
    assert!(ends[..3].is_sorted_by(|newer, older| newer > older), "each has its own end: {ends:?}");
    // All end in time, one after the other, and each is told once.
    world.transitions.clear();
    for (secret, until) in secrets[1..4].iter().zip(ends[..3].iter().rev()) {
        world.now = *until;
        assert_eq!(world.check(secret), Err(Code::Retired));
        world.run_to_rest();
    }
    assert_eq!(world.transitions, [TransitionKind::KeyRetired; 3]);
    assert_eq!(world.check(&secrets[4]), Ok(()));
}

#[test]
fn a_rotation_without_an_overlap_ends_every_older_secret() {
    let mut world = World::new();
    world.run_to_rest();
    let mut older = vec![world.current().expect("a Secret")];
    for round in 1..=2 {
        world.rotation(|r| r.trigger = Some(round.to_string()));
        world.run_to_rest();
        older.push(world.current().expect("a Secret"));
    }
    assert!(older.iter().all(|secret| world.check(secret).is_ok()));
    world.rotation(|r| (r.trigger, r.overlap) = (Some("leak".to_owned()), Some("0s".into())));
    world.transitions.clear();
    world.run_to_rest();
    assert!(older.iter().all(|secret| world.check(secret) == Err(Code::Retired)), "{:#?}", world.status());
    assert_eq!(world.check(&world.current().expect("a Secret")), Ok(()));
    let told = [TransitionKind::KeyRetired, TransitionKind::KeyRetired, TransitionKind::Rotated];
    assert_eq!(world.transitions, told, "those whose overlap was open, and the rotation");
}

/// By a controller from before versions had a MAC, whose Secret has either form of the seal.
#[test]
fn a_status_without_macs_is_taken_over_without_a_rotation() {
    for first_form in [false, true] {
        let mut world = World::new();
        world.run_to_rest();
        let (current, before) = (world.current().expect("a Secret"), world.status());
        if first_form {
            world.seal_in_the_first_form();
        }
        for version in &mut world.token.status.as_mut().expect("a status").versions {
            version.mac.clear();
        }
        world.transitions.clear();
        world.run_to_rest();
        assert_eq!(world.current().as_ref(), Some(&current), "first form: {first_form}");
        assert_eq!(world.check(&current), Ok(()));
        assert_eq!(world.status(), before);
        assert_eq!(world.transitions, [], "nobody is told");
    }
}

/// Without a seal, nothing says what the secret was issued with.
#[test]
fn a_status_that_nothing_authenticates_gets_a_new_secret() {
    let mut world = World::new();
    world.run_to_rest();
    let old = world.current().expect("a Secret");
    world.happen(&Happening::StripSecret, &mut None);
    world.happen(&Happening::ForgeStatus, &mut None);
    world.run_to_rest();
    assert_eq!(world.check(&old), Err(Code::Retired));
    assert_eq!(world.check(&world.current().expect("a Secret")), Ok(()));
}

#[test]
fn a_missing_pepper_ends_no_token() {
    let mut world = World::new();
    world.run_to_rest();
    let (current, here) = (world.current().expect("a Secret"), world.peppers.clone());
    world.peppers = Peppers::from_data(&Peppers::new_data(&[2; 32])).expect("peppers");
    world.run_to_rest();
    let stalled = |world: &World| {
        let status = world.status();
        find_condition(&status.conditions, crate::crd::ConditionType::Stalled).map(|c| c.reason.clone())
    };
    assert_eq!(stalled(&world).as_deref(), Some("PepperMissing"));
    assert!(world.check(&current).is_err());
    world.peppers = here;
    world.run_to_rest();
    assert_eq!((stalled(&world), world.check(&current)), (None, Ok(())));
    // If it is lost, a trigger has a new secret minted.
    world.peppers = Peppers::from_data(&Peppers::new_data(&[2; 32])).expect("peppers");
    world.rotation(|r| r.trigger = Some("lost".to_owned()));
    world.run_to_rest();
    let new = world.current().expect("a Secret");
    assert_ne!(new, current);
    assert_eq!((stalled(&world), world.check(&new)), (None, Ok(())));
}

/// As after a restore from Git, which has no statuses: the Secret is there before the pepper.
#[test]
fn a_secret_whose_pepper_is_not_restored_yet_is_waited_for() {
    let mut world = World::new();
    world.run_to_rest();
    let (current, here) = (world.current(), world.peppers.clone());
    (world.token.status, world.restored) = (None, true);
    world.peppers = Peppers::from_data(&Peppers::new_data(&[2; 32])).expect("peppers");
    let secret = world.secret.as_mut().expect("a Secret");
    secret.metadata.owner_references = None;
    world.run_to_rest();
    assert_eq!(world.current(), current, "not overwritten");
    let status = world.status();
    let stalled = find_condition(&status.conditions, crate::crd::ConditionType::Stalled).expect("Stalled");
    assert_eq!(stalled.reason, "PepperMissing");
    world.peppers = here;
    world.run_to_rest();
    assert_eq!(world.current(), current);
    assert_eq!(world.check(&current.expect("a Secret")), Ok(()));
}

/// As where the Secret has lost its labels, by which the watch selects: it is seen only when creating it fails.
#[test]
fn a_secret_that_is_seen_late_is_not_overwritten() {
    let mut world = World::new();
    world.run_to_rest();
    let current = world.current().expect("a Secret");
    (world.token.status, world.restored) = (None, true);
    let secret = world.secret.take();
    assert!(world.step(), "a new version is announced");
    world.secret = secret;
    world.run_to_rest();
    assert_eq!(world.current().as_ref(), Some(&current));
    assert_eq!(world.check(&current), Ok(()));
}

/// What can't be judged now is neither confirmed nor ended.
#[test]
fn a_version_stays_as_it_is_while_the_secret_can_t_be_read() {
    let mut world = World::new();
    world.run_to_rest();
    let current = world.current().expect("a Secret");
    world.happen(&Happening::ForgeStatus, &mut None);
    let forged = world.status().versions;
    let secret = SecretState::Unreadable("forbidden".to_owned());
    let Step::Record(status, _) = next_step(&Observed { secret, ..world.observed() }, world.now) else {
        panic!("the conditions say it");
    };
    assert_eq!(status.versions, forged);
    world.run_to_rest();
    assert_eq!(world.check(&current), Ok(()));
}

#[test]
fn repairs_back_off_then_stall_and_a_trigger_overrides() {
    let mut world = World::new();
    world.run_to_rest();
    let mut repaired = 0;
    for _ in 0..10 {
        world.secret = None;
        for _ in 0..60 {
            world.run_to_rest();
            world.now += SignedDuration::from_secs(1);
        }
        repaired += usize::from(world.secret.is_some());
    }
    assert_eq!(repaired, 3);
    assert_eq!(world.transitions.iter().filter(|kind| **kind == TransitionKind::Stalled).count(), 1);
    world.rotation(|r| r.trigger = Some("now".to_owned()));
    world.run_to_rest();
    assert!(world.check(&world.current().expect("a Secret")).is_ok());
    world.secret = None;
    world.now += SignedDuration::from_hours(1);
    world.run_to_rest();
    assert!(world.secret.is_some(), "the hour is over");
}

#[test]
fn the_removal_from_the_outbox_costs_one_write_for_all() {
    let mut world = World::new();
    world.subscriptions = vec![webhook(&["token.*"])];
    world.run_to_rest();
    world.happen(&Happening::Suspend(true), &mut None);
    world.run_to_rest();
    assert_eq!(world.status().outbox.expect("an outbox").events.len(), 2);
    world.accept();
    assert!(!world.step(), "receipts alone are not written at once");
    world.receipts.due = true;
    assert!(world.step());
    assert_eq!(world.status().outbox, None);
    assert!(!world.step());
    // With a write that is made anyway, they go at once.
    world.happen(&Happening::Suspend(false), &mut None);
    world.run_to_rest();
    world.accept();
    world.happen(&Happening::Revoke, &mut None);
    assert!(world.step());
    let types: Vec<_> =
        world.status().outbox.expect("an outbox").events.into_iter().map(|e| e.type_).collect();
    assert_eq!(types, ["token.revoked"]);
}

#[test]
fn each_expiry_is_announced_once_and_an_earlier_one_again() {
    let mut world = World::new();
    world.happen(&Happening::Expire(Some(600)), &mut None);
    world.run_to_rest();
    let sent =
        |world: &World| world.transitions.iter().filter(|kind| **kind == TransitionKind::Expiring).count();
    assert_eq!(sent(&world), 0);
    let Step::Wait(Some(until)) = next_step(&world.observed(), world.now) else { panic!("no wake") };
    assert!(until <= world.now + SignedDuration::from_secs(100));
    world.now = until;
    world.run_to_rest();
    world.run_to_rest();
    assert_eq!(sent(&world), 1);
    world.happen(&Happening::Expire(Some(100)), &mut None);
    world.run_to_rest();
    assert_eq!(sent(&world), 2);
}

/// The event of a deletion is delivered before the object is gone, but the object does not wait for long.
#[test]
fn a_deletion_waits_for_its_event_and_not_for_ever() {
    let mut world = World::new();
    world.subscriptions = vec![webhook(&["*"])];
    world.run_to_rest();
    world.accept();
    world.receipts.due = true;
    world.run_to_rest();
    assert!(world.token.metadata.finalizers.is_some());
    world.token.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.now));
    assert!(world.step(), "the deletion is recorded");
    assert!(!world.step(), "its event is waited for");
    let step =
        |world: &World, seconds| next_step(&world.observed(), world.now + SignedDuration::from_secs(seconds));
    let Step::RemoveFinalizer(late) = step(&world, 10) else { panic!("the deletion waits too long") };
    assert_eq!((late.undelivered.len(), late.best_effort), (1, false));
    let Step::RemoveFinalizer(last) = step(&world, 30) else { panic!("the deletion waits for ever") };
    assert!(last.best_effort);
    let gone = World { subscriptions: Vec::new(), token: world.token.clone(), ..World::new() };
    assert_eq!(
        step(&gone, 0),
        Step::RemoveFinalizer(Handover::default()),
        "no TokenWebhook subscribes to it any more"
    );
    world.accept();
    assert_eq!(step(&world, 0), Step::RemoveFinalizer(Handover::default()));
}

/// Of a thousand tokens that were issued in one instant.
#[test]
fn tokens_that_were_made_together_rotate_apart_and_never_late() {
    const MINUTE: SignedDuration = SignedDuration::from_mins(1);
    for (interval, full, most) in [("720h", MINUTE * 720 * 60, MINUTE * 60), ("10m", MINUTE * 10, MINUTE / 2)]
    {
        let mut times: Vec<SignedDuration> = (0..1000)
            .map(|number| {
                let mut world = World::new();
                world.token.metadata.uid = Some(format!("uid-{number}"));
                world.rotation(|r| (r.interval, r.overlap) = (Some(interval.into()), Some("0s".into())));
                world.run_to_rest();
                let status = world.status();
                let next = status.rotation.and_then(|rotation| rotation.next_time).expect("a next time");
                next.duration_since(status.versions[0].issued_at)
            })
            .collect();
        times.sort_unstable();
        assert!(times[999] <= full && times[0] >= full - most, "{interval}: {} to {}", times[0], times[999]);
        // No tenth of the time has more than a fifth of the rotations.
        for tenth in 0..10 {
            let (from, to) = (full - most * (tenth + 1) / 10, full - most * tenth / 10);
            let count = times.iter().filter(|time| (from..to).contains(*time)).count();
            assert!(count < 200, "{interval}: {count} in one tenth");
        }
    }
}
