//! TokenWebhooks on a real API server, with receivers on loopback.

pub mod faults;
pub mod receiver;

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokenward_core::crd::{ConditionType, TokenWebhook, find_condition};

use receiver::{Answer, Receiver};
use testkit::{Process, Site, Space, Tenant, data, eventually};

/// The flags that permit receivers on loopback.
pub const LOOPBACK: [&str; 2] = ["--webhook-allow-cidrs", "127.0.0.0/8"];

/// A namespace with a controller and TokenWebhooks.
pub struct Hooks<'s> {
    pub tenant: Tenant<'s>,
}

impl<'s> Hooks<'s> {
    pub async fn new(site: &'s Site, name: &str) -> Self {
        Self { tenant: Tenant::new(site, name).await }
    }

    pub fn space(&self) -> &Space {
        &self.tenant.space
    }

    pub fn api(&self) -> Api<TokenWebhook> {
        Api::namespaced(self.space().client.clone(), &self.space().name)
    }

    /// Starts a controller and waits until it is ready. All have one identity, so a successor has the lease at once.
    pub async fn controller(&self, args: &[&str]) -> Process {
        self.controller_with(args, &[]).ready().await
    }

    pub fn controller_with(&self, args: &[&str], env: &[(&str, &str)]) -> Process {
        self.tenant.controller_with(&[&LOOPBACK, &["--identity", "one"], args].concat(), env)
    }

    pub async fn create(&self, name: &str, spec: Value) -> TokenWebhook {
        let object = json!({"apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenWebhook", "metadata": {"name": name}, "spec": spec});
        let object = serde_json::from_value(object).expect("a TokenWebhook");
        self.api().create(&Default::default(), &object).await.expect("a TokenWebhook")
    }

    /// Creates a TokenWebhook for all events to a receiver, and waits until it is in effect.
    pub async fn hook(&self, name: &str, receiver: &Receiver) {
        self.create(name, json!({"url": receiver.url(), "events": ["*"]})).await;
        self.reason(name, ConditionType::Ready, "Ready").await;
    }

    pub async fn patch(&self, name: &str, patch: Value) {
        self.api().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("a patch");
    }

    pub async fn annotate(&self, name: &str, key: &str, value: &str) {
        self.patch(name, json!({"metadata": {"annotations": {key: value}}})).await;
    }

