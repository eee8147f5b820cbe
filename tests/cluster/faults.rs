//! Faults around the controller: another replica, the pepper, the API server, the namespace, the rights.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::config::Kubeconfig;
use kube::{Api, Client};
use serde_json::json;
use tokenward_core::crd::{ConditionType, VersionState};
use tokenward_core::token::Peppers;

use testkit::{Process, Site, TIMEOUT, Tenant, client_of, condition, eventually, message};

async fn leads(process: &Process) -> bool {
    process.metrics().await.lines().any(|line| line == "tokenward_leader 1")
}

/// The environment of a process whose time of day is wrong by so many seconds, such as `-120`. The monotonic clock is left alone.
pub fn clock<'a>(library: &'a str, offset: &'a str) -> [(&'a str, &'a str); 3] {
    [("LD_PRELOAD", library), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]
}

/// One replica is ten minutes ahead, the other ten behind; the API server and the verifier have the right time.
pub async fn wrong_clocks_do_no_harm(site: &Site) {
    let tenant = Tenant::new(site, "clocks").await;
    let space = &tenant.space;
    let library = programs::faketime().expect("libfaketime").display().to_string();
    let start = |name: &str, offset: &str| {
        tenant.controller_with(&["--lease-duration", "3s", "--identity", name], &clock(&library, offset))
    };
    let mut replicas = vec![start("ahead", "+600").ready().await, start("behind", "-600").ready().await];
    let verifier = tenant.verifier().ready().await;
    for name in ["t", "u"] {
        let old = space.active(name, json!({"scopes": ["a:b"], "rotation": {"overlap": "1h"}})).await;
        verifier.answers(&old, "scope=a:b", 200).await;
        space.patch(name, json!({"spec": {"rotation": {"trigger": "1"}}})).await;
        let new = space.version(name, 2).await;
        for secret in [&old, &new] {
            verifier.answers(secret, "scope=a:b", 200).await;
        }
        space.patch(name, json!({"spec": {"revoked": true}})).await;
        verifier.answers(&new, "scope=a:b", 401).await;
        space.condition(name, ConditionType::Ready, "True").await;
        let mut leaders = Vec::new();
        for (place, replica) in replicas.iter().enumerate() {
            leaders.extend(leads(replica).await.then_some(place));
        }
        assert_eq!(leaders.len(), 1, "{leaders:?}");
        drop(replicas.remove(leaders[0]));
    }
}

/// A policy that changes every write of the kind in a namespace, as those of Kyverno or Gatekeeper do.
fn mutate(site: &Site, namespace: &str, group: &str, resource: &str, condition: &str, patch: &str) -> String {
    let name = format!("{resource}-{namespace}");
    let selector = json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}});
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [{
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "reinvocationPolicy": "Never",
            "matchConstraints": {
                "namespaceSelector": selector,
                "resourceRules": [{
                    "apiGroups": [group], "apiVersions": ["*"], "resources": [resource], "operations": ["CREATE", "UPDATE"],
                }],
            },
            "matchConditions": [{"name": "concerned", "expression": condition}],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        },
    }, {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    }]});
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
    std::fs::write(&path, objects.to_string()).expect("a file");
    site.kubectl(&["apply", "-f", &path.display().to_string()]);
    name
}

