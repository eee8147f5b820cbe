//! What can go wrong between a transition and its delivery. Asserted on the receiver's log: no event is missing, and
//! one that came twice has the same id.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use tokenward_core::crd::ConditionType;

use super::receiver::{Answer, Delivery, Receiver};
use super::{Hooks, assert_sound};
use testkit::{Process, Site, TIMEOUT, eventually};

/// How many cases of the crash test run at once.
const CONCURRENT_CASES: usize = 4;

/// Kinds of cases, and the writes and requests at which the controller is killed.
const CRASHES: [(&str, &[&str]); 4] = [
    ("revoke", &["record", "record@2", "send", "write-webhook-status"]),
    ("create", &["add-finalizer", "announce", "deliver", "record", "send"]),
    ("delete", &["record", "send", "remove-finalizer"]),
    ("subscribe", &["sign", "write-webhook-status", "send"]),
];

pub async fn no_crash_loses_an_event(site: &Site) {
    let mut cases = Vec::new();
    for when in ["before", "after"] {
        for (what, points) in CRASHES {
            cases.extend(points.iter().map(|point| (what, format!("{when}:{point}"))));
        }
    }
    stream::iter(cases)
        .map(|(what, point)| crash(site, what, point))
        .buffer_unordered(CONCURRENT_CASES)
        .collect::<()>()
        .await;
}

async fn crash(site: &Site, what: &str, point: String) {
    let hooks = Hooks::new(site, &format!("hook-{what}")).await;
    let space = hooks.space();
    let receiver = Receiver::open().await;
    let mut controller = hooks.controller(&[]).await;
    hooks.hook("hook", &receiver).await;
    space.active("t", json!({"scopes": ["a:b"]})).await;
    receiver.until_received("t", &["token.created"]).await;
    hooks.settled().await;
    controller.kill();
    let mut doomed = hooks.controller_with(&[], &[("TOKENWARD_FAILPOINT", &point)]);
    match what {
        "revoke" => drop(space.patch("t", json!({"spec": {"revoked": true}})).await),
        "create" => drop(space.create("n", json!({"scopes": ["a:b"]})).await),
        "delete" => space.delete("t").await,
        _ => drop(hooks.create("second", json!({"url": receiver.url(), "events": ["*"]})).await),
    }
    assert_eq!(doomed.ended().await, None, "{what} {point}: not killed: {}", doomed.log());
    let _controller = hooks.controller(&[]).await;
    match what {
        "revoke" => receiver.until_received("t", &["token.created", "token.revoked"]).await,
        "create" => receiver.until_received("n", &["token.created"]).await,
        "delete" => {
            receiver.until_received("t", &["token.created", "token.deleted"]).await;
            until_gone(&hooks, "t").await;
        }
        _ => {
            hooks.reason("second", ConditionType::Ready, "Ready").await;
            let pings = |d: &super::receiver::Delivery| d.type_() == "webhook.ping" && d.status == 204;
            receiver
                .until("two pings", |log| {
                    let ids: std::collections::BTreeSet<_> =
                        log.iter().filter(|d| pings(d)).map(|d| &d.id).collect();
                    ids.len() == 2
                })
                .await;
        }
    }
    hooks.settled().await;
    if what != "subscribe" {
        assert_sound(&receiver, &hooks.key("hook").await);
    }
}

async fn until_gone(hooks: &Hooks<'_>, name: &str) {
    eventually(&format!("{name} gone"), async || {
        match hooks.space().tokens().get_opt(name).await.expect("an answer") {
            None => Ok(()),
            Some(token) => Err(format!("{:?} {:?}", token.metadata, token.status.and_then(|s| s.outbox))),
        }
    })
    .await;
}

/// Creates tokens `t0` to `t{n-1}`, and waits until they are active and their events delivered.
async fn tokens(hooks: &Hooks<'_>, receiver: &Receiver, n: usize) -> Vec<String> {
    let names: Vec<String> = (0..n).map(|i| format!("t{i}")).collect();
    for name in &names {
        hooks.space().create(name, json!({"scopes": ["a:b"]})).await;
    }
    for name in &names {
        hooks.space().condition(name, ConditionType::Active, "True").await;
        receiver.until_received(name, &["token.created"]).await;
    }
    names
}

