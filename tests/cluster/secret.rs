//! The Secret: what others do to it, and how the controller reacts.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokenward_core::crd::labels::TOKEN_LABEL;
use tokenward_core::crd::{ConditionType, Phase, RotationReason};

use crate::Shared;
use testkit::{Space, condition, data, eventually};

async fn patch_secret(space: &Space, name: &str, patch: Value) {
    space.secrets().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("a patch");
}

pub async fn a_foreign_secret_is_not_touched(shared: &Shared) {
    let space = shared.site.namespace("foreign").await;
    for (name, labels) in [
        ("plain", vec![]),
        (
            "labelled",
            vec![("app.kubernetes.io/managed-by", "tokenward"), ("tokenward.dev/token", "labelled")],
        ),
    ] {
        let labels: BTreeMap<_, _> = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let foreign = Secret {
            metadata: ObjectMeta { name: Some(name.to_owned()), labels: Some(labels), ..Default::default() },
            data: Some([("token".to_owned(), ByteString(b"theirs".to_vec()))].into()),
            ..Default::default()
        };
        let before = space.secrets().create(&PostParams::default(), &foreign).await.expect("a Secret");
        space.create(name, json!({"scopes": ["a:b"]})).await;
        let token = space.reason(name, ConditionType::Delivered, "SecretConflict").await;
        assert_eq!(token.status.as_ref().and_then(|s| s.phase), Some(Phase::Failed));
        let (reason, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
        assert_eq!(reason, "SecretConflict");
        assert!(
            message.contains("another secret.name or, if nothing uses the Secret, delete it"),
            "{message}"
        );
        space.has_events(name, &["Stalled"]).await;
        let after = space.secrets().get(name).await.expect("a Secret");
        assert_eq!(
            (after.data, after.metadata.resource_version),
            (before.data, before.metadata.resource_version)
        );
        space.secrets().delete(name, &Default::default()).await.expect("a deletion");
    }
    // Once it is deleted, the token is delivered, though no watch reports an unlabelled Secret.
    for name in ["plain", "labelled"] {
        let token = space.condition(name, ConditionType::Active, "True").await;
        assert!(condition(&token, ConditionType::Stalled).is_none());
    }
}

/// Advice to delete a Secret that something uses would be an outage; of the pepper, that of everything.
pub async fn a_conflict_says_whose_the_secret_is(shared: &Shared) {
    let space = shared.site.namespace("whose").await;
    let own = Space { name: "tokenward".to_owned(), ..space.clone() };
    space.create("first", json!({"scopes": ["a:b"], "secret": {"name": "same"}})).await;
    space.condition("first", ConditionType::Active, "True").await;
    for (space, name, secret, owner) in [
        (&space, "second", "same", "ApiToken first"),
        (&own, "greedy", "tokenward-pepper", "tokenward itself"),
    ] {
        space.create(name, json!({"scopes": ["a:b"], "secret": {"name": secret}})).await;
        let token = space.reason(name, ConditionType::Stalled, "SecretConflict").await;
        let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
        let expected =
            format!("Secret {secret} belongs to {owner}, so it is not written; create an ApiToken");
        assert!(message.starts_with(&expected) && !message.contains("delete"), "{message}");
    }
    own.delete("greedy").await;
}

/// The label by which the controller watches names the token, and whoever may edit the Secret can change it.
pub async fn a_label_that_names_another_token_hides_nothing(shared: &Shared) {
    let space = shared.site.namespace("relabelled").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    let relabel = json!({"metadata": {"labels": {TOKEN_LABEL: "another"}}});
    patch_secret(&space, "t", relabel.clone()).await;
    eventually("the label is restored", async || {
        let secret = space.secrets().get("t").await.expect("a Secret");
        let label = secret.labels().get(TOKEN_LABEL).cloned();
        if label.as_deref() == Some("t") { Ok(()) } else { Err(format!("{label:?}")) }
    })
    .await;
    patch_secret(&space, "t", relabel).await;
    space.secrets().delete("t", &Default::default()).await.expect("a deletion");
    let token = space.version("t", 2).await;
    shared.verifier.answers(&token, "", 200).await;
}

pub async fn a_deleted_secret_is_minted_again(shared: &Shared) {
    let space = shared.site.namespace("lost").await;
    let old = space.active("t", json!({"scopes": ["a:b"]})).await;
    space.secrets().delete("t", &Default::default()).await.expect("a deletion");
    let new = space.version("t", 2).await;
    assert_ne!(old, new);
    shared.verifier.answers(&new, "", 200).await;
    // The old secret works on, for pods that still have it.
    assert_eq!(shared.verifier.check(&old, "").await, 200);
    let status = space.get("t").await.status.expect("a status");
    assert_eq!(status.versions[0].reason, RotationReason::SecretMissing);
}

pub async fn an_edited_secret_is_minted_again(shared: &Shared) {
    let space = shared.site.namespace("edited").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    patch_secret(&space, "t", json!({"stringData": {"token": "hunter2"}})).await;
    let new = space.version("t", 2).await;
    shared.verifier.answers(&new, "", 200).await;
    assert_eq!(
        space.get("t").await.status.expect("a status").versions[0].reason,
        RotationReason::SecretTampered
    );
    // Damaged metadata is repaired without a new token.
    let meta = json!({"metadata": {
        "labels": {"app.kubernetes.io/managed-by": null, "tokenward.dev/token": "other"},
        "annotations": {"tokenward.dev/seal": "p1:forged", "tokenward.dev/version": "99"},
        "ownerReferences": null,
    }});
    patch_secret(&space, "t", meta).await;
    eventually("Secret as it should be", async || {
        // The watch does not report an unlabelled Secret, so this causes a reconciliation.
        space
            .patch("t", json!({"metadata": {"annotations": {"poke": jiff::Timestamp::now().to_string()}}}))
            .await;
        let secret = space.secrets().get("t").await.expect("a Secret");
        let version = secret.annotations().get("tokenward.dev/version").cloned();
        if version.as_deref() == Some("2")
            && secret.labels().get("tokenward.dev/token").is_some_and(|t| t == "t")
        {
            assert_eq!(secret.owner_references().len(), 1);
            Ok(())
        } else {
            Err(format!("{:?}", secret.metadata))
        }
    })
    .await;
    assert_eq!(space.secret_of("t").await, new);
}

pub async fn a_secret_that_keeps_breaking_stalls(shared: &Shared) {
    let space = shared.site.namespace("broken").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    let mut repairs = 0;
    for _ in 0..10 {
        match space.secrets().delete("t", &Default::default()).await {
            Ok(_) => {}
            Err(error) => assert!(error.to_string().contains("not found"), "{error}"),
        }
        let token = space
            .until("t", "a repair or the end of repairs", |t| {
                let stalled = condition(t, ConditionType::Stalled).is_some();
                stalled
                    || testkit::has(t, ConditionType::Ready, "True")
                        && t.status
                            .as_ref()
                            .and_then(|s| s.secret_ref.as_ref())
                            .is_some_and(|r| r.version == repairs + 2)
            })
            .await;
        if condition(&token, ConditionType::Stalled).is_some() {
            break;
        }
        repairs += 1;
    }
    assert_eq!(repairs, 3);
    let token = space.get("t").await;
    let (reason, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    assert_eq!(reason, "SecretMissing");
    assert!(message.contains("to have it now, change rotation.trigger"), "{message}");
    assert!(testkit::has(&token, ConditionType::Ready, "False"));
    space.stays("t", Duration::from_secs(1)).await;
    // The remedy that the message names.
    space.patch("t", json!({"spec": {"rotation": {"trigger": "repaired"}}})).await;
    let token = space.version("t", 5).await;
    shared.verifier.answers(&token, "", 200).await;
}

pub async fn other_keys_and_labels_are_preserved(shared: &Shared) {
    let space = shared.site.namespace("others").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    patch_secret(
        &space,
        "t",
        json!({
            "stringData": {"extra": "theirs"},
            "metadata": {"labels": {"theirs": "x"}, "annotations": {"reloader.stakater.com/match": "true"}},
        }),
    )
    .await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    space.version("t", 2).await;
    let secret = space.secrets().get("t").await.expect("a Secret");
    assert_eq!(data(&secret, "extra").as_deref(), Some("theirs"));
    assert!(secret.labels().contains_key("theirs"));
    assert!(secret.annotations().contains_key("reloader.stakater.com/match"));
}

pub async fn the_template_is_applied_and_removed(shared: &Shared) {
    let space = shared.site.namespace("template").await;
    let secret = space
        .active("t", json!({"scopes": ["a:b"], "secret": {"template": {"metadata": {"labels": {"team": "a", "tier": "1"}, "annotations": {"note": "n"}}}}}))
        .await;
    space.patch("t", json!({"spec": {"secret": {"template": {"metadata": {"labels": {"team": "b", "tier": null}, "annotations": null}}}}})).await;
    eventually("Secret in its new template", async || {
        let secret = space.secrets().get("t").await.expect("a Secret");
        let labels = secret.labels();
        let right = labels.get("team").is_some_and(|t| t == "b") && !labels.contains_key("tier");
        if right && !secret.annotations().contains_key("note") {
            Ok(())
        } else {
            Err(format!("{:?}", secret.metadata))
        }
    })
    .await;
    assert_eq!(space.secret_of("t").await, secret, "a template is no reason to rotate");
    // Labels of the ApiToken are never copied: with tracking labels, the Secret would be pruned.
    space.patch("t", json!({"metadata": {"labels": {"app.kubernetes.io/instance": "argo"}}})).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    space.version("t", 2).await;
    assert!(
        !space
            .secrets()
            .get("t")
            .await
            .expect("a Secret")
            .labels()
            .contains_key("app.kubernetes.io/instance")
    );
}

pub async fn constants_stand_beside_the_token(shared: &Shared) {
    let space = shared.site.namespace("constants").await;
    let secret = json!({
        "keys": {"token": "password"},
        "template": {"type": "kubernetes.io/basic-auth", "data": {"username": "ci", "region": "eu"}},
    });
    space.create("t", json!({"scopes": ["a:b"], "secret": secret})).await;
    space.condition("t", ConditionType::Active, "True").await;
    let found = space.secrets().get("t").await.expect("a Secret");
    assert_eq!(found.type_.as_deref(), Some("kubernetes.io/basic-auth"));
    let password = data(&found, "password");
    let becomes = async |username: Option<&str>, region: Option<&str>| {
        eventually("the constants", async || {
            let secret = space.secrets().get("t").await.expect("a Secret");
            assert_eq!(data(&secret, "password"), password, "a constant is no reason to rotate");
            let found = (data(&secret, "username"), data(&secret, "region"));
            let wanted = (username.map(str::to_owned), region.map(str::to_owned));
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    becomes(Some("ci"), Some("eu")).await;
    // Somebody's edit is put right; one of the template is applied, and what it leaves out goes.
    patch_secret(&space, "t", json!({"stringData": {"username": "mallory"}})).await;
    becomes(Some("ci"), Some("eu")).await;
    space
        .patch(
            "t",
            json!({"spec": {"secret": {"template": {"data": {"username": "deploy", "region": null}}}}}),
        )
        .await;
    becomes(Some("deploy"), None).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    space.delivered("t", 2).await;
    let rotated = space.secrets().get("t").await.expect("a Secret");
    assert_ne!(data(&rotated, "password"), password);
    assert_eq!(data(&rotated, "username").as_deref(), Some("deploy"));
}

/// A `basic-auth` Secret with a user name, as it comes from Git.
async fn create_theirs(space: &Space, labels: serde_json::Value) -> Secret {
    let secret = json!({
        "metadata": {"name": "theirs", "labels": labels},
        "type": "kubernetes.io/basic-auth",
        "stringData": {"username": "ci"},
    });
    let secret = serde_json::from_value(secret).expect("a Secret");
    space.secrets().create(&Default::default(), &secret).await.expect("a Secret")
}

pub async fn a_token_is_merged_into_the_secret_of_somebody_else(shared: &Shared) {
    let space = shared.site.namespace("merge").await;
    let spec = json!({
        "scopes": ["a:b"],
        "secret": {"name": "theirs", "creationPolicy": "Merge", "keys": {"token": "password"}},
    });
    let consent = json!({"tokenward.dev/token": "t", "app.kubernetes.io/managed-by": "argocd"});
    // The ApiToken first, then the Secret.
    space.create("t", spec.clone()).await;
    let token = space.reason("t", ConditionType::Delivered, "SecretNotFound").await;
    assert!(condition(&token, ConditionType::Stalled).is_none(), "{token:?}");
    let (_, message) = condition(&token, ConditionType::Ready).expect("Ready");
    assert!(message.contains("waiting for Secret theirs with the label tokenward.dev/token=t"), "{message}");
    let made = create_theirs(&space, consent.clone()).await;
    space.condition("t", ConditionType::Active, "True").await;
    let merged = space.secrets().get("theirs").await.expect("a Secret");
    assert_eq!(merged.metadata.uid, made.metadata.uid);
    assert_eq!(data(&merged, "username").as_deref(), Some("ci"));
    assert!(merged.metadata.owner_references.is_none());
    assert_eq!(merged.labels()["app.kubernetes.io/managed-by"], "argocd");
    let first = data(&merged, "password").expect("a token");
    shared.verifier.answers(&first, "", 200).await;
    // It is rotated like any other, and what others add stays, tokens of other ApiTokens included.
    let other = space.active("other", json!({"scopes": ["a:c"]})).await;
    patch_secret(&space, "theirs", json!({"stringData": {"other": other}})).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    space.delivered("t", 2).await;
    let rotated = space.secrets().get("theirs").await.expect("a Secret");
    assert_ne!(data(&rotated, "password").as_deref(), Some(&*first));
    assert_eq!((data(&rotated, "username").as_deref(), data(&rotated, "other")), (Some("ci"), Some(other)));
    // None is made in the place of one that is gone; in that which comes there is a new token.
    space.secrets().delete("theirs", &Default::default()).await.expect("a deletion");
    space.reason("t", ConditionType::Delivered, "SecretNotFound").await;
    space.stays("t", Duration::from_secs(1)).await;
    assert!(space.secrets().get_opt("theirs").await.expect("an answer").is_none());
    create_theirs(&space, consent.clone()).await;
    space.delivered("t", 3).await;
    // Neither a revocation nor the deletion of the ApiToken takes it away.
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    space.reason("t", ConditionType::Revoked, "Enforced").await;
    space.delete("t").await;
    let left = space.secrets().get("theirs").await.expect("a Secret");
    assert_eq!(data(&left, "username").as_deref(), Some("ci"));
    shared.verifier.answers(&data(&left, "password").expect("a dead token"), "", 401).await;
    // The Secret first, then the ApiToken.
    space.create("t", spec).await;
    space.condition("t", ConditionType::Active, "True").await;
    let merged = space.secrets().get("theirs").await.expect("a Secret");
    shared.verifier.answers(&data(&merged, "password").expect("a token"), "", 200).await;
}

pub async fn no_value_of_somebody_else_is_overwritten(shared: &Shared) {
    let space = shared.site.namespace("taken").await;
    let keys = json!({"password": "mine", "old": "older", "user": "x"});
    // Of the same kind as an ApiToken, in the API of somebody else.
    let owner = json!({"apiVersion": "cloud.example/v1", "kind": "ApiToken", "name": "a", "uid": "a"});
    let metadata = json!({
        "name": "theirs", "labels": {"tokenward.dev/token": "t", "team": "theirs"},
        "annotations": {"note": "theirs"}, "ownerReferences": [owner],
    });
    let theirs = json!({"metadata": metadata, "stringData": keys});
    let theirs = serde_json::from_value(theirs).expect("a Secret");
    space.secrets().create(&Default::default(), &theirs).await.expect("a Secret");
    let before = space.secrets().get("theirs").await.expect("a Secret");
    let secret = json!({
        "name": "theirs", "creationPolicy": "Merge", "keys": {"token": "password", "previous": "old"},
        "template": {
            "data": {"user": "ci"},
            "metadata": {"labels": {"team": "ours", "tier": "ours"}, "annotations": {"note": "ours"}},
        },
    });
    space.create("t", json!({"scopes": ["a:b"], "secret": secret})).await;
    let token = space.reason("t", ConditionType::Stalled, "SecretConflict").await;
    let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    let taken = "under password, old, user, label team, annotation note, which is not overwritten";
    assert!(message.contains(taken), "{message}");
    assert_eq!(space.secrets().get("theirs").await.expect("a Secret"), before);
    let keys = json!({"token": "token", "previous": ""});
    let metadata = json!({"labels": {"team": null}, "annotations": null});
    let secret =
        json!({"keys": keys, "template": {"data": {"user": null, "username": "ci"}, "metadata": metadata}});
    space.patch("t", json!({"spec": {"secret": secret}})).await;
    space.condition("t", ConditionType::Active, "True").await;
    let merged = space.secrets().get("theirs").await.expect("a Secret");
    assert_eq!(data(&merged, "username").as_deref(), Some("ci"));
    // A live token does not move onto one either; what is left out of the template goes, and theirs stays.
    space.patch("t", json!({"spec": {"secret": {"keys": {"token": "old"}, "template": null}}})).await;
    space.reason("t", ConditionType::Stalled, "SecretConflict").await;
    space.patch("t", json!({"spec": {"secret": {"keys": {"token": "token"}}}})).await;
    eventually("the constant is gone", async || {
        let secret = space.secrets().get("theirs").await.expect("a Secret");
        if data(&secret, "username").is_none() { Ok(()) } else { Err(format!("{:?}", secret.metadata)) }
    })
    .await;
    let merged = space.secrets().get("theirs").await.expect("a Secret");
    assert_eq!(merged.metadata.owner_references, before.metadata.owner_references);
    let label = |key: &str| merged.metadata.labels.as_ref().and_then(|labels| labels.get(key).cloned());
    assert_eq!((label("team").as_deref(), label("tier")), (Some("theirs"), None));
    assert_eq!(
        merged.metadata.annotations.as_ref().and_then(|a| a.get("note")).map(String::as_str),
        Some("theirs")
    );
    for (key, value) in [("password", "mine"), ("old", "older"), ("user", "x")] {
        assert_eq!(data(&merged, key).as_deref(), Some(value), "{key}");
    }
    // What was tokenward's own is repaired.
    patch_secret(&space, "theirs", json!({"stringData": {"token": "hunter2"}})).await;
    space.delivered("t", 2).await;
}

pub async fn nothing_is_merged_without_the_owners_consent(shared: &Shared) {
    let space = shared.site.namespace("noconsent").await;
    let before = create_theirs(&space, json!({"tokenward.dev/token": "another"})).await;
    let secret = json!({"name": "theirs", "creationPolicy": "Merge", "keys": {"token": "password"}});
    space.create("t", json!({"scopes": ["a:b"], "secret": secret})).await;
    let token = space.reason("t", ConditionType::Stalled, "SecretConflict").await;
    let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    assert!(message.contains("belongs to ApiToken another"), "{message}");
    assert_eq!(space.secrets().get("theirs").await.expect("a Secret"), before);
    patch_secret(&space, "theirs", json!({"metadata": {"labels": {"tokenward.dev/token": null}}})).await;
    let token = space.reason("t", ConditionType::Ready, "SecretNotFound").await;
    let (_, message) = condition(&token, ConditionType::Ready).expect("Ready");
    assert!(message.contains("waiting for Secret theirs with the label tokenward.dev/token=t"), "{message}");
    patch_secret(&space, "theirs", json!({"metadata": {"labels": {"tokenward.dev/token": "t"}}})).await;
    space.condition("t", ConditionType::Active, "True").await;
    // Whoever takes it back is not written to any more.
    patch_secret(&space, "theirs", json!({"metadata": {"labels": {"tokenward.dev/token": null}}})).await;
    let token = space.reason("t", ConditionType::Stalled, "SecretConflict").await;
    let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    assert!(message.contains("lacks the label tokenward.dev/token=t"), "{message}");
    let taken_back = space.secrets().get("theirs").await.expect("a Secret");
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    space.reason("t", ConditionType::Stalled, "SecretConflict").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(space.secrets().get("theirs").await.expect("a Secret"), taken_back);
}

pub async fn a_renamed_key_moves_the_token(shared: &Shared) {
    let space = shared.site.namespace("rename").await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    space.patch("t", json!({"spec": {"secret": {"keys": {"token": "API_TOKEN"}}}})).await;
    eventually("token under its new key", async || {
        let secret = space.secrets().get("t").await.expect("a Secret");
        match (data(&secret, "API_TOKEN"), data(&secret, "token")) {
            (Some(moved), None) if moved == token => Ok(()),
            other => Err(format!("{:?}", (other.0.is_some(), other.1.is_some()))),
        }
    })
    .await;
    shared.verifier.answers(&token, "", 200).await;
}

pub async fn a_secret_that_the_api_server_rejects_is_reported(shared: &Shared) {
    let space = shared.site.namespace("notaccepted").await;
    let spec = json!({"scopes": ["a:b"], "secret": {"template": {"type": "kubernetes.io/tls"}}});
    space.create("t", spec).await;
    let token = space.reason("t", ConditionType::Stalled, "SecretInvalid").await;
    let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    assert!(message.contains("tls.crt"), "{message}");
    space.stays("t", Duration::from_secs(1)).await;
}

/// Nobody can make an immutable Secret mutable again: to delete it is the way out.
pub async fn an_immutable_secret_is_made_anew_once_it_is_deleted(shared: &Shared) {
    let space = shared.site.namespace("immutable").await;
    let old = space.active("t", json!({"scopes": ["a:b"]})).await;
    patch_secret(&space, "t", json!({"immutable": true})).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    let token = space.reason("t", ConditionType::Stalled, "SecretInvalid").await;
    let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    assert!(message.contains("immutable"), "{message}");
    shared.verifier.answers(&old, "", 200).await;
    space.secrets().delete("t", &Default::default()).await.expect("a deletion");
    let new = space.version("t", 2).await;
    shared.verifier.answers(&new, "", 200).await;
}

pub async fn a_retained_secret_outlives_its_token(shared: &Shared) {
    let space = shared.site.namespace("retain").await;
    let old = space.active("t", json!({"scopes": ["a:b"], "secret": {"onDelete": "Retain"}})).await;
    assert!(space.secrets().get("t").await.expect("a Secret").owner_references().is_empty());
    space.delete("t").await;
    shared.verifier.answers(&old, "", 401).await;
    assert_eq!(space.secret_of("t").await, old);
    // An ApiToken of the same name is a new token, and may write the Secret that the old one has left.
    space.create("t", json!({"scopes": ["a:b"]})).await;
    space.condition("t", ConditionType::Active, "True").await;
    let new = space.secret_of("t").await;
    assert_ne!(new, old);
    shared.verifier.answers(&new, "", 200).await;
    assert_eq!(shared.verifier.check(&old, "").await, 401);
}

pub async fn a_wiped_status_is_rebuilt(shared: &Shared) {
    let space = shared.site.namespace("wiped").await;
    let token = space.active("t", json!({"scopes": ["a:b"], "rotation": {"trigger": "x"}})).await;
    let before = space.get("t").await.status.expect("a status");
    space.patch_status("t", json!({"status": null})).await;
    space.condition("t", ConditionType::Active, "True").await;
    let after = space.get("t").await.status.expect("a status");
    assert_eq!(after.token_id, before.token_id);
    assert_eq!((&after.versions[0].key_id, after.versions[0].version), (&before.versions[0].key_id, 1));
    assert_eq!(after.versions[0].issued_at, before.versions[0].issued_at);
    assert_eq!(space.secret_of("t").await, token, "no rotation");
    shared.verifier.answers(&token, "scope=a:b", 200).await;
}

pub async fn a_changed_status_revives_no_secret_and_adds_no_scope(shared: &Shared) {
    let space = shared.site.namespace("changed").await;
    let old = space.active("t", json!({"scopes": ["a:*"], "rotation": {"overlap": "1h"}})).await;
    shared.verifier.answers(&old, "scope=a:b", 200).await;
    space.patch("t", json!({"spec": {"rotation": {"notBefore": jiff::Timestamp::now()}}})).await;
    shared.verifier.answers(&old, "", 401).await;
    let new = space.version("t", 2).await;
    shared.verifier.answers(&new, "scope=a:b", 200).await;
    // All that whoever may write a status can say of the two.
    let mut status = serde_json::to_value(space.get("t").await.status.expect("a status")).expect("JSON");
    for version in status["versions"].as_array_mut().expect("versions") {
        let is_current = version["version"] == 2;
        version["state"] = json!(if is_current { "Active" } else { "Retiring" });
        version["issuedAt"] = json!("2030-01-01T00:00:00Z");
        version["scopes"] = json!(["a:*", "payments:refund"]);
        if !is_current {
            version["retireAt"] = json!("2099-01-01T00:00:00Z");
        }
    }
    space
        .patch(
            "t",
            json!({"spec": {"scopes": ["a:*", "payments:refund"], "rotation": {"onSpecChange": "Keep"}}}),
        )
        .await;
    space.patch_status("t", json!({ "status": status })).await;
    // From now on until the controller has put the status right, and after.
    for _ in 0..100 {
        assert_eq!(shared.verifier.check(&old, "").await, 401);
        assert_ne!(shared.verifier.check(&new, "scope=payments:refund").await, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shared.verifier.answers(&new, "scope=a:b", 200).await;
    assert_eq!(shared.verifier.check(&new, "scope=payments:refund").await, 403);
    assert_eq!(space.secret_of("t").await, new, "no rotation");
}

pub async fn a_forged_status_grants_nothing(shared: &Shared) {
    let space = shared.site.namespace("nonsense").await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    let victim = space.active("victim", json!({"scopes": ["payments:*"]})).await;
    let hash = space.get("victim").await.status.expect("a status").versions[0].clone();
    let forged = |version: i64, state: &str, key_id: &str, hash: &str| {
        json!({
            "version": version, "state": state, "keyId": key_id, "hash": hash, "scopes": ["payments:*"],
            "issuedAt": "2026-01-01T00:00:00Z", "retireAt": "2099-01-01T00:00:00Z", "reason": "Created",
        })
    };
    let mut versions = vec![
        forged(9, "Active", &hash.key_id, &hash.hash),
        forged(8, "Active", "AAAAAAAAAAAA", "hmac-sha256:p1:nonsense"),
        forged(7, "Retiring", "BBBBBBBBBBBB", "nonsense"),
        forged(6, "Pending", "CCCCCCCCCCCC", &hash.hash),
    ];
    versions.push(
        serde_json::to_value(&space.get("t").await.status.expect("a status").versions[0]).expect("json"),
    );
    space.patch_status("t", json!({"status": {"versions": versions}})).await;
    // Another's key id grants nothing here, and stays the other's.
    let answer = shared.verifier.ask(&victim, "").await;
    assert_eq!(answer.headers()["x-tokenward-subject"], format!("{}/victim", space.name).as_str());
    // The object recovers: what the Secret then contains works.
    space
        .until("t", "a repaired status", |t| {
            let versions = &t.status.as_ref().expect("a status").versions;
            testkit::has(t, ConditionType::Ready, "True")
                && versions.iter().filter(|v| v.state.is_live()).count() <= 2
        })
        .await;
    let current = space.secret_of("t").await;
    shared.verifier.answers(&current, "scope=a:b", 200).await;
    assert_eq!(shared.verifier.check(&current, "scope=payments:x").await, 403);
}