pub async fn what_a_policy_changes_back_is_not_fought_over(site: &Site) {
    let tenant = Tenant::new(site, "fight").await;
    let space = &tenant.space;
    let policy = mutate(
        site,
        &space.name,
        "",
        "secrets",
        "has(object.metadata.labels) && 'tokenward.dev/token' in object.metadata.labels",
        r#"[JSONPatch{op: "add", path: "/metadata/labels/team", value: "theirs"}]"#,
    );
    let controller = tenant.controller(&[]).ready().await;
    let verifier = tenant.verifier().ready().await;
    let spec = json!({"scopes": ["a:b"], "secret": {"template": {"metadata": {"labels": {"team": "ours"}}}}});
    // The API server may take a moment to enforce a policy.
    eventually("the policy", async || {
        let probe = json!({"metadata": {"name": "probe", "labels": {"tokenward.dev/token": "none"}}});
        let probe = serde_json::from_value(probe).expect("a Secret");
        let made: k8s_openapi::api::core::v1::Secret =
            space.secrets().create(&PostParams::default(), &probe).await.expect("a Secret");
        space.secrets().delete("probe", &Default::default()).await.expect("a deletion");
        if made.metadata.labels.is_some_and(|labels| labels.contains_key("team")) {
            Ok(())
        } else {
            Err(String::new())
        }
    })
    .await;
    let secret = space.active("t", spec).await;
    let token = space.reason("t", ConditionType::Stalled, "Contested").await;
    let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    assert!(message.contains("label team of Secret t;"), "{message}");
    let writes = controller.metric("tokenward_secret_writes_total").await;
    assert!(writes <= 5.0, "{writes} writes");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(controller.metric("tokenward_secret_writes_total").await, writes);
    // The token works all the same, is rotated and revoked.
    assert!(testkit::has(&space.get("t").await, ConditionType::Active, "True"));
    verifier.answers(&secret, "", 200).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    let second = space.version("t", 2).await;
    verifier.answers(&second, "", 200).await;
    // Without the policy, the next edit is applied at once, and nothing is left of it.
    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        site.kubectl(&["delete", kind, &policy]);
    }
    eventually("the label", async || {
        let trigger = Timestamp::now().to_string();
        space.patch("t", json!({"spec": {"displayName": trigger}})).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let secret = space.secrets().get("t").await.expect("a Secret");
        let team = secret.metadata.labels.and_then(|labels| labels.get("team").cloned());
        if team.as_deref() == Some("ours") { Ok(()) } else { Err(format!("{team:?}")) }
    })
    .await;
    space.until("t", "no contest", |t| condition(t, ConditionType::Stalled).is_none()).await;
    assert_eq!(space.secret_of("t").await, second);

    // Another controller, which changes it back a moment later, and a constant and an owner too.
    let before = controller.metric("tokenward_secret_writes_total").await;
    let until = std::time::Instant::now() + Duration::from_secs(8);
    let mut changes = 0;
    while std::time::Instant::now() < until {
        let patch = json!({"metadata": {"labels": {"team": "theirs"}, "ownerReferences": null}});
        space.secrets().patch("t", &PatchParams::default(), &Patch::Merge(patch)).await.expect("a patch");
        changes += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let writes = controller.metric("tokenward_secret_writes_total").await - before;
    assert!((1.0..=4.0).contains(&writes), "{writes} writes for {changes} changes");
    verifier.answers(&second, "", 200).await;
}

pub async fn a_finalizer_that_a_policy_takes_off_holds_up_nothing(site: &Site) {
    let tenant = Tenant::new(site, "stripped").await;
    let space = &tenant.space;
    mutate(
        site,
        &space.name,
        "tokenward.dev",
        "apitokens",
        "has(object.metadata.finalizers)",
        r#"[JSONPatch{op: "remove", path: "/metadata/finalizers"}]"#,
    );
    let hook = json!({
        "apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenWebhook",
        "metadata": {"name": "h", "namespace": space.name},
        "spec": {"url": "https://192.0.2.1/", "events": ["token.*"]},
    });
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-hook.json", space.name));
    std::fs::write(&path, hook.to_string()).expect("a file");
    site.kubectl(&["apply", "-f", &path.display().to_string()]);
    let _controller = tenant.controller(&[]).ready().await;
    let verifier = tenant.verifier().ready().await;
    // The API server may take a moment to enforce a policy.
    space.create("probe", json!({"scopes": ["a:b"], "suspend": true})).await;
    eventually("the policy", async || {
        let patch = json!({"metadata": {"finalizers": ["example.com/probe"]}});
        match space.patch("probe", patch).await.metadata.finalizers {
            None => Ok(()),
            finalizers => Err(format!("{finalizers:?}")),
        }
    })
    .await;
    let secret = space.active("t", json!({"scopes": ["a:b"]})).await;
    verifier.answers(&secret, "", 200).await;
    let token = space.reason("t", ConditionType::Stalled, "Contested").await;
    let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    assert!(message.contains("finalizer tokenward.dev/webhooks"), "{message}");
    assert!(testkit::has(&token, ConditionType::Active, "True"));
    space.delete("t").await;
    verifier.answers(&secret, "", 401).await;
}

