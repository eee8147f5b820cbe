//! A caller that has written something asks a verifier to decide by nothing older.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use futures::StreamExt;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokenward_core::crd::ConditionType;
use tokio::sync::watch;

use crate::faults::rewritten;
use crate::{Shared, lock};
use testkit::{Process, Site, client, client_of, eventually};

/// How long a verifier waits for what a request asks for, by the documentation.
const WAIT: Duration = Duration::from_millis(250);

/// Asks a verifier; returns the status, the body, and how long it took.
async fn post(verifier: &Process, caller: &str, path: &str, body: String) -> (u16, Value, Duration) {
    let is_form = path == "/oauth2/introspect";
    let media_type = if is_form { "application/x-www-form-urlencoded" } else { "application/json" };
    let request = client().post(format!("http://{}{path}", verifier.listen)).bearer_auth(caller);
    let began = Instant::now();
    let response = request.header("content-type", media_type).body(body).send().await.expect("an answer");
    let status = response.status().as_u16();
    assert_eq!(response.headers().contains_key("retry-after"), status == 503);
    let body = serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON");
    (status, body, began.elapsed())
}

/// Asks until the verifier knows what is asked for; returns its first decision.
async fn decided(verifier: &Process, caller: &str, body: &Value) -> Value {
    eventually("decision", async || match post(verifier, caller, "/v1/verify", body.to_string()).await {
        (200, decision, _) => Ok(decision),
        (_, denial, _) => Err(denial.to_string()),
    })
    .await
}

pub async fn a_caller_reads_its_own_revocation(shared: &Shared) {
    let space = shared.site.namespace("atleast").await;
    let (gate, is_open) = watch::channel(true);
    let kubeconfig = behind_gate(&shared.site, is_open).await;
    let ports = ["--telemetry-listen", "--listen"];
    let verifier = Process::start("verifier", &kubeconfig, &ports, &["--plain-http"], &[]).ready().await;
    let caller = json!({"scopes": ["tokens:verify"], "audiences": ["tokenward"]});
    let caller = space.active("caller", caller).await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    let locked = space.active("locked", json!({"scopes": ["a:b"]})).await;
    for (secret, query) in [(&caller, "audience=tokenward"), (&token, ""), (&locked, "")] {
        verifier.answers(secret, query, 200).await;
    }
    let verify = async |body: Value| post(&verifier, &caller, "/v1/verify", body.to_string()).await;
    let revision = |version: Option<String>| version.expect("a resourceVersion");

    // What arrives in time is waited for. On a busy machine it may come too late, so there are some attempts.
    let mut is_answered = false;
    for attempt in 0..20 {
        gate.send_replace(false);
        let written = space.patch("t", json!({"spec": {"displayName": format!("{attempt}")}})).await;
        let at_least = json!({"apiTokens": revision(written.metadata.resource_version)});
        let opened = async {
            tokio::time::sleep(WAIT / 4).await;
            gate.send_replace(true);
        };
        let (answer, ()) = tokio::join!(verify(json!({"token": token, "atLeast": at_least})), opened);
        let (status, body, took) = answer;
        assert!(took >= WAIT / 5, "{body} came before the watch could bring it");
        if status == 200 {
            assert_eq!(body["valid"], true, "{body}");
            is_answered = true;
            break;
        }
        assert_eq!(status, 503, "{body}");
    }
    assert!(is_answered, "no attempt was answered in time");

    // What does not arrive is no decision, while whoever does not ask gets one that is out of date.
    gate.send_replace(false);
    let revoked = space.patch("t", json!({"spec": {"revoked": true}})).await;
    let version = revision(revoked.metadata.resource_version);
    let asking = json!({"token": token, "atLeast": {"apiTokens": version}});
    let introspection = format!("token={token}&at_least_apitokens={version}");
    let batch = json!({"checks": [{"token": locked}], "atLeast": {"apiTokens": version}});
    let requests = [
        ("/v1/verify", asking.to_string()),
        ("/v1/verify:batch", batch.to_string()),
        ("/oauth2/introspect", introspection.clone()),
    ];
    for (path, body) in requests {
        let (status, denial, took) = post(&verifier, &caller, path, body).await;
        assert_eq!(
            (status, &denial["error"]),
            (503, &json!("resource_version_too_large")),
            "{path} {denial}"
        );
        assert!(
            denial.to_string().contains(&format!("ApiTokens up to resourceVersion {version}")),
            "{denial}"
        );
        assert!(took >= WAIT, "{path}: {took:?}");
    }
    let (status, body, _) = verify(json!({"token": token})).await;
    assert_eq!((status, &body["valid"]), (200, &json!(true)), "the watch is held back");

    // Another kind has a watch of its own, which is not held back.
    lock::create(&space, "l", json!({"match": {"names": ["locked"]}, "action": "Suspend"})).await;
    let lock = revision(lock::locks(&space).get("l").await.expect("a lock").metadata.resource_version);
    let locked = json!({"token": locked, "atLeast": {"tokenLocks": lock}});
    assert_eq!(decided(&verifier, &caller, &locked).await, json!({"valid": false, "code": "SUSPENDED"}));

    gate.send_replace(true);
    assert_eq!(decided(&verifier, &caller, &asking).await, json!({"valid": false, "code": "REVOKED"}));
    let (_, body, _) = post(&verifier, &caller, "/oauth2/introspect", introspection).await;
    assert_eq!(body, json!({"active": false}));
    lock::delete(&space, "l").await;
}