async fn revoke(hooks: &Hooks<'_>, names: &[String]) {
    for name in names {
        hooks.space().patch(name, json!({"spec": {"revoked": true}})).await;
    }
}

/// Fails the first attempt of each event. Failing every second request could hit the same event each time.
fn fails_first_attempts() -> impl Fn(&Delivery, usize) -> Answer + Send + Sync + 'static {
    let seen = Mutex::new(HashSet::new());
    move |delivery, _| {
        let is_first = seen.lock().expect("a lock").insert(delivery.id.clone());
        Answer::Status(if is_first { 500 } else { 200 })
    }
}

pub async fn a_new_leader_continues_deliveries(site: &Site) {
    let hooks = Hooks::new(site, "hook-leader").await;
    let receiver = Receiver::open().await;
    let args = |name| ["--lease-duration", "3s", "--webhook-time-scale", "600", "--identity", name];
    let start = async |name| {
        hooks.tenant.controller_with(&[&super::LOOPBACK, &args(name)[..]].concat(), &[]).ready().await
    };
    let mut one = start("one").await;
    hooks.hook("hook", &receiver).await;
    let names = tokens(&hooks, &receiver, 20).await;
    let _two = start("two").await;
    // Every second request fails, and every third gets no response.
    receiver.behave(|_, n| match n % 6 {
        0 | 2 | 4 => Answer::Status(500),
        3 => Answer::Hang,
        _ => Answer::Status(204),
    });
    let count = receiver.accepted().len();
    revoke(&hooks, &names).await;
    receiver.until("some accepted", |_| receiver.accepted().len() > count + 3).await;
    one.kill();
    receiver.behave(fails_first_attempts());
    for name in &names {
        receiver.until_received(name, &["token.created", "token.revoked"]).await;
    }
    hooks.settled().await;
    assert_sound(&receiver, &hooks.key("hook").await);
}

/// By the time scale, an hour is six seconds here.
pub async fn an_endpoint_away_for_an_hour_misses_nothing(site: &Site) {
    let hooks = Hooks::new(site, "hook-hour").await;
    let receiver = Receiver::open().await;
    let _controller = hooks.controller(&["--webhook-time-scale", "600"]).await;
    hooks.hook("hook", &receiver).await;
    let names = tokens(&hooks, &receiver, 10).await;
    receiver.close().await;
    for (suspend, reason) in [(true, "Suspended"), (false, "Active")] {
        for name in &names {
            hooks.space().patch(name, json!({"spec": {"suspend": suspend}})).await;
        }
        for name in &names {
            hooks.space().reason(name, ConditionType::Active, reason).await;
        }
    }
    revoke(&hooks, &names).await;
    hooks.reason("hook", ConditionType::Healthy, "ConnectionFailed").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    receiver.reopen().await;
    for name in &names {
        let expected = ["token.created", "token.suspended", "token.resumed", "token.revoked"];
        receiver.until_received(name, &expected).await;
    }
    hooks.reason("hook", ConditionType::Healthy, "Delivering").await;
    hooks.settled().await;
    assert_sound(&receiver, &hooks.key("hook").await);
}

