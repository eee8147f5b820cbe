//! The controller is killed before and after every write of a mint, a rotation and a revocation, and started again.
//!
//! Asserted through a verifier that is not killed: once a token was active, the content of its Secret is never denied;
//! an old secret is never denied within its overlap; a revoked one is never accepted. Asserted on the status: at most
//! two versions are live, and the tokenId stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures::{StreamExt, stream};
use serde_json::json;
use tokenward_core::crd::ConditionType;

use crate::{lock, restore};
use testkit::{Process, Site, Space, data, has};

/// The writes at which the controller is killed, for each kind of case.
const MINT: [&str; 3] = ["announce", "deliver", "record"];
const ROTATE: [&str; 3] = ["announce", "deliver", "record"];
const REVOKE: [&str; 4] = ["record", "record@2", "update-secret", "ledger"];
const LOCK: [&str; 6] =
    ["add-lock-finalizer", "lock-status", "record", "record@2", "update-secret", "remove-lock-finalizer"];

/// How many cases run at once.
const CONCURRENT_CASES: usize = 6;

pub async fn no_crash_loses_or_revives_a_token(site: &Site) {
    let verifier = &site.verifier(&[]);
    let mut cases = Vec::new();
    for when in ["before", "after"] {
        cases.extend(MINT.map(|point| ("mint", when, point)));
        cases.extend(ROTATE.map(|point| ("rotate", when, point)));
        cases.extend(REVOKE.map(|point| ("revoke", when, point)));
        cases.extend(LOCK.map(|point| ("lock", when, point)));
    }
    let run = async |(what, when, point): (&str, &str, &str)| {
        let case = Case::new(site, what, format!("{when}:{point}")).await;
        match what {
            "mint" => case.mint(verifier).await,
            "rotate" => case.rotate(verifier).await,
            "lock" => case.lock(verifier).await,
            _ => case.revoke(verifier).await,
        }
    };
    stream::iter(cases).map(run).buffer_unordered(CONCURRENT_CASES).collect::<()>().await;
}

struct Case<'s> {
    site: &'s Site,
    space: Space,
    failpoint: String,
    identity: String,
}

impl<'s> Case<'s> {
    async fn new(site: &'s Site, what: &str, failpoint: String) -> Self {
        let space = site.namespace(&format!("crash-{what}")).await;
        Self { site, identity: space.name.clone(), space, failpoint }
    }

    /// A controller for this case's namespace alone, with a Lease that its successor can acquire at once.
    fn controller(&self, env: &[(&str, &str)]) -> Process {
        let args = [
            "--watch-namespaces",
            &self.space.name,
            "--lease-name",
            &self.identity,
            "--identity",
            &self.identity,
        ];
        self.site.controller_as_admin(&args, env)
    }

    /// Runs `act` with a controller that kills itself at the case's failpoint.
    async fn crash(&self, act: impl Future<Output = ()>) {
        let mut doomed = self.controller(&[("TOKENWARD_FAILPOINT", &self.failpoint)]);
        act.await;
        assert_eq!(doomed.ended().await, None, "{}: not killed: {}", self.failpoint, doomed.log());
    }

    async fn mint(&self, verifier: &Process) {
        let create = async {
            self.space.create("t", json!({"scopes": ["a:b"]})).await;
        };
        self.crash(create).await;
        let watch = Watch::start(&self.space, verifier, None);
        let _controller = self.controller(&[]);
        let token = self.space.version("t", 1).await;
        verifier.answers(&token, "scope=a:b", 200).await;
        watch.end(&self.failpoint).await;
        self.assert_sound().await;
    }

    async fn rotate(&self, verifier: &Process) {
        let (old, token_id) = self.active(verifier).await;
        let watch = Watch::start(&self.space, verifier, Some(old.clone()));
        let rotate = async {
            self.space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
        };
        self.crash(rotate).await;
        let _controller = self.controller(&[]);
        let new = self.space.version("t", 2).await;
        assert_ne!(new, old);
        verifier.answers(&new, "scope=a:b", 200).await;
        let checks = watch.end(&self.failpoint).await;
        assert!(checks > 10, "{}: only {checks} checks", self.failpoint);
        assert_eq!(self.assert_sound().await, token_id);
    }