pub async fn two_controllers_take_turns(site: &Site) {
    let tenant = Tenant::new(site, "turns").await;
    let space = &tenant.space;
    let start = |name: &str| tenant.controller(&["--lease-duration", "3s", "--identity", name]);
    let mut controllers = vec![start("one").ready().await, start("two").ready().await];
    let names: Vec<String> = (0..10).map(|i| format!("t{i}")).collect();
    for name in &names {
        space.create(name, json!({"scopes": ["a:b"], "rotation": {"trigger": "0"}})).await;
    }
    for (round, version) in [(1, 2), (2, 3)] {
        for name in &names {
            space.condition(name, ConditionType::Active, "True").await;
        }
        // The leader is killed in the first round, and releases the lease in the second.
        let at = eventually("one leader", async || {
            match (leads(&controllers[0]).await, leads(&controllers[1]).await) {
                (true, false) => Ok(0),
                (false, true) => Ok(1),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let mut leader = controllers.remove(at);
        for name in &names {
            let overlap = json!({"spec": {"rotation": {"trigger": round.to_string(), "overlap": "0s"}}});
            space.patch(name, overlap).await;
        }
        if round == 1 {
            leader.kill();
        } else {
            let (code, took) = leader.terminate();
            assert_eq!(code, Some(0), "{}", leader.log());
            assert!(leader.log().contains("released the lease"), "{took:?}: {}", leader.log());
        }
        for name in &names {
            space.version(name, version).await;
        }
        controllers.push(start(&format!("round-{round}")).ready().await);
    }
    // Each trigger rotated each token once, whichever replica led.
    for name in &names {
        let versions = space.get(name).await.status.expect("a status").versions;
        assert_eq!(versions.iter().map(|v| v.version).collect::<Vec<_>>(), [3, 2, 1], "{name}");
    }
}

pub async fn a_missing_pepper_stops_the_controller(site: &Site) {
    let tenant = Tenant::new(site, "pepper").await;
    let space = &tenant.space;
    let start = || tenant.controller(&["--identity", "one"]);
    let mut controller = start().ready().await;
    let verifier = tenant.verifier().ready().await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    verifier.answers(&token, "", 200).await;

    let peppers = tenant.peppers();
    let mut pepper = peppers.get("tokenward-pepper").await.expect("the pepper");
    peppers.delete("tokenward-pepper", &Default::default()).await.expect("a deletion");
    assert_eq!(controller.ended().await, Some(1));
    assert!(
        controller.log().contains("error: Secret tokenward-pepper was deleted. Restore it from a backup"),
        "{}",
        controller.log()
    );
    // The verifier goes on with the pepper that it has read.
    assert_eq!(verifier.check(&token, "").await, 200);

    let mut stopped = start();
    assert_eq!(stopped.ended().await, Some(1));
    let log = stopped.log();
    let words = format!(
        "Secret {}/tokenward-pepper is missing, but ApiToken {}/t carries a hash",
        tenant.namespace(),
        space.name
    );
    assert!(log.contains(&words) && log.contains("Restore the Secret from a backup"), "{log}");
    assert!(
        peppers.get_opt("tokenward-pepper").await.expect("an answer").is_none(),
        "none may be generated silently"
    );

    // As in a restore that has not come to the statuses yet.
    let status = space.get("t").await.status;
    space.patch_status("t", json!({"status": null})).await;
    let mut stopped = start();
    assert_eq!(stopped.ended().await, Some(1));
    let words = format!("is missing, but Secret {}/t carries a seal that was made with it", space.name);
    assert!(stopped.log().contains(&words), "{}", stopped.log());
    space.patch_status("t", json!({"status": status})).await;

    pepper.metadata = kube::api::ObjectMeta { name: pepper.metadata.name, ..Default::default() };
    let mut damaged = pepper.clone();
    damaged.data.as_mut().expect("data").insert("p1".to_owned(), ByteString(vec![0; 31]));
    peppers.create(&PostParams::default(), &damaged).await.expect("a Secret");
    let mut stopped = start();
    assert_eq!(stopped.ended().await, Some(1));
    assert!(stopped.log().contains("must hold exactly 32 bytes"), "{}", stopped.log());
    assert_eq!(verifier.check(&token, "").await, 200);

    peppers.replace("tokenward-pepper", &PostParams::default(), &pepper).await.expect("a Secret");
    let _controller = start().ready().await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "now"}}})).await;
    let new = space.version("t", 2).await;
    verifier.answers(&new, "", 200).await;
    verifier.answers(&token, "", 200).await;
}