/// One endpoint hangs, one fails half of the time: neither delays the third, or its own other tokens.
pub async fn a_bad_endpoint_delays_no_other(site: &Site) {
    let hooks = Hooks::new(site, "hook-bad").await;
    let [good, hanging, failing] = [Receiver::open().await, Receiver::open().await, Receiver::open().await];
    let _controller = hooks.controller(&["--webhook-time-scale", "600"]).await;
    for (name, receiver) in [("good", &good), ("hanging", &hanging), ("failing", &failing)] {
        hooks.hook(name, receiver).await;
    }
    let names = tokens(&hooks, &good, 30).await;
    for name in &names {
        failing.until_received(name, &["token.created"]).await;
        hanging.until_received(name, &["token.created"]).await;
    }
    hooks.settled().await;
    hanging.behave(|_, _| Answer::Hang);
    failing.behave(fails_first_attempts());
    for name in &names {
        hooks.space().patch(name, json!({"spec": {"suspend": true}})).await;
        hooks.space().patch(name, json!({"spec": {"revoked": true}})).await;
    }
    for receiver in [&good, &failing] {
        for name in &names {
            // If the controller sees the suspension and the revocation at once, there is no event of the former.
            let last = format!("token.revoked of {name}");
            receiver
                .until(&last, |_| receiver.received(name).last().is_some_and(|t| t == "token.revoked"))
                .await;
        }
    }
    for (name, receiver) in [("good", &good), ("failing", &failing)] {
        assert_sound(receiver, &hooks.key(name).await);
    }
    for name in &names {
        assert_eq!(good.received(name), failing.received(name), "{name}: the order differs");
    }
    hooks.reason("hanging", ConditionType::Healthy, "Timeout").await;
    // Of what the others have accepted, only the hanging one is still pending.
    let waiting = |token: &tokenward_core::crd::ApiToken| {
        let outbox = token.status.as_ref().and_then(|status| status.outbox.clone()).unwrap_or_default();
        outbox.events.iter().all(|event| event.webhooks == ["hanging"]) && !outbox.events.is_empty()
    };
    for name in &names {
        hooks.space().until(name, "an outbox for the hanging one alone", waiting).await;
    }
    // Events for a deleted TokenWebhook are dropped.
    hooks.api().delete("hanging", &DeleteParams::default()).await.expect("a deletion");
    hooks.settled().await;
}

pub async fn events_outlive_a_deleted_token(site: &Site) {
    let hooks = Hooks::new(site, "hook-deleted").await;
    let receiver = Receiver::open().await;
    let mut controller = hooks.controller(&["--webhook-time-scale", "20"]).await;
    hooks.hook("hook", &receiver).await;
    let names = tokens(&hooks, &receiver, 3).await;
    hooks.settled().await;
    receiver.answer(500);
    revoke(&hooks, &names[..2]).await;
    for name in &names[..2] {
        receiver.until("an attempt", |log| log.iter().any(|d| d.token() == *name && d.status == 500)).await;
    }
    for name in &names {
        hooks.space().delete(name).await;
    }
    let start = Instant::now();
    for name in &names {
        until_gone(&hooks, name).await;
    }
    assert!(start.elapsed() < TIMEOUT);
    let stored = hooks.until("hook", "five events in the outbox", |w| {
        w.status.as_ref().is_some_and(|s| s.outbox.len() == 5)
    });
    drop(stored.await);
    assert!(
        !controller.log().contains("dropped fields"),
        "all that was written is stored: {}",
        controller.log()
    );
    // They survive the controller too.
    controller.kill();
    receiver.answer(200);
    let _controller = hooks.controller(&["--webhook-time-scale", "20"]).await;
    for name in &names[..2] {
        receiver.until_received(name, &["token.created", "token.revoked", "token.deleted"]).await;
    }
    receiver.until_received(&names[2], &["token.created", "token.deleted"]).await;
    hooks.until("hook", "an empty outbox", |w| w.status.as_ref().is_some_and(|s| s.outbox.is_empty())).await;
}