/// The ApiTokens of one namespace may not change for a long time, so their watch says nothing about what was written in another.
pub async fn of_several_namespaces_the_tokens_own_counts(shared: &Shared) {
    let (quiet, space) =
        (shared.site.namespace("atleast-quiet").await, shared.site.namespace("atleast").await);
    quiet.active("t", json!({"scopes": ["a:b"]})).await;
    quiet.condition("t", ConditionType::Ready, "True").await;
    let caller = json!({"scopes": ["tokens:verify"], "audiences": ["tokenward"]});
    let caller = space.active("caller", caller).await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    let namespaces = format!("{},{}", quiet.name, space.name);
    let verifier = shared.site.verifier(&["--watch-namespaces", &namespaces]).ready().await;
    verifier.answers(&token, "", 200).await;
    let revoked = space.patch("t", json!({"spec": {"revoked": true}})).await;
    let version = revoked.metadata.resource_version.expect("a resourceVersion");
    let verify = async |body: Value| post(&verifier, &caller, "/v1/verify", body.to_string()).await;
    let asking = json!({"token": token, "atLeast": {"apiTokens": version}});
    assert_eq!(decided(&verifier, &caller, &asking).await, json!({"valid": false, "code": "REVOKED"}));
    let (status, body, _) = verify(json!({"token": "unknown", "atLeast": {"apiTokens": version}})).await;
    assert_eq!(status, 503, "an unknown token may be of the quiet namespace: {body}");
    let (status, body, _) = verify(json!({"token": token, "atLeast": {"clusterTokenLocks": "1"}})).await;
    assert_eq!(status, 400, "{body}");
    assert!(body["message"].as_str().is_some_and(|text| text.contains("--watch-namespaces")), "{body}");
}

/// A kubeconfig for a proxy to the API server, with the verifier's rights, that holds back what watches of ApiTokens bring
/// until the gate is open.
pub async fn behind_gate(site: &Site, is_open: watch::Receiver<bool>) -> std::path::PathBuf {
    let own = site.rights_of("tokenward-verifier");
    let client = client_of(&own).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (client, is_open) = (client.clone(), is_open.clone());
            let service = service_fn(move |request| relay(request, client.clone(), is_open.clone()));
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
    is_open: watch::Receiver<bool>,
) -> Result<Response<UnsyncBoxBody<Bytes, kube::Error>>, Infallible> {
    let (mut head, body) = request.into_parts();
    head.headers.remove("authorization");
    head.headers.remove("host");
    let is_watch = head.uri.query().is_some_and(|query| query.contains("watch=true"));
    let is_held = is_watch && head.uri.path().ends_with("/apitokens");
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let answer = client.send(Request::from_parts(head, Body::from(body.to_vec()))).await.expect("an answer");
    if !is_held {
        return Ok(answer.map(BodyExt::boxed_unsync));
    }
    Ok(answer.map(|body| {
        let frames = BodyStream::new(body).then(move |frame| {
            let mut is_open = is_open.clone();
            async move {
                // It fails once the test is over.
                let _ = is_open.wait_for(|open| *open).await;
                frame
            }
        });
        StreamBody::new(frames).boxed_unsync()
    }))
}
