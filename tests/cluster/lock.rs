//! Locks: one object stops many tokens, at once and by their own records.

use futures::{StreamExt, stream};
use jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokenward_core::crd::{
    AnyLock, ClusterTokenLock, ConditionType, Phase, RevocationReason, RevocationSource, TokenLock,
    find_condition,
};

use crate::Shared;
use crate::admission;
use testkit::{Site, Space, condition, eventually, has, message};

pub fn locks(space: &Space) -> Api<TokenLock> {
    Api::namespaced(space.client.clone(), &space.name)
}

pub async fn create(space: &Space, name: &str, spec: Value) {
    try_create(space, name, spec).await.expect("a lock");
}

async fn try_create(space: &Space, name: &str, spec: Value) -> Result<(), String> {
    // As text: what the types can't express is the API server's to refuse.
    let lock = json!({"apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenLock", "metadata": {"name": name}, "spec": spec});
    let path = format!("/apis/tokenward.dev/v1alpha1/namespaces/{}/tokenlocks", space.name);
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(lock.to_string().into_bytes()).expect("a request");
    space.client.request::<Value>(request).await.map(|_| ()).map_err(|error| message(&error))
}

/// Waits until the status of a lock says this, by the reason of Ready.
pub async fn reason(space: &Space, name: &str, wanted: &str) -> TokenLock {
    eventually(&format!("{wanted} of {name}"), async || {
        let lock = locks(space).get(name).await.expect("a lock");
        let ready = lock.status.as_ref().and_then(|s| find_condition(&s.conditions, ConditionType::Ready));
        match ready {
            Some(ready) if ready.reason == wanted => Ok(lock),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Deletes a lock, and waits until it is gone.
pub async fn delete(space: &Space, name: &str) {
    locks(space).delete(name, &DeleteParams::default()).await.expect("a deletion");
    eventually(&format!("{name} is gone"), async || {
        match locks(space).get_opt(name).await.expect("an answer") {
            None => Ok(()),
            Some(lock) => Err(format!("{:?} {:?}", lock.metadata.finalizers, lock.status)),
        }
    })
    .await;
}

fn counts(lock: &impl AnyLock) -> (Option<i64>, Option<i64>) {
    lock.lock_status().map(|status| (status.matched, status.latched)).unwrap_or_default()
}

pub async fn a_suspending_lock_stops_what_it_matches_until_it_is_deleted(shared: &Shared) {
    let space = shared.site.namespace("lock-suspend").await;
    let mut secrets = Vec::new();
    for (name, label) in [("a", "payments"), ("b", "payments"), ("c", "search")] {
        space.create(name, json!({"scopes": ["a:b"]})).await;
        space.patch(name, json!({"metadata": {"labels": {"team": label}}})).await;
        space.condition(name, ConditionType::Active, "True").await;
        secrets.push(space.secret_of(name).await);
    }
    for secret in &secrets {
        shared.verifier.answers(secret, "", 200).await;
    }
    let selector = json!({"matchExpressions": [{"key": "team", "operator": "In", "values": ["payments"]}]});
    let spec = json!({"match": {"selector": selector}, "action": "Suspend", "message": "incident 7"});
    create(&space, "incident-7", spec).await;
    shared.verifier.answers(&secrets[0], "", 401).await;
    assert_eq!(shared.verifier.check(&secrets[1], "").await, 401, "at the same moment");
    assert_eq!(shared.verifier.check(&secrets[2], "").await, 200);

    let lock = reason(&space, "incident-7", "Suspended").await;
    assert_eq!(counts(&lock), (Some(2), Some(2)));
    assert_eq!(lock.metadata.finalizers, None, "nothing has to outlive it");
    let token = space.get("a").await;
    assert_eq!(token.status.as_ref().and_then(|status| status.phase), Some(Phase::Suspended));
    assert!(has(&token, ConditionType::Ready, "True"));
    let (_, text) = condition(&token, ConditionType::Active).expect("Active");
    assert_eq!(text, "refused until TokenLock incident-7 is deleted (incident 7)");
    let columns = shared.site.kubectl(&["get", "tokenlocks", "-n", &space.name]);
    assert!(columns.contains("MATCHED") && columns.contains("LATCHED"), "{columns}");

    delete(&space, "incident-7").await;
    for secret in &secrets {
        shared.verifier.answers(secret, "", 200).await;
    }
    space.condition("a", ConditionType::Active, "True").await;
    space.has_events("a", &["Suspended", "Resumed"]).await;
    assert_eq!(space.secret_of("a").await, secrets[0], "nothing was minted");
}

pub async fn a_revoking_lock_ends_what_is_there_and_nothing_later(shared: &Shared) {
    let space = shared.site.namespace("lock-revoke").await;
    let mut secrets = Vec::new();
    for name in ["a", "b", "c"] {
        secrets.push(space.active(name, json!({"scopes": ["a:b"]})).await);
    }
    let by = "kubernetes-admin";
    let spec =
        json!({"match": {"all": true}, "action": "Revoke", "reason": "KeyCompromise", "requestedBy": by});
    create(&space, "leak", spec).await;
    for secret in &secrets {
        shared.verifier.answers(secret, "", 401).await;
    }
    let lock = reason(&space, "leak", "Revoked").await;
    assert_eq!(counts(&lock), (Some(3), Some(3)));
    for name in ["a", "b", "c"] {
        let token = space.reason(name, ConditionType::Revoked, "Enforced").await;
        let revocation = token.status.and_then(|status| status.revocation).expect("a revocation");
        assert_eq!(revocation.reason, RevocationReason::KeyCompromise);
        assert_eq!(revocation.source, RevocationSource::Lock);
        assert_eq!(revocation.actor.as_deref(), Some(by));
        let named = revocation.lock.expect("a lock");
        assert_eq!((named.to_string(), Some(named.uid)), ("TokenLock leak".to_owned(), lock.uid()));
    }
    // To the second, what is created later is not touched.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let later = space.active("later", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&later, "", 200).await;
    // It can't be changed into something else, and what it has done outlives it.
    let patch = Patch::Merge(json!({"spec": {"action": "Suspend"}}));
    let edited = locks(&space).patch("leak", &PatchParams::default(), &patch).await;
    assert!(message(&edited.expect_err("an edit")).contains("a lock can't be changed"));
    delete(&space, "leak").await;
    for secret in &secrets {
        assert_eq!(shared.verifier.check(secret, "").await, 401);
    }
    assert_eq!(shared.verifier.check(&later, "").await, 200);
    assert!(has(&space.get("a").await, ConditionType::Revoked, "True"));
}

pub async fn what_was_rotated_since_is_not_stopped(shared: &Shared) {
    let space = shared.site.namespace("lock-before").await;
    let rotated = space.active("rotated", json!({"scopes": ["a:b"], "rotation": {"overlap": "1h"}})).await;
    let forgotten = space.active("forgotten", json!({"scopes": ["a:b"]})).await;
    // Instants are compared by the second in which a secret was issued.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let leak_closed = Timestamp::now();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    space.patch("rotated", json!({"spec": {"rotation": {"trigger": "leak"}}})).await;
    let new = space.version("rotated", 2).await;
    shared.verifier.answers(&new, "", 200).await;
    assert_eq!(shared.verifier.check(&rotated, "").await, 200, "within its overlap");
    create(&space, "leak", json!({"match": {"issuedBefore": leak_closed}, "action": "Revoke"})).await;
    shared.verifier.answers(&forgotten, "", 401).await;
    shared.verifier.answers(&rotated, "", 401).await;
    assert_eq!(shared.verifier.check(&new, "").await, 200);
    reason(&space, "leak", "Revoked").await;
    space.reason("forgotten", ConditionType::Revoked, "Enforced").await;
    space
        .until("rotated", "the end of version 1", |token| {
            let status = token.status.clone().unwrap_or_default();
            status.versions.iter().any(|version| version.version == 1 && !version.state.is_live())
        })
        .await;
    delete(&space, "leak").await;
    assert_eq!(shared.verifier.check(&new, "").await, 200);
    assert_eq!(shared.verifier.check(&rotated, "").await, 401);
}

pub async fn a_cluster_lock_reaches_the_namespaces_that_it_names(shared: &Shared) {
    let (one, two) = (shared.site.namespace("lock-one").await, shared.site.namespace("lock-two").await);
    let first = one.active("t", json!({"scopes": ["a:b"], "owner": {"team": "payments"}})).await;
    let second = two.active("t", json!({"scopes": ["a:b"], "owner": {"team": "payments"}})).await;
    shared.verifier.answers(&first, "", 200).await;
    shared.verifier.answers(&second, "", 200).await;
    let matches = json!({"namespaces": [one.name], "owner": {"team": "payments"}});
    let lock = json!({
        "apiVersion": "tokenward.dev/v1alpha1", "kind": "ClusterTokenLock", "metadata": {"name": one.name},
        "spec": {"match": matches, "action": "Suspend"},
    });
    let lock: ClusterTokenLock = serde_json::from_value(lock).expect("a lock");
    let api = Api::<ClusterTokenLock>::all(shared.site.client.clone());
    api.create(&PostParams::default(), &lock).await.expect("a lock");
    shared.verifier.answers(&first, "", 401).await;
    assert_eq!(shared.verifier.check(&second, "").await, 200);
    eventually("the counts", async || match counts(&api.get(&one.name).await.expect("a lock")) {
        (Some(1), Some(1)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    eventually("an Event", async || {
        let events = shared.site.kubectl(&["get", "events", "-n", "default", "-o", "yaml"]);
        if events.contains(&one.name) { Ok(()) } else { Err(events) }
    })
    .await;
    api.delete(&one.name, &DeleteParams::default()).await.expect("a deletion");
    shared.verifier.answers(&first, "", 200).await;
}

pub async fn a_lock_says_before_what_it_will_stop(shared: &Shared) {
    let space = shared.site.namespace("lock-preview").await;
    admission::label(&space, admission::REVIEW_LABEL).await;
    admission::until_reviewed(&space).await;
    let secret = space.active("t", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&secret, "", 200).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let lock = json!({
        "apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenLock", "metadata": {"name": "l", "namespace": space.name},
        "spec": {"match": {"all": true}, "action": "Revoke"},
    });
    std::fs::write(file.path(), lock.to_string()).expect("a file");
    let path = file.path().display().to_string();
    let warning = format!("Warning: this lock revokes, for good, 1 ApiToken: {}/t", space.name);
    eventually("a warning", async || {
        let output = shared.site.kubectl(&["apply", "--dry-run=server", "-f", &path]);
        if output.contains(&warning) { Ok(()) } else { Err(output) }
    })
    .await;
    assert_eq!(shared.verifier.check(&secret, "").await, 200, "nothing was stopped");
}

pub async fn a_lock_that_means_nothing_or_everything_is_refused(shared: &Shared) {
    let space = shared.site.namespace("lock-bad").await;
    let with = |matches: Value| json!({"match": matches, "action": "Suspend"});
    for (spec, expected) in [
        (with(json!({})), "match must say which ApiTokens"),
        (with(json!({"namePrefix": null})), "match must say which ApiTokens"),
        (with(json!({"selector": null})), "match must say which ApiTokens"),
        (with(json!({"selector": {}})), "match.selector must name a label"),
        (with(json!({"selector": {"matchLabels": {}}})), "match.selector must name a label"),
        (
            with(json!({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
            "In and NotIn take values",
        ),
        (with(json!({"owner": {}})), "match.owner must name a team or a contact"),
        (with(json!({"all": false})), "all is true, or left out"),
        (with(json!({"all": true, "names": ["a"]})), "match.all goes alone"),
        (with(json!({"namespaces": ["other"]})), "create a ClusterTokenLock"),
        (with(json!({"names": []})), "should have at least 1 items"),
        (with(json!({"scopes": ["orders"]})), "each scope must be resource:action"),
        (with(json!({"keyIds": ["short"]})), "keyIds"),
        (json!({"match": {"all": true}}), "action"),
        (json!({"match": {"all": true}, "action": "Delete"}), "Unsupported value"),
    ] {
        let error = try_create(&space, "bad", spec.clone()).await.expect_err("a lock");
        assert!(error.contains(expected), "{spec}: {error}");
    }
}

pub async fn nothing_that_is_written_to_a_lock_releases_what_it_stops(shared: &Shared) {
    let space = shared.site.namespace("lock-forged").await;
    let secret = space.active("t", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&secret, "", 200).await;
    create(&space, "none", json!({"match": {"names": ["another"]}, "action": "Revoke"})).await;
    assert_eq!(counts(&reason(&space, "none", "NoMatch").await), (Some(0), Some(0)));
    delete(&space, "none").await;
    create(&space, "l", json!({"match": {"names": ["t"]}, "action": "Suspend"})).await;
    shared.verifier.answers(&secret, "", 401).await;
    reason(&space, "l", "Suspended").await;
    // Its status is what the controller says of it, and nothing goes by it.
    let status = json!({"status": {"matched": 0, "latched": 0, "conditions": []}});
    let patch = Patch::Merge(status);
    locks(&space).patch_status("l", &PatchParams::default(), &patch).await.expect("a status");
    assert_eq!(shared.verifier.check(&secret, "").await, 401);
    assert_eq!(counts(&reason(&space, "l", "Suspended").await), (Some(1), Some(1)));
    assert_eq!(shared.verifier.check(&secret, "").await, 401);
}

pub async fn two_hundred_locks_are_as_good_as_one(shared: &Shared) {
    let space = shared.site.namespace("lock-many").await;
    let secret = space.active("t", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&secret, "", 200).await;
    let others = (0..200).map(|n| {
        let space = &space;
        async move {
            let names = json!([format!("other-{n}")]);
            create(space, &format!("other-{n}"), json!({"match": {"names": names}, "action": "Suspend"}))
                .await;
        }
    });
    stream::iter(others).buffer_unordered(16).collect::<()>().await;
    reason(&space, "other-199", "NoMatch").await;
    assert_eq!(shared.verifier.check(&secret, "").await, 200);
    create(&space, "this", json!({"match": {"names": ["t"]}, "action": "Suspend"})).await;
    shared.verifier.answers(&secret, "", 401).await;
    assert_eq!(counts(&reason(&space, "this", "Suspended").await), (Some(1), Some(1)));
    delete(&space, "this").await;
    shared.verifier.answers(&secret, "", 200).await;
}

/// Neither a verifier that starts, nor one without a controller, lets through what a lock stops.
pub async fn a_verifier_that_starts_knows_the_locks_first(site: &Site) {
    let space = site.namespace("lock-start").await;
    let lease = ["--watch-namespaces", &space.name, "--lease-name", &space.name, "--identity", &space.name];
    let mut controller = site.controller_as_admin(&lease, &[]).ready().await;
    let secret = space.active("t", json!({"scopes": ["a:b"]})).await;
    controller.kill();
    create(&space, "l", json!({"match": {"all": true}, "action": "Revoke"})).await;
    let verifier = site.verifier(&[]);
    let (client, url) = (testkit::client(), format!("http://{}/auth", verifier.listen));
    eventually("a denial", async || {
        let answer = client.get(&url).bearer_auth(&secret).send().await.map_err(|error| error.to_string())?;
        assert_ne!(answer.status(), 200, "before it knew the locks");
        if answer.status() == 401 { Ok(()) } else { Err(answer.status().to_string()) }
    })
    .await;
}