/// As after an upgrade of the controller without that of its CRDs.
pub async fn a_crd_that_lacks_the_outbox_loses_no_event(site: &Site) {
    let hooks = Hooks::new(site, "hook-dropped").await;
    let receiver = Receiver::open().await;
    let controller = hooks.controller(&["--webhook-time-scale", "20"]).await;
    hooks.hook("hook", &receiver).await;
    let names = tokens(&hooks, &receiver, 1).await;
    hooks.settled().await;
    receiver.answer(500);
    let outbox = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/outbox";
    let crd = ["get", "crd", "tokenwebhooks.tokenward.dev", "-o", "json"];
    let before: serde_json::Value = serde_json::from_str(&site.kubectl(&crd)).expect("JSON");
    let schema = before.pointer(outbox).expect("an outbox").clone();
    let change = |operation: serde_json::Value| {
        let patch = json!([operation]).to_string();
        site.kubectl(&["patch", "crd", "tokenwebhooks.tokenward.dev", "--type=json", "-p", &patch]);
    };
    change(json!({"op": "remove", "path": outbox}));
    // The API server may take a moment to forget the field.
    eventually("a CRD without it", async || {
        let event = json!({"id": "evt_0", "type": "ping", "time": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:00:00Z"});
        let probe = Patch::Merge(json!({"status": {"outbox": [event]}}));
        let params = PatchParams { dry_run: true, ..Default::default() };
        match hooks.api().patch_status("hook", &params, &probe).await {
            Ok(written) if written.status.as_ref().is_none_or(|status| status.outbox.is_empty()) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    hooks.space().delete(&names[0]).await;
    eventually("a message", async || {
        let log = controller.log();
        let told = log.contains("the API server dropped fields of the status");
        if told { Ok(()) } else { Err(log) }
    })
    .await;
    let token = hooks.space().get(&names[0]).await;
    assert!(
        token.metadata.finalizers.is_some_and(|all| !all.is_empty()),
        "its events are stored nowhere else"
    );
    change(json!({"op": "add", "path": outbox, "value": schema}));
    until_gone(&hooks, &names[0]).await;
    receiver.answer(200);
    receiver.until_received(&names[0], &["token.created", "token.deleted"]).await;
}

pub async fn a_hanging_endpoint_does_not_block_the_deletion_of_a_namespace(site: &Site) {
    let hooks = Hooks::new(site, "hook-namespace").await;
    let receiver = Receiver::open().await;
    let _controller = hooks.controller(&[]).await;
    hooks.hook("hook", &receiver).await;
    let names = tokens(&hooks, &receiver, 10).await;
    receiver.behave(|_, _| Answer::Hang);
    revoke(&hooks, &names).await;
    receiver.until("an attempt", |log| log.iter().any(|d| d.status == 0)).await;
    site.delete_namespace(hooks.space()).await;
}

pub async fn dead_letters_are_counted_and_can_be_replayed(site: &Site) {
    let hooks = Hooks::new(site, "hook-dead").await;
    let receiver = Receiver::open().await;
    let controller = hooks.controller(&["--webhook-time-scale", "600"]).await;
    let delivery = json!({"maxAge": "1h"});
    hooks.create("hook", json!({"url": receiver.url(), "events": ["token.*"], "delivery": delivery})).await;
    hooks.reason("hook", ConditionType::Ready, "Ready").await;
    let names = tokens(&hooks, &receiver, 3).await;
    receiver.answer(500);
    revoke(&hooks, &names).await;
    let dead = hooks
        .until("hook", "three dead", |w| w.status.as_ref().and_then(|s| s.dead_lettered) == Some(3))
        .await;
    let letters = dead.status.expect("a status").dead_letters;
    assert_eq!(letters.len(), 3);
    assert!(
        letters
            .iter()
            .all(|l| l.cause == "ServerError" && l.attempts > 1 && l.event.type_ == "token.revoked"),
        "{letters:?}"
    );
    hooks.settled().await;
    // One Event for each write of the status, of which each says how many are new.
    let log = controller.log();
    let counts =
        log.lines().filter_map(|line| line.split(r#""message":""#).nth(1)?.split_once(" dead-lettered;"));
    let counts =
        counts.map(|(count, _)| count.split(' ').next().expect("a word").parse::<u32>().expect("a count"));
    assert_eq!(counts.sum::<u32>(), 3, "{log}");
    receiver.answer(200);
    hooks.annotate("hook", "tokenward.dev/replay", "2026-11-21").await;
    for name in &names {
        receiver.until_received(name, &["token.created", "token.revoked"]).await;
    }
    hooks
        .until("hook", "none dead", |w| {
            w.status.as_ref().is_some_and(|s| {
                s.dead_lettered == Some(0) && s.dead_letters.is_empty() && s.outbox.is_empty()
            })
        })
        .await;
    assert_sound(&receiver, &hooks.key("hook").await);
}

pub async fn paused_events_are_dead_lettered_at_max_age(site: &Site) {
    let hooks = Hooks::new(site, "hook-held-back").await;
    let receiver = Receiver::open().await;
    // By the time scale, the default of 75 h is 450 s here, and an hour is 6 s.
    let _controller = hooks.controller(&["--webhook-time-scale", "600"]).await;
    hooks.hook("hook", &receiver).await;
    let names = tokens(&hooks, &receiver, 3).await;
    hooks.patch("hook", json!({"spec": {"suspend": true}})).await;
    hooks.reason("hook", ConditionType::Ready, "Suspended").await;
    revoke(&hooks, &names).await;
    hooks.until("hook", "three pending", |w| w.status.as_ref().and_then(|s| s.pending) == Some(3)).await;
    let count = receiver.log().len();
    hooks.patch("hook", json!({"spec": {"delivery": {"maxAge": "1h"}}})).await;
    let dead = hooks
        .until("hook", "three dead", |w| w.status.as_ref().and_then(|s| s.dead_lettered) == Some(3))
        .await;
    let letters = dead.status.expect("a status").dead_letters;
    assert!(letters.iter().all(|l| l.cause == "Suspended" && l.attempts == 0), "{letters:?}");
    hooks.settled().await;
    assert_eq!(receiver.log().len(), count, "a suspended TokenWebhook was sent to");
}

pub async fn a_full_outbox_is_reported(site: &Site) {
    let hooks = Hooks::new(site, "hook-full").await;
    let receiver = Receiver::open().await;
    let _controller = hooks.controller(&[]).await;
    hooks.hook("hook", &receiver).await;
    let names = tokens(&hooks, &receiver, 1).await;
    let name = &names[0];
    receiver.answer(500);
    for _ in 0..18 {
        for (suspend, reason) in [(true, "Suspended"), (false, "Active")] {
            hooks.space().patch(name, json!({"spec": {"suspend": suspend}})).await;
            hooks.space().reason(name, ConditionType::Active, reason).await;
        }
    }
    let status = hooks.space().get(name).await.status.expect("a status");
    let outbox = status.outbox.expect("an outbox");
    assert_eq!((outbox.events.len(), outbox.lost.get("hook")), (32, Some(&4)));
    hooks.space().has_events(name, &["EventLost"]).await;
    hooks.until("hook", "the loss", |w| w.status.as_ref().and_then(|s| s.lost) == Some(4)).await;
}

pub async fn configuration_errors_are_reported_until_they_are_fixed(site: &Site) {
    let hooks = Hooks::new(site, "hook-wrong").await;
    let space = hooks.space();
    let receiver = Receiver::open().await;
    let controller = hooks.controller(&[]).await;
    let refused = [
        (json!({"url": "ftp://x.example/", "events": ["*"]}), "absolute http or https URL"),
        (json!({"url": "http://u:p@x.example/", "events": ["*"]}), "without user name or password"),
        (json!({"url": "hunter2!", "events": ["*"]}), "url"),
        (json!({"events": ["*"]}), "exactly one of url and urlFrom"),
        (
            json!({"url": "http://x.example/", "events": ["token.revokd"]}),
            r#"supported values: "*", "token.*", "webhook.*", "token.created""#,
        ),
        (json!({"url": "http://x.example/", "events": ["tokens.*"]}), r#"Unsupported value: "tokens.*""#),
        (json!({"url": "http://x.example/", "events": []}), "events"),
    ];
    for (spec, words) in refused {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let object = json!({"apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenWebhook", "metadata": {"name": "bad"}, "spec": spec});
        std::fs::write(file.path(), object.to_string()).expect("a file");
        let (ok, said) =
            site.try_kubectl(&["apply", "-n", &space.name, "-f", &file.path().display().to_string()]);
        assert!(!ok && said.contains(words), "{object}: {said}");
    }
    // Only in front of the host is an @ the end of a user name.
    let path = json!({"url": "http://x.example/@team?to=a@b#@", "events": ["*"], "suspend": true});
    hooks.create("at", path).await;
    let secret = |url: &str, key: &str| {
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs"},
            "stringData": {"url": url, "key": key},
        });
        let secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(object).expect("a Secret");
        let api = space.secrets();
        async move {
            if api.get_opt("theirs").await.expect("an answer").is_some() {
                api.delete("theirs", &DeleteParams::default()).await.expect("a deletion");
            }
            api.create(&Default::default(), &secret).await.expect("a Secret");
        }
    };
    let reference = |key: &str| json!({"name": "theirs", "key": key});
    hooks
        .create(
            "hook",
            json!({
                "urlFrom": {"secretKeyRef": reference("url")}, "events": ["*"],
                "signing": {"secretRef": reference("key")},
            }),
        )
        .await;
    let ready = async |reason: &str| hooks.reason("hook", ConditionType::Ready, reason).await;
    assert!(ready("SecretMissing").await.contains("Secret theirs does not exist"));
    secret("hunter2", "hunter2").await;
    assert!(ready("InvalidUrl").await.contains("absolute http or https"));
    secret(&receiver.url(), "hunter2").await;
    assert!(ready("SigningKeyInvalid").await.contains("whsec_"));
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    secret(&receiver.url(), key).await;
    ready("Ready").await;
    receiver.until("a ping", |log| !log.is_empty()).await;
    assert_sound(&receiver, key);
    let visible =
        controller.log() + &site.kubectl(&["get", "tokenwebhooks,events", "-n", &space.name, "-o", "yaml"]);
    for secret in ["hunter2", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &receiver.url()] {
        assert!(!visible.contains(secret), "{secret} is visible");
    }
}

pub async fn internal_addresses_get_no_request(site: &Site) {
    let hooks = Hooks::new(site, "hook-inside").await;
    let receiver = Receiver::open().await;
    let _controller = hooks.tenant.controller(&["--webhook-allow-private"]).ready().await;
    let port = receiver.address.port();
    for (name, host) in [
        ("plain", "127.0.0.1"),
        ("name", "localhost"),
        ("mapped", "[::ffff:127.0.0.1]"),
        ("link", "169.254.169.254"),
    ] {
        let url = format!("http://{host}:{port}/");
        hooks.create(name, json!({"url": url, "events": ["*"]})).await;
    }
    for name in ["plain", "name", "mapped", "link"] {
        let advice = hooks.reason(name, ConditionType::Healthy, "AddressNotAllowed").await;
        assert!(advice.contains("--webhook-allow-cidrs"), "{advice}");
    }
    assert!(receiver.log().is_empty());
}

pub async fn a_hundred_webhooks_receive_every_event(site: &Site) {
    let hooks = Hooks::new(site, "hook-hundred").await;
    let receiver = Receiver::open().await;
    let _controller = hooks.controller(&[]).await;
    let paths: Vec<String> = (0..100).map(|n| format!("/h{n}")).collect();
    for (n, path) in paths.iter().enumerate() {
        let url = format!("http://{}{path}", receiver.address);
        hooks.create(&format!("h{n}"), json!({"url": url, "events": ["token.revoked"]})).await;
    }
    for n in 0..100 {
        hooks.reason(&format!("h{n}"), ConditionType::Ready, "Ready").await;
    }
    for name in ["a", "b", "c"] {
        hooks.space().active(name, json!({"scopes": ["a:b"]})).await;
        hooks.space().patch(name, json!({"spec": {"revoked": true}})).await;
    }
    receiver
        .until("each path received each token", |log| {
            paths.iter().all(|path| {
                ["a", "b", "c"].iter().all(|name| log.iter().any(|d| d.path == *path && d.token() == *name))
            })
        })
        .await;
    hooks.settled().await;
}

/// Takes minutes: the API server is down for one, with events pending and transitions due.
pub async fn an_api_server_outage_of_a_minute_loses_nothing(site: &Site) {
    let hooks = Hooks::new(site, "hook-away").await;
    let receiver = Receiver::open().await;
    let controller: Process = hooks.controller(&["--webhook-time-scale", "20"]).await;
    hooks.hook("hook", &receiver).await;
    let names = tokens(&hooks, &receiver, 10).await;
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(20);
    hooks.space().patch("t9", json!({"spec": {"expiresAt": expires.to_string()}})).await;
    receiver
        .until("token.expiring", |log| log.iter().any(|d| d.type_() == "token.expiring" && d.status == 204))
        .await;
    receiver.answer(500);
    revoke(&hooks, &names[..9]).await;
    receiver.until("attempts", |log| log.iter().filter(|d| d.status == 500).count() >= 9).await;
    site.cluster.stop_apiserver().expect("a stop");
    receiver.answer(200);
    tokio::time::sleep(Duration::from_secs(60)).await;
    site.cluster.start_apiserver().expect("a start");
    for name in &names[..9] {
        receiver.until_received(name, &["token.created", "token.revoked"]).await;
    }
    receiver.until_received("t9", &["token.created", "token.expiring", "token.expired"]).await;
    hooks.settled().await;
    assert_sound(&receiver, &hooks.key("hook").await);
    drop(controller);
}