/// As after a restore of an older backup of the Secret.
pub async fn a_pepper_that_is_gone_for_a_while_ends_no_token(site: &Site) {
    let tenant = Tenant::new(site, "pepper-gone").await;
    let space = &tenant.space;
    let _controller = tenant.controller(&[]).ready().await;
    let verifier = tenant.verifier().ready().await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    verifier.answers(&token, "", 200).await;

    let peppers = tenant.peppers();
    let replace = async |data: BTreeMap<String, ByteString>| {
        let mut secret = peppers.get("tokenward-pepper").await.expect("the pepper");
        secret.data = Some(data);
        peppers.replace("tokenward-pepper", &PostParams::default(), &secret).await.expect("a Secret");
    };
    let before = peppers.get("tokenward-pepper").await.expect("the pepper").data.expect("data");
    let other: BTreeMap<_, _> =
        Peppers::new_data(&[7; 32]).into_iter().map(|(key, value)| (key, ByteString(value))).collect();
    replace(other.clone()).await;
    verifier.answers(&token, "", 401).await;
    space.patch("t", json!({"metadata": {"labels": {"look": "again"}}})).await;
    let stalled = space.reason("t", ConditionType::Stalled, "PepperMissing").await;
    let (_, message) = condition(&stalled, ConditionType::Stalled).expect("Stalled");
    assert!(message.contains("restore that pepper from a backup"), "{message}");
    assert!(!testkit::has(&stalled, ConditionType::Active, "True"));
    // Others are minted under the pepper that there is, and a verifier that starts now knows only those.
    let other_token = space.active("u", json!({"scopes": ["a:b"]})).await;
    let late = tenant.verifier().ready().await;
    late.answers(&other_token, "", 200).await;
    assert_eq!(late.check(&token, "").await, 401);

    // With the former pepper beside it, everything works, and nothing was minted anew.
    replace(other.into_iter().chain(before).collect()).await;
    for verifier in [&verifier, &late] {
        verifier.answers(&token, "scope=a:b", 200).await;
        verifier.answers(&other_token, "scope=a:b", 200).await;
    }
    space.condition("t", ConditionType::Ready, "True").await;
    assert_eq!(space.secret_of("t").await, token);
}