    async fn revoke(&self, verifier: &Process) {
        let (token, token_id) = self.active(verifier).await;
        let revoke = async {
            self.space.patch("t", json!({"spec": {"revoked": true}})).await;
            verifier.answers(&token, "", 401).await;
        };
        self.crash(revoke).await;
        assert_eq!(verifier.check(&token, "").await, 401, "{}", self.failpoint);
        let _controller = self.controller(&[]);
        self.space.reason("t", ConditionType::Revoked, "Enforced").await;
        assert_eq!(verifier.check(&token, "").await, 401, "{}", self.failpoint);
        assert_eq!(self.assert_sound().await, token_id);
        restore::is_in_ledger(&self.space, self.site, "t").await;
    }

    /// A Revoke lock is created and, once it says that it may go, deleted.
    async fn lock(&self, verifier: &Process) {
        let (token, token_id) = self.active(verifier).await;
        let lock_and_unlock = async {
            lock::create(&self.space, "l", json!({"match": {"all": true}, "action": "Revoke"})).await;
            verifier.answers(&token, "", 401).await;
            if self.failpoint.contains("remove-lock-finalizer") {
                lock::reason(&self.space, "l", "Revoked").await;
                lock::locks(&self.space).delete("l", &Default::default()).await.expect("a deletion");
            }
        };
        self.crash(lock_and_unlock).await;
        assert_eq!(verifier.check(&token, "").await, 401, "{}", self.failpoint);
        let _controller = self.controller(&[]);
        self.space.reason("t", ConditionType::Revoked, "Enforced").await;
        if lock::locks(&self.space)
            .get_opt("l")
            .await
            .expect("an answer")
            .is_some_and(|l| l.metadata.deletion_timestamp.is_none())
        {
            lock::reason(&self.space, "l", "Revoked").await;
            lock::delete(&self.space, "l").await;
        }
        testkit::eventually("the lock is gone", async || {
            let lock = lock::locks(&self.space).get_opt("l").await.expect("an answer");
            lock.map_or(Ok(()), |lock| Err(format!("{:?}", lock.status)))
        })
        .await;
        assert_eq!(verifier.check(&token, "").await, 401, "{}", self.failpoint);
        assert_eq!(self.assert_sound().await, token_id);
    }

    async fn active(&self, verifier: &Process) -> (String, Option<String>) {
        let mut controller = self.controller(&[]);
        let token = self.space.active("t", json!({"scopes": ["a:b"], "rotation": {"overlap": "1h"}})).await;
        verifier.answers(&token, "", 200).await;
        controller.kill();
        (token, self.space.get("t").await.status.and_then(|status| status.token_id))
    }

    /// Asserts the invariants of the status; returns the tokenId.
    async fn assert_sound(&self) -> Option<String> {
        let status = self.space.get("t").await.status.expect("a status");
        let live = status.versions.iter().filter(|version| version.state.is_live()).count();
        assert!(live <= 4, "{}: {live} live versions", self.failpoint);
        status.token_id
    }
}

/// Continuously makes checks that must not fail.
struct Watch {
    stop: Arc<AtomicBool>,
    checks: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Watch {
    fn start(space: &Space, verifier: &Process, old: Option<String>) -> Self {
        let (stop, checks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (space, stopped, counted, listen) =
            (space.clone(), stop.clone(), checks.clone(), verifier.listen);
        let task = tokio::spawn(async move {
            let client = reqwest::Client::new();
            let url = format!("http://{listen}/auth");
            let check = async |token: &str| {
                client.get(&url).bearer_auth(token).send().await.map(|a| a.status().as_u16()).unwrap_or(0)
            };
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                // In this order: the token was active before its Secret was read.
                let token = space.get("t").await;
                let active = has(&token, ConditionType::Active, "True");
                let current =
                    space.secrets().get_opt("t").await.ok().flatten().and_then(|s| data(&s, "token"));
                for token in current.iter().filter(|_| active).chain(&old) {
                    let status = check(token).await;
                    counted.fetch_add(1, Ordering::Relaxed);
                    if status != 200 {
                        failures.push(format!(
                            "{status} for {}",
                            if Some(token) == old.as_ref() {
                                "the old secret"
                            } else {
                                "the Secret's content"
                            }
                        ));
                    }
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            failures
        });
        Self { stop, checks, task }
    }

    /// Asserts that no check has failed; returns how many were made.
    async fn end(self, case: &str) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await.expect("the watch");
        let checks = self.checks.load(Ordering::Relaxed);
        assert!(failures.is_empty(), "{case}: {} of {checks} checks failed: {failures:?}", failures.len());
        checks
    }
}
