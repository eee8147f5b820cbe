//! Rotation: by an edit, a trigger, a schedule, a cut. The tokenId stays, and no check with the Secret's content
//! fails.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use tokenward_core::crd::{ConditionType, Phase, RotationReason, VersionState};

use crate::Shared;
use testkit::{condition, data};

pub async fn an_edit_rotates_with_an_overlap(shared: &Shared) {
    let space = shared.site.namespace("edit").await;
    let old = space.active("t", json!({"scopes": ["tokens:read"]})).await;
    let before = space.get("t").await.status.expect("a status");
    shared.verifier.answers(&old, "scope=tokens:read", 200).await;

    space.patch("t", json!({"spec": {"scopes": ["tokens:read", "tokens:write"]}})).await;
    let new = space.version("t", 2).await;
    assert_ne!(old, new);
    shared.verifier.answers(&new, "scope=tokens:read&scope=tokens:write", 200).await;
    assert_eq!(shared.verifier.check(&old, "scope=tokens:read").await, 200);

    let token = space.get("t").await;
    let status = token.status.clone().expect("a status");
    assert_eq!(status.token_id, before.token_id);
    assert_eq!(status.phase, Some(Phase::Rotating));
    let states: Vec<_> = status.versions.iter().map(|v| (v.version, v.state, v.reason)).collect();
    assert_eq!(
        states,
        [
            (2, VersionState::Active, RotationReason::SpecChange),
            (1, VersionState::Retiring, RotationReason::Created)
        ]
    );
    let (_, message) = condition(&token, ConditionType::Rotating).expect("Rotating");
    assert!(message.starts_with("version 1 works until "), "{message}");
    space.has_events("t", &["Minted", "Rotated"]).await;
    space.stays("t", Duration::from_millis(500)).await;
}

pub async fn a_trigger_rotates_once(shared: &Shared) {
    let space = shared.site.namespace("trigger").await;
    // A trigger that is set at creation causes no rotation.
    space.active("t", json!({"scopes": ["a:b"], "rotation": {"trigger": "one", "overlap": "0s"}})).await;
    space.patch("t", json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(space.get("t").await.status.expect("a status").versions.len(), 1);
    space.patch("t", json!({"spec": {"rotation": {"trigger": "two"}}})).await;
    space.version("t", 2).await;
    // Removing it causes no rotation, nor does setting the same one again.
    space.patch("t", json!({"spec": {"rotation": {"trigger": null}}})).await;
    space.condition("t", ConditionType::Ready, "True").await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "two"}}})).await;
    space.condition("t", ConditionType::Ready, "True").await;
    space.stays("t", Duration::from_secs(1)).await;
    assert_eq!(space.get("t").await.status.and_then(|s| s.secret_ref).map(|r| r.version), Some(2));
    // Two reasons at once cause one rotation.
    space.patch("t", json!({"spec": {"scopes": ["a:c"], "rotation": {"trigger": "three"}}})).await;
    space.version("t", 3).await;
    space.stays("t", Duration::from_secs(2)).await;
}

pub async fn a_schedule_rotates(shared: &Shared) {
    let space = shared.site.namespace("schedule").await;
    let first =
        space.active("t", json!({"scopes": ["a:b"], "rotation": {"interval": "10s", "overlap": "3s"}})).await;
    let next =
        space.get("t").await.status.and_then(|s| s.rotation).and_then(|r| r.next_time).expect("a next time");
    let second = space.version("t", 2).await;
    let status = space.get("t").await.status.expect("a status");
    assert!(status.versions[0].issued_at >= next, "not before it was due");
    assert_eq!(status.versions[0].reason, RotationReason::Schedule);
    // The overlap ends by itself, with an Event.
    shared.verifier.answers(&first, "", 401).await;
    shared.verifier.answers(&second, "", 200).await;
    space.until("t", "the end of the overlap", |t| condition(t, ConditionType::Rotating).is_none()).await;
    space.has_events("t", &["KeyRetired"]).await;
}