pub async fn a_failing_api_server_is_tolerated(site: &Site) {
    let space = site.namespace("endure").await;
    let faults = Arc::new(AtomicU32::new(0));
    let kubeconfig = faulty(site, faults.clone()).await;
    let _controller = site.controller_as(&kubeconfig, &[]).ready().await;
    let verifier = site.verifier(&[]).ready().await;
    let names: Vec<String> = (0..5).map(|i| format!("t{i}")).collect();
    for name in &names {
        space.create(name, json!({"scopes": ["a:b"], "rotation": {"trigger": "0"}})).await;
    }
    for name in &names {
        let token = space.version(name, 1).await;
        verifier.answers(&token, "", 200).await;
    }
    for name in &names {
        space.patch(name, json!({"spec": {"rotation": {"trigger": "1"}}})).await;
    }
    for name in &names {
        let token = space.version(name, 2).await;
        verifier.answers(&token, "", 200).await;
        let versions = space.get(name).await.status.expect("a status").versions;
        let states: Vec<_> = versions.iter().map(|v| (v.version, v.state)).collect();
        assert_eq!(
            states,
            [(2, VersionState::Active), (1, VersionState::Retiring)],
            "{name}: a fault must not cost a version"
        );
    }
    assert!(faults.load(Ordering::Relaxed) > 20, "only {} faults", faults.load(Ordering::Relaxed));

    // Now the API server is down. Checks are answered from memory, and what ends by time still does.
    let serving = site.verifier(&["--max-staleness", "3s"]).ready().await;
    let denying = site.verifier(&["--max-staleness", "3s", "--stale-policy", "deny"]).ready().await;
    let lasting = space.secret_of("t0").await;
    let ending = space.secret_of("t1").await;
    let ends = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(10);
    space.patch("t1", json!({"spec": {"expiresAt": ends.to_string()}})).await;
    space.condition("t1", ConditionType::Ready, "True").await;
    site.cluster.stop_apiserver().expect("a stop");
    assert_eq!(verifier.check(&ending, "").await, 200);
    verifier.answers(&ending, "", 401).await;
    assert!(jiff::Timestamp::now() >= ends);
    // A stale snapshot is reported, and used or not as `--stale-policy` says.
    denying.answers(&lasting, "", 503).await;
    for stale in [&serving, &denying] {
        stale.waits_for("news from the API server").await;
        assert!(stale.metric("tokenward_watch_staleness_seconds").await > 3.0);
    }
    let denial = denying.ask(&lasting, "").await.text().await.expect("a body");
    assert!(denial.contains("--max-staleness"), "{denial}");
    for answering in [&verifier, &serving] {
        assert_eq!(answering.check(&lasting, "").await, 200);
    }
    site.cluster.start_apiserver().expect("a start");
    denying.answers(&lasting, "", 200).await;
    space.patch("t0", json!({"spec": {"revoked": true}})).await;
    verifier.answers(&lasting, "", 401).await;
    space.reason("t0", ConditionType::Revoked, "Enforced").await;
}

/// Where nothing changes, only bookmarks arrive: about one a minute, so this takes minutes.
pub async fn bookmarks_keep_a_quiet_watch_fresh(site: &Site) {
    let space = site.namespace("quiet").await;
    // It generates the pepper, and then has nothing to do.
    let _controller = site.controller(&[]).ready().await;
    let verifier = site.verifier(&["--watch-namespaces", &space.name]).ready().await;
    let (mut oldest, mut refreshes) = (0.0_f64, 0);
    for _ in 0..150 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let age = verifier.metric("tokenward_watch_staleness_seconds").await;
        refreshes += u32::from(age < oldest && oldest > 30.0);
        oldest = if age < oldest { age } else { oldest.max(age) };
        assert!(age < 100.0, "nothing was received for {age} s");
    }
    assert!(refreshes >= 1, "no bookmark was received");
    assert_eq!(verifier.log().matches("listed ApiTokens").count(), 1, "it was fresh only by another list");
}

