//! How a token ends: by revocation or deletion for good, by suspension for a while, by expiry on time.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use serde_json::json;
use tokenward_core::crd::{ConditionType, Phase, RevocationReason, VersionState};

use crate::Shared;
use testkit::{condition, eventually};

pub async fn a_revocation_is_immediate_and_permanent(shared: &Shared) {
    let space = shared.site.namespace("revoke").await;
    let old = space.active("t", json!({"scopes": ["a:b"], "rotation": {"overlap": "1h"}})).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    let new = space.version("t", 2).await;
    shared.verifier.answers(&old, "", 200).await;
    space.patch("t", json!({"spec": {"revoked": true, "revocationReason": "KeyCompromise"}})).await;
    shared.verifier.answers(&old, "", 401).await;
    shared.verifier.answers(&new, "", 401).await;

    let token = space.reason("t", ConditionType::Revoked, "Enforced").await;
    let status = token.status.clone().expect("a status");
    let revocation = status.revocation.clone().expect("a revocation");
    assert_eq!(revocation.reason, RevocationReason::KeyCompromise);
    assert!(revocation.enforced_at >= Some(revocation.requested_at));
    assert!(status.versions.iter().all(|v| v.state == VersionState::Revoked));
    assert_eq!(status.phase, Some(Phase::Revoked));
    assert_eq!(condition(&token, ConditionType::Ready).expect("Ready").0, "Revoked");
    assert!(testkit::has(&token, ConditionType::Ready, "True"), "Flux and Argo CD stop waiting at this");
    let secret = space.secrets().get("t").await.expect("the Secret stays");
    assert_eq!(secret.labels().get("tokenward.dev/revoked").map(String::as_str), Some("true"));

    // Nothing brings it back: not a new trigger, an edit, or the loss of the status or the Secret.
    space.patch("t", json!({"spec": {"scopes": ["a:c"], "rotation": {"trigger": "again"}}})).await;
    space.condition("t", ConditionType::Ready, "True").await;
    space.patch_status("t", json!({"status": null})).await;
    space.reason("t", ConditionType::Revoked, "Enforced").await;
    space.secrets().delete("t", &Default::default()).await.expect("a deletion");
    space.stays("t", std::time::Duration::from_secs(1)).await;
    assert!(space.secrets().get_opt("t").await.expect("an answer").is_none());
    for secret in [&old, &new] {
        assert_eq!(shared.verifier.check(secret, "").await, 401);
    }
}

pub async fn on_revoke_delete_deletes_the_secret(shared: &Shared) {
    let space = shared.site.namespace("ondelete").await;
    space.active("t", json!({"scopes": ["a:b"], "secret": {"onRevoke": "Delete"}})).await;
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    let token = space.reason("t", ConditionType::Revoked, "Enforced").await;
    assert!(space.secrets().get_opt("t").await.expect("an answer").is_none());
    assert_eq!(condition(&token, ConditionType::Delivered).expect("Delivered").0, "Deleted");
}

pub async fn a_deletion_revokes_and_a_new_object_is_a_new_token(shared: &Shared) {
    let space = shared.site.namespace("delete").await;
    let old = space.active("t", json!({"scopes": ["a:b"]})).await;
    let before = space.get("t").await.status.and_then(|s| s.token_id);
    shared.verifier.answers(&old, "", 200).await;
    space.delete("t").await;
    shared.verifier.answers(&old, "", 401).await;
    // At once, while the old Secret may still be there.
    let new = space.active("t", json!({"scopes": ["a:b"]})).await;
    assert_ne!(new, old);
    assert_ne!(space.get("t").await.status.and_then(|s| s.token_id), before);
    eventually("a new token that works", async || {
        let secret = space.secrets().get_opt("t").await.expect("an answer");
        let Some(current) = secret.as_ref().and_then(|s| testkit::data(s, "token")) else {
            return Err("no Secret".to_owned());
        };
        match shared.verifier.check(&current, "").await {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(shared.verifier.check(&old, "").await, 401);
    // Kubernetes' garbage collector deletes the Secret with its owner. It discovers a new kind only every 30 s, so this
    // only asserts the owner reference.
    let secret = space.secrets().get("t").await.expect("a Secret");
    let owners: Vec<_> = secret.owner_references().iter().map(|r| (r.uid.clone(), r.controller)).collect();
    assert_eq!(owners, [(space.get("t").await.uid().expect("a uid"), Some(true))]);
}

pub async fn suspension_is_reversible(shared: &Shared) {
    let space = shared.site.namespace("suspend").await;
    let secret = space.active("t", json!({"scopes": ["a:b"]})).await;
    space.patch("t", json!({"spec": {"suspend": true}})).await;
    shared.verifier.answers(&secret, "", 401).await;
    let token = space.reason("t", ConditionType::Ready, "Suspended").await;
    assert!(testkit::has(&token, ConditionType::Ready, "True"));
    assert!(testkit::has(&token, ConditionType::Active, "False"));
    space.patch("t", json!({"spec": {"suspend": false}})).await;
    shared.verifier.answers(&secret, "", 200).await;
    space.condition("t", ConditionType::Active, "True").await;
    assert_eq!(space.secret_of("t").await, secret);
    space.has_events("t", &["Suspended", "Resumed"]).await;
}

pub async fn a_token_expires_on_time(shared: &Shared) {
    let space = shared.site.namespace("expire").await;
    let at = Timestamp::now() + SignedDuration::from_secs(4);
    let secret = space.active("t", json!({"scopes": ["a:b"], "expiresAt": at.to_string()})).await;
    shared.verifier.answers(&secret, "", 200).await;
    let ended =
        eventually("end", async || match (shared.verifier.check(&secret, "").await, Timestamp::now()) {
            (401, now) => Ok(now),
            (status, _) => Err(status.to_string()),
        })
        .await;
    assert!(ended >= at, "it must work until {at}");
    let token = space.reason("t", ConditionType::Ready, "Expired").await;
    assert_eq!(token.status.as_ref().and_then(|s| s.phase), Some(Phase::Expired));
    // It does not rotate on a trigger; and it can be extended.
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    space.reason("t", ConditionType::Ready, "Expired").await;
    space
        .patch("t", json!({"spec": {"rotation": {"trigger": null}, "expiresAt": "2099-01-01T00:00:00Z"}}))
        .await;
    shared.verifier.answers(&secret, "", 200).await;
    space.condition("t", ConditionType::Active, "True").await;
    assert_eq!(space.secret_of("t").await, secret);
}

pub async fn a_token_created_expired_is_not_minted(shared: &Shared) {
    let space = shared.site.namespace("bornexpired").await;
    space.create("t", json!({"scopes": ["a:b"], "expiresAt": "2020-01-01T00:00:00Z"})).await;
    let token = space.reason("t", ConditionType::Ready, "Expired").await;
    let (_, message) = condition(&token, ConditionType::Ready).expect("Ready");
    assert!(message.contains("had passed before a secret was minted; set a later one"), "{message}");
    assert!(space.secrets().get_opt("t").await.expect("an answer").is_none());
    space.patch("t", json!({"spec": {"expiresAt": "2099-01-01T00:00:00Z"}})).await;
    space.condition("t", ConditionType::Active, "True").await;
}

pub async fn a_token_created_revoked_is_not_minted(shared: &Shared) {
    let space = shared.site.namespace("bornrevoked").await;
    space.create("t", json!({"scopes": ["a:b"], "revoked": true})).await;
    space.reason("t", ConditionType::Revoked, "Enforced").await;
    assert!(space.secrets().get_opt("t").await.expect("an answer").is_none());
}
