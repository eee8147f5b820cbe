//! What the API server rejects by the CRDs' rules, and with which message.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use tokenward_core::crd::ConditionType;

use crate::Shared;

fn spec(more: Value) -> Value {
    let mut spec = json!({"scopes": ["tokens:read"]});
    spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    spec
}

pub async fn bad_specs_are_rejected_with_a_reason(shared: &Shared) {
    let space = shared.site.namespace("spec").await;
    let many: Vec<String> = (0..65).map(|i| format!("tokens:s{i}")).collect();
    let long = format!("tokens:{}", "x".repeat(122));
    let template =
        |key: &str, name: &str| spec(json!({"secret": {"template": {"metadata": {key: {name: "x"}}}}}));
    let rotation = |more: Value| spec(json!({"rotation": more}));
    let secret = |more: Value| spec(json!({"secret": more}));
    let table = [
        (json!({}), "spec.scopes: Required value"),
        (json!({"scopes": []}), "at least 1 items"),
        (json!({"scopes": many}), "at most 64 items"),
        (
            json!({"scopes": ["tokens"]}),
            "each scope must be resource:action, such as orders:read or orders:*",
        ),
        (json!({"scopes": ["tokens:read write"]}), "each scope must be resource:action"),
        (json!({"scopes": ["töken:read"]}), "each scope must be resource:action"),
        (json!({"scopes": ["tokens:*:read"]}), "each scope must be resource:action"),
        (json!({"scopes": ["tokens:read", "tokens:read"]}), "name each scope once"),
        (json!({"scopes": [long]}), "Too long"),
        (rotation(json!({"interval": "30d"})), "there is no unit for days: 30 days are 720h"),
        (rotation(json!({"overlap": "1.5h"})), "must be numbers with the unit h, m or s"),
        (rotation(json!({"overlap": "999999h999999h999999h999999h"})), "Too long"),
        (rotation(json!({"overlap": "1000000h"})), "at most three numbers, the first of at most six digits"),
        // Longer than any duration that CEL has: its error would come instead of the sentence.
        (rotation(json!({"interval": "999999h999999h999999h"})), "there is no unit for days"),
        (
            rotation(json!({"interval": "720h", "overlap": "900000h900000h900000h"})),
            "there is no unit for days",
        ),
        (rotation(json!({"interval": ""})), "there is no unit for days"),
        (rotation(json!({"interval": "1h", "overlap": "60m"})), "overlap must be shorter than interval"),
        (rotation(json!({"interval": "1h"})), "unset, overlap is 1h"),
        (rotation(json!({"interval": "9s", "overlap": "0s"})), "interval must be at least 10s"),
        (rotation(json!({"onSpecChange": "Sometimes"})), "supported values: \"Rotate\", \"Keep\""),
        (rotation(json!({"notBefore": "yesterday"})), "date-time"),
        (spec(json!({"expiresAt": "2027-13-01"})), "date-time"),
        (spec(json!({"expiresAt": "9999-12-31T23:59:59Z"})), "for a token that never expires leave it out"),
        (spec(json!({"expiresAt": "1969-12-31T23:59:59Z"})), "expiresAt must be from 1970"),
        (spec(json!({"expiresAt": "0001-01-01T00:00:00Z"})), "expiresAt must be from 1970"),
        (rotation(json!({"notBefore": "9999-12-31T23:59:59Z"})), "after a leak set it to now"),
        (spec(json!({"revocationReason": "KeyCompromise"})), "revocationReason goes with revoked: true"),
        (spec(json!({"constraints": {"cidrs": ["10.0.0.0"]}})), "CIDR notation"),
        (spec(json!({"format": {"prefix": "Tok"}})), "spec.format.prefix"),
        (spec(json!({"format": {"prefix": "t"}})), "spec.format.prefix"),
        (spec(json!({"secret": {"name": "Not_A_Name"}})), "spec.secret.name"),
        (spec(json!({"secret": {"keys": {"token": "a b"}}})), "spec.secret.keys.token"),
        (
            spec(json!({"secret": {"keys": {"previous": "token"}}})),
            "previous must name another key than token",
        ),
        (
            spec(json!({"secret": {"template": {"type": "kubernetes.io/service-account-token"}}})),
            "this type makes Kubernetes issue credentials of its own",
        ),
        (secret(json!({"template": {"data": {"token": "x"}}})), "template.data must name other keys"),
        (
            secret(json!({"keys": {"token": "a", "previous": "b"}, "template": {"data": {"b": "x"}}})),
            "template.data must name other keys",
        ),
        (secret(json!({"template": {"data": {"a b": "x"}}})), "each key must consist of letters"),
        (secret(json!({"template": {"data": {"..a": "x"}}})), "begin with .., as in every Secret"),
        (secret(json!({"keys": {"token": "."}})), "a key must not be ."),
        (secret(json!({"keys": {"previous": "..x"}})), "a key must not be ."),
        (secret(json!({"template": {"data": {"a": "x".repeat(1025)}}})), "Too long"),
        (secret(json!({"creationPolicy": "None"})), "supported values: \"Owner\", \"Merge\""),
        (secret(json!({"creationPolicy": "Merge", "onDelete": "Delete"})), "the Secret is somebody else's"),
        (secret(json!({"creationPolicy": "Merge", "onRevoke": "Delete"})), "the Secret is somebody else's"),
        (
            secret(json!({"creationPolicy": "Merge", "template": {"type": "x/y"}})),
            "the Secret is somebody else's",
        ),
        (template("labels", "argocd.argoproj.io/instance"), "tools own their objects by them"),
        (template("labels", "app.kubernetes.io/instance"), "tools own their objects by them"),
        (template("labels", "kustomize.toolkit.fluxcd.io/name"), "tools own their objects by them"),
        (template("labels", "tokenward.dev/token"), "tools own their objects by them"),
        (template("annotations", "argocd.argoproj.io/tracking-id"), "tools own their objects by them"),
        (template("annotations", "kubernetes.io/service-account.name"), "tools own their objects by them"),
        (template("annotations", "meta.helm.sh/release-name"), "tools own their objects by them"),
        (spec(json!({"displayName": "x".repeat(129)})), "Too long"),
        (
            spec(json!({"displayName": "Orders\u{1b}[2J"})),
            "displayName must be one line, without control characters",
        ),
        (spec(json!({"owner": {"team": "pay\nments"}})), "team must be one line"),
        (spec(json!({"owner": {"contact": "\u{85}"}})), "contact must be one line"),
    ];
    for (spec, sentence) in table {
        let refused = space.try_create("bad", spec.clone()).await.expect_err(&spec.to_string());
        assert!(refused.contains(sentence), "{spec}\nexpected: {sentence}\nrefused with: {refused}");
    }
    let refused = space.try_create(&"n".repeat(64), spec(json!({}))).await.expect_err("a long name");
    assert!(refused.contains("at most 63 characters"), "{refused}");
    for (name, good) in [
        ("wildcard", json!({"scopes": ["orders:*", "k8s.io/pods:get", "a:b:c"]})),
        ("labels", template("labels", "app.kubernetes.io/part-of")),
        ("durations", rotation(json!({"interval": "1h30m", "overlap": "0s"}))),
        ("long", rotation(json!({"interval": "999999h99999h99999h", "overlap": "876000h"}))),
        ("not-revoked", spec(json!({"revoked": false}))),
        ("names", spec(json!({"displayName": "Bestellungen – 注文 👩‍💻", "owner": {"team": "équipe"}}))),
    ] {
        space.create(name, good).await;
    }
}