pub async fn a_cut_ends_what_came_before(shared: &Shared) {
    let space = shared.site.namespace("cut").await;
    let leaked = space.active("t", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&leaked, "", 200).await;
    // Manifests have whole seconds: the current one could be before the time of issue.
    let now = Timestamp::now() + jiff::SignedDuration::from_secs(1);
    let now = now.round(jiff::Unit::Second).expect("a second");
    space.patch("t", json!({"spec": {"rotation": {"notBefore": now.to_string()}}})).await;
    let new = space.version("t", 2).await;
    shared.verifier.answers(&leaked, "", 401).await;
    shared.verifier.answers(&new, "", 200).await;
    let status = space.get("t").await.status.expect("a status");
    assert_eq!(
        (status.versions[0].reason, status.versions[1].state),
        (RotationReason::NotBefore, VersionState::Revoked)
    );
}

pub async fn a_cut_that_is_still_to_come_can_be_moved(shared: &Shared) {
    let space = shared.site.namespace("mistyped").await;
    let secret = space.active("t", json!({"scopes": ["a:b"], "rotation": {"overlap": "1h"}})).await;
    let cut = async |at: Timestamp| {
        let patch = json!({"spec": {"rotation": {"notBefore": at.to_string()}}});
        space.try_patch("t", patch).await?;
        space
            .until("t", "a record of notBefore", |t| {
                t.status.as_ref().and_then(|s| s.rotation.as_ref()?.not_before) == Some(at)
            })
            .await;
        Ok::<_, String>(())
    };
    let hour = jiff::SignedDuration::from_hours(1);
    let year_2206 = "2206-11-28T00:00:00Z".parse().expect("a timestamp");
    cut(year_2206).await.expect("any time after");
    cut(Timestamp::now() + hour).await.expect("earlier, and after the issue of every secret");
    cut(year_2206).await.expect("later again");
    // Not over the issue of a secret, which the former one might have ended.
    let issued = space.get("t").await.status.expect("a status").versions[0].issued_at;
    for at in [issued, issued - hour] {
        let refused = cut(at).await.expect_err("over the issue of a secret");
        assert!(refused.contains("moves back only to an instant after every secret was issued"), "{refused}");
    }
    let removed = space.try_patch("t", json!({"spec": {"rotation": {"notBefore": null}}})).await;
    assert!(removed.is_err());
    shared.verifier.answers(&secret, "", 200).await;
    // What the mistyped one was meant to do.
    let now = Timestamp::now();
    cut(now).await.expect("now");
    let second = space.version("t", 2).await;
    shared.verifier.answers(&secret, "", 401).await;
    // What has ended something moves back no more, and forward without bringing it back.
    assert!(cut(now - jiff::SignedDuration::from_millis(1)).await.is_err());
    cut(Timestamp::now() + hour).await.expect("what it has ended is on record");
    for _ in 0..10 {
        assert_eq!(shared.verifier.check(&secret, "").await, 401);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shared.verifier.answers(&second, "", 200).await;
}

pub async fn without_overlap_the_old_secret_stops_at_once(shared: &Shared) {
    let space = shared.site.namespace("cutover").await;
    let old = space.active("t", json!({"scopes": ["a:b"], "rotation": {"overlap": "0s"}})).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    let new = space.version("t", 2).await;
    shared.verifier.answers(&old, "", 401).await;
    shared.verifier.answers(&new, "", 200).await;
}

pub async fn the_previous_secret_stays_under_its_own_key(shared: &Shared) {
    let space = shared.site.namespace("previous").await;
    let spec = json!({
        "scopes": ["a:b"],
        "rotation": {"overlap": "3s"},
        "secret": {"keys": {"token": "TOKEN", "previous": "PREVIOUS"}},
    });
    space.create("t", spec).await;
    space.condition("t", ConditionType::Active, "True").await;
    let old = data(&space.secrets().get("t").await.expect("a Secret"), "TOKEN");
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    space.delivered("t", 2).await;
    let secret = space.secrets().get("t").await.expect("a Secret");
    assert_eq!(data(&secret, "PREVIOUS"), old);
    assert_ne!(data(&secret, "TOKEN"), old);
    // The end of the overlap changes no Secret, or whatever restarts pods on a change would do it twice a rotation.
    shared.verifier.answers(&old.expect("a token"), "", 401).await;
    // The verifier ends a version by its own clock, so it may be a moment ahead of the status.
    space
        .until("t", "version 1 Retired", |t| {
            t.status.as_ref().is_some_and(|s| s.versions.iter().all(|v| v.state != VersionState::Retiring))
        })
        .await;
    space.stays("t", Duration::from_secs(1)).await;
    let after = space.secrets().get("t").await.expect("a Secret");
    assert_eq!(after.metadata.resource_version, secret.metadata.resource_version);
    // At the next rotation it gives way.
    space.patch("t", json!({"spec": {"rotation": {"trigger": "again"}}})).await;
    space.delivered("t", 3).await;
    let third = space.secrets().get("t").await.expect("a Secret");
    assert_eq!(data(&third, "PREVIOUS"), data(&secret, "TOKEN"));
}

pub async fn rotations_wait_for_no_overlap(shared: &Shared) {
    let space = shared.site.namespace("overlaps").await;
    let first = space.active("t", json!({"scopes": ["a:b", "a:c"], "rotation": {"overlap": "1h"}})).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "one"}}})).await;
    let second = space.version("t", 2).await;
    space.patch("t", json!({"spec": {"scopes": ["a:b"]}})).await;
    let third = space.version("t", 3).await;
    let token = space.reason("t", ConditionType::Rotating, "Overlap").await;
    let (_, message) = condition(&token, ConditionType::Rotating).expect("Rotating");
    assert!(
        message.contains("version 2 works until") && message.contains("version 1 works until"),
        "{message}"
    );
    // The removed scope stops at once for all, and all go on working for the other.
    for secret in [&first, &second, &third] {
        shared.verifier.answers(secret, "scope=a:c", 403).await;
        assert_eq!(shared.verifier.check(secret, "scope=a:b").await, 200);
    }
    // Four work at once; a fifth ends the oldest, and says so.
    space.patch("t", json!({"spec": {"rotation": {"trigger": "two"}}})).await;
    let fourth = space.version("t", 4).await;
    for secret in [&first, &second, &third, &fourth] {
        shared.verifier.answers(secret, "", 200).await;
    }
    space.patch("t", json!({"spec": {"rotation": {"trigger": "three"}}})).await;
    let fifth = space.version("t", 5).await;
    shared.verifier.answers(&first, "", 401).await;
    space.has_events("t", &["KeyRetired"]).await;
    for secret in [&second, &third, &fourth, &fifth] {
        shared.verifier.answers(secret, "", 200).await;
    }
    // Without an overlap, all that are older end at once.
    space.patch("t", json!({"spec": {"rotation": {"trigger": "leak", "overlap": "0s"}}})).await;
    let sixth = space.version("t", 6).await;
    for secret in [&second, &third, &fourth, &fifth] {
        shared.verifier.answers(secret, "", 401).await;
    }
    shared.verifier.answers(&sixth, "", 200).await;
}