/// A kubeconfig for a proxy to the API server that fails every other write of the controller, in turn by 500 before
/// the write, 500 after it, 429 and 409.
async fn faulty(site: &Site, faults: Arc<AtomicU32>) -> std::path::PathBuf {
    let own = site.rights_of("tokenward-controller");
    let client = client_of(&own).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let writes = Arc::new(AtomicU32::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (client, writes, faults) = (client.clone(), writes.clone(), faults.clone());
            let service =
                service_fn(move |request| relay(request, client.clone(), writes.clone(), faults.clone()));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    rewritten(&own, address)
}

async fn relay(
    request: Request<Incoming>,
    client: Client,
    writes: Arc<AtomicU32>,
    faults: Arc<AtomicU32>,
) -> Result<Response<Body>, Infallible> {
    let (mut head, body) = request.into_parts();
    head.headers.remove("authorization");
    head.headers.remove("host");
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let lease = head.uri.path().contains("/leases");
    let fault = match head.method {
        Method::POST | Method::PUT | Method::DELETE if !lease => {
            match writes.fetch_add(1, Ordering::Relaxed) % 7 {
                0 => Some((false, 500)),
                2 => Some((true, 500)),
                4 => Some((false, 429)),
                5 => Some((false, 409)),
                _ => None,
            }
        }
        _ => None,
    };
    let answer = match fault {
        Some((false, _)) => None,
        _ => Some(client.send(Request::from_parts(head, Body::from(body.to_vec()))).await),
    };
    if let Some((_, code)) = fault {
        faults.fetch_add(1, Ordering::Relaxed);
        let reason = if code == 409 { "Conflict" } else { "InternalError" };
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "a fault of the test"});
        let mut answer = Response::new(Body::from(status.to_string().into_bytes()));
        *answer.status_mut() = StatusCode::from_u16(code).expect("a status");
        answer.headers_mut().insert("content-type", "application/json".parse().expect("a value"));
        if code == 429 {
            answer.headers_mut().insert("retry-after", "1".parse().expect("a value"));
        }
        return Ok(answer);
    }
    Ok(answer.and_then(Result::ok).unwrap_or_else(|| {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::BAD_GATEWAY;
        answer
    }))
}

pub fn rewritten(kubeconfig: &std::path::Path, address: SocketAddr) -> std::path::PathBuf {
    let mut config = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    for cluster in &mut config.clusters {
        if let Some(cluster) = &mut cluster.cluster {
            cluster.server = Some(format!("http://{address}"));
        }
    }
    let path =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faulty-{}.json", address.port()));
    std::fs::write(&path, serde_json::to_vec(&config).expect("json")).expect("a kubeconfig");
    path
}