pub async fn one_way_fields_go_one_way(shared: &Shared) {
    let space = shared.site.namespace("oneway").await;
    let cut = Timestamp::now() - SignedDuration::from_hours(1);
    let at = |minutes: i64| (cut + SignedDuration::from_mins(minutes)).to_string();
    space
        .create(
            "t",
            spec(json!({
                "rotation": {"notBefore": at(0), "overlap": "1h"},
                "secret": {"name": "s"}, "format": {"prefix": "tok"},
            })),
        )
        .await;
    space.create("plain", spec(json!({}))).await;
    let refuse = async |name: &str, patch: Value, sentence: &str| {
        let refused = space.try_patch(name, json!({"spec": patch})).await.expect_err(sentence);
        assert!(refused.contains(sentence), "{refused}");
    };
    refuse("t", json!({"secret": {"name": "other"}}), "secret.name is immutable").await;
    refuse("t", json!({"secret": {"name": null}}), "secret.name is immutable").await;
    refuse("t", json!({"secret": null}), "secret.name is immutable").await;
    refuse("plain", json!({"secret": {"name": "plain"}}), "secret.name is immutable").await;
    refuse("plain", json!({"secret": {"creationPolicy": "Merge"}}), "creationPolicy is immutable").await;
    refuse("t", json!({"format": {"prefix": "other"}}), "format.prefix is immutable").await;
    refuse("t", json!({"format": null}), "format.prefix is immutable").await;
    refuse("plain", json!({"secret": {"template": {"type": "x/y"}}}), "template.type is immutable").await;
    refuse("t", json!({"rotation": {"notBefore": at(-1)}}), "dead secrets could come back").await;
    refuse("t", json!({"rotation": {"notBefore": null}}), "dead secrets could come back").await;
    refuse("t", json!({"rotation": null}), "dead secrets could come back").await;
    space
        .until("t", "a record of notBefore", |t| {
            t.status.as_ref().is_some_and(|s| s.rotation.as_ref().is_some_and(|r| r.not_before.is_some()))
        })
        .await;
    space.patch("t", json!({"spec": {"rotation": {"notBefore": at(1)}}})).await;

    space.patch("t", json!({"spec": {"revoked": true, "revocationReason": "OwnerLeft"}})).await;
    refuse("t", json!({"revoked": false, "revocationReason": null}), "revocation is permanent").await;
    refuse("t", json!({"revoked": null, "revocationReason": null}), "revocation is permanent").await;
    // Nor does a `kubectl apply` of a manifest without the field.
    let manifest = format!(
        "apiVersion: tokenward.dev/v1alpha1\nkind: ApiToken\nmetadata: {{name: applied, namespace: {}}}\nspec: {{scopes: [\"a:b\"]",
        space.name
    );
    let apply = |rest: &str| {
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = dir.join(format!("{}.yaml", space.name));
        std::fs::write(&path, format!("{manifest}{rest}}}\n")).expect("a manifest");
        shared.site.try_kubectl(&["apply", "-f", &path.display().to_string()])
    };
    assert!(apply(", revoked: true").0);
    let (ok, output) = apply("");
    assert!(!ok && output.contains("revocation is permanent"), "{output}");
    // Other fields stay editable, or a sync from Git would fail.
    space.patch("t", json!({"spec": {"scopes": ["tokens:write"], "displayName": "gone"}})).await;
}

/// The most that a plain token may take in etcd, which is what every watch sends, too, in bytes of JSON.
const PLAIN_TOKEN_BYTES: usize = 1950;

pub async fn a_plain_token_is_small(shared: &Shared) {
    let space = shared.site.namespace("small").await;
    space.create("backend-prod", spec(json!({}))).await;
    let token = space.condition("backend-prod", ConditionType::Ready, "True").await;
    let stored = serde_json::to_value(&token).expect("JSON");
    let parts = ["metadata", "spec", "status"].map(|part| (part, stored[part].to_string().len()));
    let bytes = stored.to_string().len();
    eprintln!("a plain token takes {bytes} bytes: {parts:?}");
    assert!(bytes <= PLAIN_TOKEN_BYTES, "{bytes}: {parts:?}");
}