pub async fn scopes_never_widen_for_an_issued_secret(shared: &Shared) {
    let space = shared.site.namespace("ratchet").await;
    let old = space.active("t", json!({"scopes": ["a:read"]})).await;
    space.patch("t", json!({"spec": {"scopes": ["a:*"]}})).await;
    let new = space.version("t", 2).await;
    shared.verifier.answers(&new, "scope=a:write", 200).await;
    assert_eq!(shared.verifier.check(&old, "scope=a:write").await, 403);
    assert_eq!(shared.verifier.check(&old, "scope=a:read").await, 200);
    let scopes = shared.verifier.ask(&old, "").await.headers()["x-tokenward-scopes"].clone();
    assert_eq!(scopes, "a:read");
}

pub async fn changes_under_keep_do_not_rotate(shared: &Shared) {
    let space = shared.site.namespace("keep").await;
    let secret = space.active("t", json!({"scopes": ["a:read"], "rotation": {"onSpecChange": "Keep"}})).await;
    space.patch("t", json!({"spec": {"scopes": ["a:read", "a:write"]}})).await;
    space.condition("t", ConditionType::Ready, "True").await;
    space.patch("t", json!({"spec": {"rotation": {"onSpecChange": "Rotate"}}})).await;
    space.condition("t", ConditionType::Ready, "True").await;
    space.stays("t", Duration::from_secs(1)).await;
    assert_eq!(space.secret_of("t").await, secret);
    assert_eq!(shared.verifier.check(&secret, "scope=a:write").await, 403);
}