pub async fn a_namespace_is_deleted_with_its_tokens(site: &Site) {
    let tenant = Tenant::new(site, "goes").await;
    let space = &tenant.space;
    let controller = tenant.controller(&[]).ready().await;
    let verifier = tenant.verifier().ready().await;
    let mut tokens = Vec::new();
    for i in 0..30 {
        space.create(&format!("t{i}"), json!({"scopes": ["a:b"]})).await;
    }
    for i in 0..30 {
        space.condition(&format!("t{i}"), ConditionType::Active, "True").await;
        tokens.push(space.secret_of(&format!("t{i}")).await);
    }
    site.delete_namespace(space).await;
    for token in &tokens {
        verifier.answers(token, "", 401).await;
    }
    // The controller is not retrying anything.
    let failures = async || {
        controller
            .metrics()
            .await
            .lines()
            .filter(|l| l.contains("reconcile_failures"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = failures().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(before, failures().await);
}

/// The namespace controller takes the kinds in any order, after 5 s.
pub async fn nothing_is_minted_for_secrets_that_go_with_their_namespace(site: &Site) {
    const TOKENS: usize = 60;
    let tenant = Tenant::new(site, "secretsfirst").await;
    let space = &tenant.space;
    let controller = tenant.controller(&[]).ready().await;
    let names: Vec<String> = (0..TOKENS).map(|number| format!("t{number}")).collect();
    for name in &names {
        space.create(name, json!({"scopes": ["a:b"]})).await;
    }
    for name in &names {
        space.condition(name, ConditionType::Active, "True").await;
    }
    let writes = async || {
        controller.metric("tokenward_status_writes_total").await
            + controller.metric("tokenward_secret_writes_total").await
    };
    let before = writes().await;
    let namespaces: Api<Namespace> = Api::all(site.client.clone());
    namespaces.delete(&space.name, &Default::default()).await.expect("a deletion");
    space.secrets().delete_collection(&Default::default(), &Default::default()).await.expect("a deletion");
    site.delete_namespace(space).await;
    let writes = writes().await - before;
    assert!(writes < TOKENS as f64 / 6.0, "{writes} writes for {TOKENS} Secrets that nobody can make again");
    // A new namespace of the same name is another one.
    let namespace = serde_json::from_value(json!({"metadata": {"name": space.name}})).expect("a Namespace");
    namespaces.create(&Default::default(), &namespace).await.expect("a Namespace");
    space.create("t0", json!({"scopes": ["a:b"]})).await;
    space.condition("t0", ConditionType::Active, "True").await;
}

pub async fn a_forbidden_secret_is_reported(site: &Site) {
    let space = site.namespace("forbidden").await;
    let roles: Api<ClusterRole> = Api::all(site.client.clone());
    let role = roles.get("tokenward-controller").await.expect("the role");
    let controller = site.controller(&["--watch-namespaces", &space.name]).ready().await;
    let rules: Vec<_> = role.rules.clone().unwrap_or_default();
    let fewer: Vec<_> =
        rules.iter().filter(|r| r.resources.as_deref() != Some(&["secrets".to_owned()])).collect();
    assert!(fewer.len() < rules.len());
    // Reading the pepper stays allowed, by the right to that Secret alone.
    let pepper = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["tokenward-pepper"], "verbs": ["get", "list", "watch"]});
    let mut fewer: Vec<_> = fewer.into_iter().map(|r| serde_json::to_value(r).expect("json")).collect();
    fewer.push(pepper);
    let patch = |rules: serde_json::Value| {
        let roles = roles.clone();
        async move {
            roles
                .patch(
                    "tokenward-controller",
                    &PatchParams::default(),
                    &Patch::Merge(json!({"rules": rules})),
                )
                .await
                .expect("a patch");
        }
    };
    patch(json!(fewer)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    space.create("t", json!({"scopes": ["a:b"]})).await;
    let token = space.reason("t", ConditionType::Delivered, "Forbidden").await;
    let (_, message) = condition(&token, ConditionType::Stalled).expect("Stalled");
    assert!(message.contains("the API server denied") && message.contains("forbidden"), "{message}");
    patch(json!(rules)).await;
    let start = std::time::Instant::now();
    space.condition("t", ConditionType::Active, "True").await;
    assert!(start.elapsed() < TIMEOUT, "{}", controller.log());
    assert!(condition(&space.get("t").await, ConditionType::Stalled).is_none());

    // If the right is removed later, the next read of the Secret fails, which must not be reported as damage.
    let secret = space.secret_of("t").await;
    patch(json!(fewer)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let label = json!({"metadata": {"labels": {"theirs": "x"}}});
    space.secrets().patch("t", &PatchParams::default(), &Patch::Merge(label)).await.expect("a patch");
    let token = space.reason("t", ConditionType::Delivered, "Forbidden").await;
    assert_eq!(condition(&token, ConditionType::Stalled).expect("Stalled").0, "Forbidden");
    patch(json!(rules)).await;
    space.condition("t", ConditionType::Active, "True").await;
    assert_eq!(space.secret_of("t").await, secret);
    assert_eq!(space.get("t").await.status.expect("a status").versions.len(), 1);
}

/// As with a controller that is older than what is stored. It is told where users look, and ends with the mistake.
pub async fn an_unreadable_token_is_reported(site: &Site) {
    let tenant = Tenant::new(site, "unreadable").await;
    let _controller = tenant.controller(&[]).ready().await;
    let space = &tenant.space;
    space.active("t", json!({"scopes": ["a:b"], "displayName": "Orders"})).await;
    let anything = r#"[{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/displayName",
        "value": {"x-kubernetes-preserve-unknown-fields": true}}]"#;
    site.kubectl(&["patch", "crd", "apitokens.tokenward.dev", "--type=json", "-p", anything]);
    let name = |value: &str| {
        let patch = format!(r#"{{"spec": {{"displayName": {value}}}}}"#);
        site.try_kubectl(&["patch", "apitoken", "t", "-n", &space.name, "--type=merge", "-p", &patch])
    };
    eventually("the API server takes a number", async || match name("7") {
        (true, _) => Ok(()),
        (false, why) => Err(why),
    })
    .await;
    let conditions = eventually("the conditions say it", async || {
        let stored = site.kubectl(&["get", "apitoken", "t", "-n", &space.name, "-o", "json"]);
        let stored: serde_json::Value = serde_json::from_str(&stored).expect("JSON");
        let conditions = stored["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if stored["status"]["phase"] == "Failed" { Ok(conditions) } else { Err(stored["status"].to_string()) }
    })
    .await;
    for (type_, status) in [("Ready", "False"), ("Active", "False"), ("Stalled", "True")] {
        let condition = conditions.iter().find(|condition| condition["type"] == type_).expect(type_);
        assert_eq!((&condition["status"], &condition["reason"]), (&json!(status), &json!("Unreadable")));
    }
    let stalled = conditions.last().expect("a condition")["message"].as_str().expect("a message");
    assert!(stalled.contains("install the controller and the CRDs of one version"), "{stalled}");
    assert!(name(r#""Orders""#).0);
    space.condition("t", ConditionType::Active, "True").await;
    space.condition("t", ConditionType::Ready, "True").await;
}

/// As many of the largest ApiTokens as a tenant could once end the controller with, and every verifier that started.
pub async fn the_largest_tokens_fit_into_the_charts_memory(site: &Site) {
    const COUNT: usize = 500;
    let tenant = Tenant::new(site, "largest").await;
    // What the policies let through: 64 KiB of annotations, 16 KiB of labels. Revoked, since secrets are not what is measured.
    let labels: BTreeMap<_, _> = (0..140).map(|at| (format!("label-{at:050}"), "x".repeat(60))).collect();
    let scopes: Vec<_> = (0..64).map(|at| format!("{at:0>120}:read")).collect();
    let object = |n: usize| {
        serde_json::from_value(json!({
            "metadata": {"name": format!("t{n}"), "annotations": {"a": "x".repeat(65_535)}, "labels": labels},
            "spec": {"scopes": scopes, "revoked": true},
        }))
    };
    let tokens = tenant.space.tokens();
    let created = (0..COUNT).map(async |n| {
        let token = object(n).expect("an ApiToken");
        tokens.create(&PostParams::default(), &token).await.map(drop).map_err(|error| message(&error))
    });
    let created: Vec<_> = stream::iter(created).buffer_unordered(16).collect().await;
    assert!(created.iter().all(Result::is_ok), "{created:?}");
    // A debug build reads 50 MB, and tests beside it flood others.
    let controller = tenant.controller(&[]).ready_within(TIMEOUT * 3).await;
    tenant.space.condition(&format!("t{}", COUNT - 1), ConditionType::Revoked, "True").await;
    let verifier = tenant.verifier().ready_within(TIMEOUT * 3).await;
    for (role, process) in [("controller", &controller), ("verifier", &verifier)] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("a status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let peak: u64 = peak.expect("a peak").parse().expect("a number");
        assert!(peak < 512 * 1024, "the {role} needed {peak} KiB");
        eprintln!("the {role} needed {} MiB for {COUNT} of the largest ApiTokens", peak / 1024);
    }
}