    pub async fn until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&TokenWebhook) -> bool,
    ) -> TokenWebhook {
        eventually(&format!("{what} of {name}"), async || match self.api().get(name).await {
            Ok(webhook) if wanted(&webhook) => Ok(webhook),
            Ok(webhook) => Err(serde_json::to_string_pretty(&webhook.status).unwrap_or_default()),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Waits until a condition has this reason; returns its message.
    pub async fn reason(&self, name: &str, type_: ConditionType, reason: &str) -> String {
        let of = |webhook: &TokenWebhook| {
            let status = webhook.status.as_ref()?;
            let current = status.observed_generation == webhook.metadata.generation;
            find_condition(&status.conditions, type_).filter(|c| current && c.reason == reason).cloned()
        };
        let what = format!("{} with reason {reason}", type_.as_str());
        let webhook = self.until(name, &what, |webhook| of(webhook).is_some()).await;
        of(&webhook).expect("the condition").message
    }

    pub async fn key(&self, name: &str) -> String {
        let secret = self.space().secrets().get(&format!("{name}-signing")).await.expect("a Secret");
        data(&secret, "signing-key").expect("a key")
    }

    /// Waits until the outboxes of all tokens are empty.
    pub async fn settled(&self) {
        eventually("empty outboxes", async || {
            let tokens = self.space().tokens().list(&Default::default()).await.expect("tokens");
            let outbox = |token: &tokenward_core::crd::ApiToken| token.status.clone().and_then(|s| s.outbox);
            let waiting: Vec<_> = tokens.items.iter().filter_map(outbox).collect();
            if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
    }
}

/// Asserts that each event has one id, even if it was sent twice, and that every request verifies.
pub fn assert_sound(receiver: &Receiver, key: &str) {
    let mut events = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for delivery in receiver.log() {
        assert!(delivery.signatures.contains(&delivery.sign(key)), "{delivery:?} does not verify");
        let json = delivery.json();
        events.insert(json.to_string());
        ids.insert(delivery.id);
    }
    assert_eq!(events.len(), ids.len(), "an event had two ids, or an id two events: {ids:?} {events:?}");
}

pub async fn events_arrive_signed_and_in_order(site: &Site) {
    let hooks = Hooks::new(site, "hooks").await;
    let space = hooks.space();
    let controller = hooks.controller(&["--expiry-notice", "1h"]).await;
    // Before there is a TokenWebhook, nothing is recorded.
    space.active("early", json!({"scopes": ["a:b"]})).await;
    let receiver = Receiver::open().await;
    hooks.hook("audit", &receiver).await;
    receiver.until("a ping", |log| log.iter().any(|d| d.type_() == "webhook.ping")).await;
    let rotation = json!({"trigger": "1", "overlap": "1s"});
    space.active("t", json!({"scopes": ["a:b"], "rotation": rotation})).await;
    space.patch("t", json!({"spec": {"rotation": {"trigger": "2"}}})).await;
    receiver.until_received("t", &["token.created", "token.rotated", "token.key_retired"]).await;
    space.patch("t", json!({"spec": {"suspend": true}})).await;
    space.reason("t", ConditionType::Active, "Suspended").await;
    space.patch("t", json!({"spec": {"suspend": false}})).await;
    space.condition("t", ConditionType::Active, "True").await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(10);
    space.patch("t", json!({"spec": {"expiresAt": soon.to_string()}})).await;
    space.has_events("t", &["Expiring"]).await;
    space.patch("t", json!({"spec": {"revoked": true, "revocationReason": "KeyCompromise"}})).await;
    space.reason("t", ConditionType::Revoked, "Enforced").await;
    let mut received = vec![
        "token.created",
        "token.rotated",
        "token.key_retired",
        "token.suspended",
        "token.resumed",
        "token.expiring",
        "token.revoked",
    ];
    receiver.until_received("t", &received).await;
    let revoked = receiver.log().into_iter().find(|d| d.type_() == "token.revoked").expect("it").json();
    let status = space.get("t").await.status.expect("a status");
    let expected = json!({
        "tokenId": status.token_id, "name": "t", "namespace": space.name, "version": 2,
        "reason": "KeyCompromise", "scopes": ["a:b"],
    });
    assert_eq!(revoked["data"], expected);
    assert_eq!(revoked["timestamp"], json!(status.revocation.expect("a record").requested_at));
    hooks.settled().await;
    // A deletion is received too, though no status remains.
    space.delete("t").await;
    received.push("token.deleted");
    receiver.until_received("t", &received).await;
    eventually("t gone", async || match space.tokens().get_opt("t").await.expect("an answer") {
        None => Ok(()),
        Some(token) => Err(format!("{:?}", token.metadata)),
    })
    .await;
    assert_eq!(receiver.received("early"), Vec::<String>::new());
    assert_sound(&receiver, &hooks.key("audit").await);
    let text = controller.log() + &controller.metrics().await;
    assert!(!text.contains("whsec_") && !text.contains(&hooks.key("audit").await), "a key is sent");
    let line = site.kubectl(&["get", "tokenwebhooks", "-n", &space.name]);
    let columns: Vec<&str> = line.lines().next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(columns, ["NAME", "READY", "HEALTHY", "PENDING", "DEAD", "LAST-SUCCESS", "REASON", "AGE"]);
    let status = hooks
        .until("audit", "nothing pending", |w| w.status.as_ref().and_then(|s| s.pending) == Some(0))
        .await;
    assert_eq!(status.status.expect("a status").dead_lettered, Some(0));
}

pub async fn filters_choose_tokens_and_events(site: &Site) {
    let hooks = Hooks::new(site, "filters").await;
    let space = hooks.space();
    let _controller = hooks.controller(&[]).await;
    let receivers = [Receiver::open().await, Receiver::open().await];
    let only_revoked = json!({"url": receivers[0].url(), "events": ["token.revoked"]});
    let only_team =
        json!({"url": receivers[1].url(), "events": ["token.*"], "selector": {"matchLabels": {"team": "a"}}});
    hooks.create("revoked", only_revoked).await;
    hooks.create("team", only_team).await;
    for name in ["revoked", "team"] {
        hooks.reason(name, ConditionType::Ready, "Ready").await;
    }
    for (name, team) in [("a", "a"), ("b", "b")] {
        let object = json!({
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "ApiToken",
            "metadata": {"name": name, "labels": {"team": team}}, "spec": {"scopes": ["a:b"]},
        });
        let object = serde_json::from_value(object).expect("an ApiToken");
        space.tokens().create(&Default::default(), &object).await.expect("an ApiToken");
        space.condition(name, ConditionType::Active, "True").await;
        space.patch(name, json!({"spec": {"revoked": true}})).await;
    }
    receivers[0].until_received("a", &["token.revoked"]).await;
    receivers[0].until_received("b", &["token.revoked"]).await;
    receivers[1].until_received("a", &["token.created", "token.revoked"]).await;
    hooks.settled().await;
    assert_eq!(receivers[1].received("b"), Vec::<String>::new());
    // Only a token to whose deletion a TokenWebhook subscribes has a finalizer.
    let finalizers = async |name: &str| space.get(name).await.metadata.finalizers.unwrap_or_default();
    assert_eq!((finalizers("a").await.len(), finalizers("b").await.len()), (1, 0));
    hooks.api().delete("team", &DeleteParams::default()).await.expect("a deletion");
    eventually("no finalizer", async || match finalizers("a").await {
        list if list.is_empty() => Ok(()),
        list => Err(format!("{list:?}")),
    })
    .await;
}

pub async fn an_endpoint_s_status_code_decides(site: &Site) {
    let hooks = Hooks::new(site, "answers").await;
    let space = hooks.space();
    let _controller = hooks.controller(&["--webhook-time-scale", "10"]).await;
    let receiver = Receiver::open().await;
    hooks.hook("hook", &receiver).await;
    receiver.until("a ping", |log| !log.is_empty()).await;
    // Retry-After: by the time scale, 60 s are 6 s here, where the schedule alone would be half a second.
    receiver.behave(|_, _| Answer::With(503, "retry-after", "60".to_owned()));
    space.active("t", json!({"scopes": ["a:b"]})).await;
    receiver.until("a denial", |log| log.iter().any(|d| d.status == 503)).await;
    let asked = std::time::Instant::now();
    hooks.reason("hook", ConditionType::Healthy, "Delivering").await;
    receiver.answer(200);
    receiver.until_received("t", &["token.created"]).await;
    assert!(asked.elapsed() > Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(receiver.log().iter().filter(|d| d.status == 503).count(), 1);
    // 410 disables it, until the annotation changes.
    receiver.answer(410);
    space.patch("t", json!({"spec": {"suspend": true}})).await;
    hooks.reason("hook", ConditionType::Disabled, "Gone").await;
    let count = receiver.log().len();
    space.patch("t", json!({"spec": {"suspend": false}})).await;
    space.condition("t", ConditionType::Active, "True").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(receiver.log().len(), count, "a disabled endpoint was sent to");
    receiver.answer(200);
    hooks.annotate("hook", "tokenward.dev/ping", "again").await;
    receiver.until_received("t", &["token.created", "token.suspended", "token.resumed"]).await;
    hooks.reason("hook", ConditionType::Ready, "Ready").await;
    eventually("the other ping", async || {
        match receiver.accepted().iter().filter(|d| d.type_() == "webhook.ping").count() {
            2 => Ok(()),
            count => Err(format!("{count} pings")),
        }
    })
    .await;
    // Paused events are not lost.
    hooks.patch("hook", json!({"spec": {"suspend": true}})).await;
    hooks.reason("hook", ConditionType::Ready, "Suspended").await;
    let count = receiver.log().len();
    space.patch("t", json!({"spec": {"revoked": true}})).await;
    hooks.until("hook", "an event pending", |w| w.status.as_ref().and_then(|s| s.pending) == Some(1)).await;
    assert_eq!(receiver.log().len(), count);
    hooks.patch("hook", json!({"spec": {"suspend": false}})).await;
    receiver.until("token.revoked", |log| log.iter().any(|d| d.type_() == "token.revoked")).await;
    assert_sound(&receiver, &hooks.key("hook").await);
}

pub async fn a_requested_ping_waits_for_no_earlier_one(site: &Site) {
    let hooks = Hooks::new(site, "pings").await;
    let _controller = hooks.controller(&[]).await;
    let receiver = Receiver::open().await;
    receiver.answer(503);
    hooks.hook("hook", &receiver).await;
    // The next attempt is due after 5 minutes.
    receiver.until("the second attempt", |log| log.len() == 2).await;
    receiver.answer(200);
    hooks.annotate("hook", "tokenward.dev/ping", "now").await;
    eventually("both pings", async || match receiver.accepted().len() {
        2 => Ok(()),
        count => Err(format!("{count} pings")),
    })
    .await;
    hooks.reason("hook", ConditionType::Healthy, "Delivering").await;
    hooks.space().has_events("hook", &["EndpointFailing", "EndpointRecovered"]).await;
}

pub async fn the_signing_key_is_replaced_without_a_gap(site: &Site) {
    let hooks = Hooks::new(site, "keys").await;
    let space = hooks.space();
    let _controller = hooks.controller(&[]).await;
    let receiver = Receiver::open().await;
    hooks.hook("hook", &receiver).await;
    receiver.until("a ping", |log| !log.is_empty()).await;
    let old = hooks.key("hook").await;
    hooks.patch("hook", json!({"spec": {"signing": {"rotation": {"trigger": "1", "overlap": "8s"}}}})).await;
    let new = eventually("a new key", async || match hooks.key("hook").await {
        key if key != old => Ok(key),
        _ => Err("the old one".to_owned()),
    })
    .await;
    let mut n = 0;
    let mut ping = async || {
        n += 1;
        let count = receiver.log().len();
        hooks.annotate("hook", "tokenward.dev/ping", &n.to_string()).await;
        receiver.until("a ping", |log| log.len() > count).await;
        receiver.log().last().expect("a ping").clone()
    };
    eventually("both signatures", async || {
        let both = ping().await;
        if both.signatures == [both.sign(&new), both.sign(&old)] { Ok(()) } else { Err(format!("{both:?}")) }
    })
    .await;
    eventually("the new signature alone", async || {
        let one = ping().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if one.signatures == [one.sign(&new)] { Ok(()) } else { Err(format!("{one:?}")) }
    })
    .await;
    let secret = space.secrets().get("hook-signing").await.expect("a Secret");
    assert_eq!(secret.data.expect("data").len(), 1, "the old key is gone");
    // A key pair, of which receivers get the public key.
    let ed25519 = json!({"url": receiver.url(), "events": ["*"], "signing": {"algorithm": "Ed25519"}});
    hooks.create("pair", ed25519).await;
    let pair =
        hooks.until("pair", "a public key", |w| w.status.as_ref().is_some_and(|s| s.public_key.is_some()));
    let public = pair.await.status.and_then(|s| s.public_key).expect("a key");
    receiver.until("v1a", |log| log.iter().any(|d| d.signatures[0].starts_with("v1a,"))).await;
    let delivery = receiver.log().into_iter().find(|d| d.signatures[0].starts_with("v1a,")).expect("it");
    use base64::Engine;
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
    let signed = [format!("{}.{}.", delivery.id, delivery.timestamp).as_bytes(), &delivery.body].concat();
    let public = decode(public.strip_prefix("whpk_").expect("a prefix"));
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, public)
        .verify(&signed, &decode(&delivery.signatures[0][4..]))
        .expect("a valid signature");
    // A Secret that is not ours is left alone.
    let theirs = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "taken-signing"},
        "stringData": {"signing-key": "theirs"},
    });
    let theirs = serde_json::from_value(theirs).expect("a Secret");
    space.secrets().create(&Default::default(), &theirs).await.expect("a Secret");
    hooks.create("taken", json!({"url": receiver.url(), "events": ["*"]})).await;
    let advice = hooks.reason("taken", ConditionType::Ready, "SigningSecretConflict").await;
    assert!(advice.contains("delete it, or name it"), "{advice}");
    let secret = space.secrets().get("taken-signing").await.expect("a Secret");
    assert_eq!(data(&secret, "signing-key").as_deref(), Some("theirs"));
}
