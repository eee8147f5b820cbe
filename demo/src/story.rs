//! The story: what happens to three tokens, one function a step. A step that fails ends the demo.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokenward_core::crd::{
    ApiToken, ConditionType, LockAction, LockMatch, LockSpec, TokenLock, TokenLockSpec, TokenWebhook,
    TokenWebhookSpec, find_condition,
};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::gate::{Gate, Lag, Presented};
use crate::hook::{Arrival, Endpoint};
use crate::live::{self, Live};
use crate::show::{Show, duration, expect, unmet};
use crate::stage::{self, NAMESPACE, Stage};

/// The tokens of `examples/`.
const BACKEND: &str = "backend-prod";
const CI: &str = "ci-staging";
const PIPELINE: &str = "data-pipeline-dev";
const NAMES: [&str; 3] = [BACKEND, CI, PIPELINE];

/// Where the pipeline's manifest wants its token, and for whom it is.
const PIPELINE_SECRET: (&str, &str) = ("data-pipeline-credentials", "API_TOKEN");
const PIPELINE_AUDIENCE: &str = "audience=https://webhooks.example.com";

/// The TokenWebhook.
const WEBHOOK: &str = "audit";

/// The TokenLock.
const LOCK: &str = "incident-7";

/// A scope that backend-prod keeps, one that it gets, and one that it loses.
const UNCHANGED_SCOPE: &str = "scope=orders:read";
const ADDED: &str = "scope=billing:read";
const LOST: &str = "scope=audit:read";

/// How many checks must agree after a change.
const STILL: usize = 200;

/// What the steps share.
struct Story<'a> {
    show: &'a mut Show,
    stage: &'a Stage,
    gate: &'a Gate,
    live: Live,
}

/// Runs all steps, in order.
pub async fn run(show: &mut Show, stage: &Stage) -> anyhow::Result<()> {
    let mut story = Story { show, stage, gate: stage.gate(), live: Live::of(stage.tokens()) };
    let first = story.apply().await?;
    story.check(&first).await?;
    let second = story.rotate(&first).await?;
    story.narrow(&first, &second).await?;
    story.suspend().await?;
    story.lock().await?;
    let (endpoint, key) = story.subscribe().await?;
    story.revoke(&first, &second).await?;
    story.hear(&endpoint, &key).await?;
    story.unrevoke().await?;
    story.repair().await?;
    story.inspect().await
}

impl Story<'_> {
    /// Manifests become tokens in Secrets. Returns backend-prod's.
    async fn apply(&mut self) -> anyhow::Result<Presented> {
        self.show.step("A team applies three ApiTokens, and gets three Secrets");
        let files = manifests()?;
        let mut arguments = vec!["apply", "-n", NAMESPACE];
        arguments.extend(files.iter().flat_map(|file| ["-f", file.as_str()]));
        // Each is waited for from before the first one exists, so no moment is missed.
        let live = &self.live;
        let active = |name| async move {
            let (_, exists) = live.until(name, "that it exists", |_| true).await?;
            let (_, active) = live.until(name, "Active", |t| live::has(t, ConditionType::Active)).await?;
            anyhow::Ok(active - exists)
        };
        let (applied, backend, ci, pipeline) =
            tokio::join!(self.stage.kubectl(&arguments), active(BACKEND), active(CI), active(PIPELINE));
        self.show.quote(&format!("kubectl {}", arguments.join(" ")), &applied?);
        let waits = [backend?, ci?, pipeline?];
        let tokens = NAMES.map(|name| format!("apitoken/{name}"));
        let mut wait = vec!["wait", "-n", NAMESPACE, "--for=condition=Active", "--timeout=30s"];
        wait.extend(tokens.iter().map(String::as_str));
        let waited = self.stage.kubectl(&wait).await?;
        self.show.quote("kubectl wait --for=condition=Active …", &waited);

        let (pipeline_secret, pipeline_key) = PIPELINE_SECRET;
        let places = [(BACKEND, "token"), (CI, "token"), (pipeline_secret, pipeline_key)];
        for ((name, (secret, key)), wait) in NAMES.into_iter().zip(places).zip(waits) {
            let token = self.stage.token_in(secret, key).await?;
            self.show.ok(&format!("{name}: {token} in Secret {secret}, key {key}"), "Active", Some(wait));
        }
        let longest = waits.into_iter().max().unwrap_or_default();
        self.show.note("From the watch event of its creation to that of its becoming Active; 1 s of it is given to verifiers.");
        self.show.figure("created -> Active, the slowest of three", duration(longest));
        self.stage.token_in(BACKEND, "token").await
    }

    /// A gateway asks.
    async fn check(&mut self, token: &Presented) -> anyhow::Result<()> {
        self.show.step("A gateway asks the verifier, GET /auth");
        self.gate.until(token, UNCHANGED_SCOPE, 200).await?;
        let answer = self.gate.ask(token, UNCHANGED_SCOPE).await?;
        expect("a check with a scope that the token has", 200, answer.status)?;
        expect("X-Tokenward-Subject", format!("{NAMESPACE}/{BACKEND}"), answer.subject.clone())?;
        self.show.ok(&format!("{token} with {UNCHANGED_SCOPE}"), 200, Some(answer.took));
        for (name, value) in [("Id", answer.id), ("Subject", answer.subject), ("Scopes", answer.scopes)] {
            self.show.note(&format!("X-Tokenward-{name}: {value}"));
        }
        let (secret, key) = PIPELINE_SECRET;
        let pipeline = self.stage.token_in(secret, key).await?;
        let garbage = Presented::new("tw_0000000000000000000000000000000000000000000000000000000000000");
        let questions = [
            (token, "scope=payments:write", 403, "a scope that it lacks"),
            (&garbage, UNCHANGED_SCOPE, 401, "garbage in the shape of a token"),
            (&pipeline, PIPELINE_AUDIENCE, 200, "an audience that it is for"),
            (&pipeline, "audience=https://other.example.com", 401, "another audience"),
        ];
        for (token, query, wanted, what) in questions {
            let answer = self.gate.ask(token, query).await?;
            expect(&format!("{what}: {query}"), wanted, answer.status)?;
            self.show.ok(&format!("{what}: {query}"), wanted, Some(answer.took));
        }
        let mut times = Vec::with_capacity(STILL);
        for _ in 0..STILL {
            let answer = self.gate.ask(token, UNCHANGED_SCOPE).await?;
            expect("one of many checks", 200, answer.status)?;
            times.push(answer.took);
        }
        times.sort();
        let median = times.get(STILL / 2).copied().unwrap_or_default();
        self.show.ok(&format!("{STILL} checks in a row over one connection, the median"), 200, Some(median));
        self.show.figure("one check, seen by the client, the median", duration(median));
        Ok(())
    }

    /// An edit of the scopes mints a new secret, while checks go on. Returns it.
    async fn rotate(&mut self, first: &Presented) -> anyhow::Result<Presented> {
        self.show.step("An edit of the spec rotates: backend-prod gets the scope billing:read");
        let before = self.gate.ask(first, UNCHANGED_SCOPE).await?;
        let traffic = Traffic::start(self.gate, self.stage.secrets(), first);
        traffic.flows().await;
        let scopes = json!(["orders:read", "orders:write", "audit:read", "billing:read"]);
        let answered = self.patch(BACKEND, json!({"spec": {"scopes": scopes}})).await?;
        let (token, at) = self.live.until(BACKEND, "version 2", |t| live::delivered(t, 2)).await?;
        let second = self.stage.token_in(BACKEND, "token").await?;
        if second == *first {
            return Err(unmet("the token in the Secret", "a new one", first));
        }
        // On into the overlap.
        traffic.flows().await;
        let checks = traffic.end().await?;

        let took = at.saturating_duration_since(answered);
        self.show.ok(&format!("version 2 in the Secret: {second}"), "", Some(took));
        self.show.note("Of that, 1 s is given to verifiers to learn of it before any pod can read it.");
        self.show.ok(&format!("{checks} checks meanwhile, old secret and the Secret's content"), 200, None);
        self.show.note("0 failed.");
        self.show.figure("rotation: patch answered -> new secret delivered", duration(took));
        self.show.figure("rotation: checks meanwhile / failed", format!("{checks} / 0"));

        let questions = [
            (first, UNCHANGED_SCOPE, 200, "the old secret, in the overlap"),
            (&second, UNCHANGED_SCOPE, 200, "the new secret"),
            (first, ADDED, 403, "the old secret does not get the added scope"),
            (&second, ADDED, 200, "the new secret has it: the scope ratchet"),
        ];
        for (presented, query, wanted, what) in questions {
            let answer = self.gate.ask(presented, query).await?;
            expect(&format!("{what}: {query}"), wanted, answer.status)?;
            if wanted == 200 {
                expect(&format!("{what}: X-Tokenward-Id"), &before.id, &answer.id)?;
            }
            self.show.ok(what, wanted, Some(answer.took));
        }
        let status = token.status.as_ref();
        let ends = status.and_then(|status| status.versions.iter().find_map(|version| version.retire_at));
        let ends = ends.context("the old version has no end")?;
        self.show.note(&format!("Same {}; the old secret ends at {ends:.0}.", before.id));
        Ok(second)
    }

    /// A scope taken away is gone for every secret.
    async fn narrow(&mut self, first: &Presented, second: &Presented) -> anyhow::Result<()> {
        self.show.step("A scope taken away stops at once, for both secrets: audit:read");
        let scopes = json!(["orders:read", "orders:write", "billing:read"]);
        let patch = async { self.patch(BACKEND, json!({"spec": {"scopes": scopes}})).await.map(drop) };
        let lags = self.gate.measure(&[second, first], LOST, 403, patch).await?;
        self.lags("narrowing: patch answered -> first 403", 403, &lags);
        for (token, what) in [(first, "the old secret for a scope left"), (second, "the new one")] {
            let answer = self.gate.ask(token, UNCHANGED_SCOPE).await?;
            expect(what, 200, answer.status)?;
            self.show.ok(what, 200, Some(answer.took));
        }
        Ok(())
    }

    /// Off and on again.
    async fn suspend(&mut self) -> anyhow::Result<()> {
        self.show.step("Suspend and resume: data-pipeline-dev");
        let (secret, key) = PIPELINE_SECRET;
        let token = self.stage.token_in(secret, key).await?;
        for (suspend, wanted, what) in [(true, 401, "suspend"), (false, 200, "resume")] {
            let patch = async { self.patch(PIPELINE, json!({"spec": {"suspend": suspend}})).await.map(drop) };
            let lags = self.gate.measure(&[&token], PIPELINE_AUDIENCE, wanted, patch).await?;
            self.lags(&format!("{what}: patch answered -> first {wanted}"), wanted, &lags);
        }
        Ok(())
    }

    /// One object stops all tokens of a namespace, and lets them go again.
    async fn lock(&mut self) -> anyhow::Result<()> {
        self.show.step("One TokenLock stops all three at once, and its deletion lets them go");
        let (pipeline_secret, pipeline_key) = PIPELINE_SECRET;
        let mut tokens = Vec::new();
        for (secret, key) in [(BACKEND, "token"), (CI, "token"), (pipeline_secret, pipeline_key)] {
            tokens.push(self.stage.token_in(secret, key).await?);
        }
        let tokens: Vec<&Presented> = tokens.iter().collect();
        let matches = LockMatch { all: Some(true), ..Default::default() };
        let message = Some("something is wrong, and nobody knows yet what".to_owned());
        let lock = LockSpec { matches, action: LockAction::Suspend, message, ..Default::default() };
        let lock = TokenLock::new(LOCK, TokenLockSpec { lock });
        let locks = self.stage.locks();
        let create = async {
            locks.create(&PostParams::default(), &lock).await.context("the TokenLock")?;
            Ok(())
        };
        // The tokens without audiences are for any.
        let lags = self.gate.measure(&tokens, PIPELINE_AUDIENCE, 401, create).await?;
        self.slowest("lock: create answered -> first 401", 401, &lags);
        let resource = format!("tokenlock/{LOCK}");
        for condition in ["--for=condition=Enforced", "--for=condition=Ready"] {
            self.stage.kubectl(&["wait", "-n", NAMESPACE, condition, "--timeout=30s", &resource]).await?;
        }
        let message = ["-o", "jsonpath={.status.conditions[?(@.type==\"Enforced\")].message}"];
        let enforced =
            self.stage.kubectl(&[&["get", &resource, "-n", NAMESPACE], &message[..]].concat()).await?;
        self.show.ok("Enforced=True in its status", "", None);
        self.show.note(&enforced);
        let shown = self.stage.kubectl(&["get", "tokenlocks,apitokens", "-n", NAMESPACE]).await?;
        self.show.quote(&format!("kubectl get tokenlocks,apitokens -n {NAMESPACE}"), &shown);
        let delete = async {
            locks.delete(LOCK, &DeleteParams::default()).await.context("the TokenLock")?;
            Ok(())
        };
        let lags = self.gate.measure(&tokens, PIPELINE_AUDIENCE, 200, delete).await?;
        self.slowest("unlock: delete answered -> first 200", 200, &lags);
        Ok(())
    }

    /// A team subscribes an endpoint. Returns it, and the key that it verifies by.
    async fn subscribe(&mut self) -> anyhow::Result<(Endpoint, Zeroizing<String>)> {
        self.show.step("A team subscribes: a TokenWebhook to its endpoint");
        let endpoint = Endpoint::open().await?;
        let webhook = TokenWebhook::new(
            WEBHOOK,
            TokenWebhookSpec {
                url: Some(format!("http://{}/tokens", endpoint.address)),
                events: ["token.revoked", "webhook.ping"].map(str::to_owned).to_vec(),
                ..Default::default()
            },
        );
        let start = Instant::now();
        self.stage.webhooks().create(&PostParams::default(), &webhook).await.context("the TokenWebhook")?;
        let resource = format!("tokenwebhook/{WEBHOOK}");
        let wait = ["wait", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=30s", &resource];
        let waited = self.stage.kubectl(&wait).await?;
        self.show.quote(&format!("kubectl {}", wait.join(" ")), &waited);
        let secret = format!("{WEBHOOK}-signing");
        let found =
            self.stage.secrets().get(&secret).await.with_context(|| format!("the Secret {secret}"))?;
        let value = found.data.as_ref().and_then(|data| data.get("signing-key")).context("no key")?;
        let key = Zeroizing::new(std::str::from_utf8(&value.0).context("a key is text")?.to_owned());
        self.show.ok(&format!("its signing key was made into Secret {secret}"), "", Some(start.elapsed()));
        let ping = endpoint.until("webhook.ping").await?;
        expect("the ping verifies", true, ping.verifies(&key))?;
        self.show.ok("a ping has arrived, and verifies", "ping", Some(ping.at - start));
        Ok((endpoint, key))
    }

    /// It received the revocation.
    async fn hear(&mut self, endpoint: &Endpoint, key: &str) -> anyhow::Result<()> {
        self.show.step("The endpoint received a signed event, by Standard Webhooks");
        let arrival = endpoint.until("token.revoked").await?;
        let event = arrival.event();
        expect("the event's token", BACKEND, event["data"]["name"].as_str().unwrap_or_default())?;
        expect("the event's reason", "KeyCompromise", event["data"]["reason"].as_str().unwrap_or_default())?;
        expect("the event verifies", true, arrival.verifies(key))?;
        self.show.ok("token.revoked has arrived, and verifies", "", None);
        self.show.note(&format!("webhook-id: {}", arrival.id));
        self.show.note(&event.to_string());
        let forged = String::from_utf8_lossy(&arrival.body).replace("KeyCompromise", "Superseded");
        let forged = Arrival { body: forged.into(), ..arrival };
        expect("another reason under the same signature verifies", false, forged.verifies(key))?;
        self.show.ok("the same with another reason does not verify", "", None);
        Ok(())
    }

    /// The token has leaked: it dies.
    async fn revoke(&mut self, first: &Presented, second: &Presented) -> anyhow::Result<()> {
        self.show.step("Revoke backend-prod, of which two secrets work");
        let patch = json!({"spec": {"revoked": true, "revocationReason": "KeyCompromise"}});
        let revoke = async { self.patch(BACKEND, patch).await.map(drop) };
        let start = Instant::now();
        let lags = self.gate.measure(&[second, first], UNCHANGED_SCOPE, 401, revoke).await?;
        self.lags("revocation: patch answered -> first 401", 401, &lags);
        for _ in 0..STILL / 2 {
            for token in [first, second] {
                expect(
                    "a check after the first 401",
                    401,
                    self.gate.ask(token, UNCHANGED_SCOPE).await?.status,
                )?;
            }
        }
        self.show.ok(&format!("{STILL} more checks, both secrets"), 401, None);
        let (token, _) =
            self.live.until(BACKEND, "revocation.enforcedAt in the status", live::enforced).await?;
        self.show.ok("Enforced=True in the status, within", "", Some(start.elapsed()));
        let conditions = token.status.map(|status| status.conditions).unwrap_or_default();
        if let Some(enforced) = find_condition(&conditions, ConditionType::Enforced) {
            self.show.note(&enforced.message);
        }
        Ok(())
    }

    /// No way back.
    async fn unrevoke(&mut self) -> anyhow::Result<()> {
        self.show.step("Nobody un-revokes: the API server itself refuses it");
        for (what, revoked) in [("revoked: false", json!(false)), ("revoked removed", json!(null))] {
            let patch = json!({"spec": {"revoked": revoked, "revocationReason": null}});
            let start = Instant::now();
            match self.try_patch(BACKEND, patch).await {
                Err(kube::Error::Api(refusal)) if refusal.message.contains("revocation is permanent") => {
                    self.show.ok(what, refusal.code, Some(start.elapsed()));
                    self.show.note(&refusal.message);
                }
                Err(error) => return Err(unmet(what, "a refusal: revocation is permanent", error)),
                Ok(_) => return Err(unmet(what, "a refusal", "the patch went through")),
            }
        }
        Ok(())
    }

    /// Somebody edits a Secret by hand.
    async fn repair(&mut self) -> anyhow::Result<()> {
        self.show.step("Somebody overwrites the token in the Secret ci-staging: it is minted anew");
        let (before, _) = self.live.until(CI, "that it exists", |_| true).await?;
        let version = live::version(&before).context("ci-staging has no version")? + 1;
        let forged = Presented::new("tok_live_edited_by_hand");
        let patch = Patch::Merge(json!({"stringData": {"token": "tok_live_edited_by_hand"}}));
        let secrets = self.stage.secrets();
        secrets.patch(CI, &PatchParams::default(), &patch).await.context("the Secret can't be patched")?;
        let answered = Instant::now();
        let what = format!("version {version}");
        let (token, at) = self.live.until(CI, &what, |t| live::delivered(t, version)).await?;
        let took = at.saturating_duration_since(answered);
        let newest = token.status.as_ref().and_then(|status| status.versions.first());
        let reason = newest.map(|version| format!("{:?}", version.reason)).unwrap_or_default();
        expect("the reason of the new version", "SecretTampered", reason.as_str())?;
        let repaired = self.stage.token_in(CI, "token").await?;
        self.show.ok(&format!("{what} in the Secret, {reason}: {repaired}"), "", Some(took));
        self.show.figure("Secret overwritten -> repaired", duration(took));
        for (presented, wanted, what) in
            [(&repaired, 200, "the new token"), (&forged, 401, "what was written by hand")]
        {
            self.gate.until(presented, UNCHANGED_SCOPE, wanted).await?;
            self.show.ok(what, wanted, None);
        }
        Ok(())
    }

    /// What an operator sees of all that.
    async fn inspect(&mut self) -> anyhow::Result<()> {
        self.show.step("What kubectl shows of it");
        let tokens = self.stage.kubectl(&["get", "apitokens", "-n", NAMESPACE, "-o", "wide"]).await?;
        self.show.quote(&format!("kubectl get apitokens -n {NAMESPACE} -o wide"), &tokens);
        let webhooks = self.stage.kubectl(&["get", "tokenwebhooks", "-n", NAMESPACE]).await?;
        self.show.quote(&format!("kubectl get tokenwebhooks -n {NAMESPACE}"), &webhooks);
        let arguments = ["get", "events", "-n", NAMESPACE, "--sort-by=.eventTime"];
        let events = self.stage.kubectl(&arguments).await?;
        let lines: Vec<&str> = events.lines().collect();
        let (header, events) = lines.split_at(lines.len().min(1));
        let last = events.get(events.len().saturating_sub(8)..).unwrap_or_default();
        let command = format!("kubectl get events -n {NAMESPACE} --sort-by=.eventTime | tail -n 8");
        self.show.quote(&command, &[header, last].concat().join("\n"));
        Ok(())
    }

    /// Shows what a change took to reach the verifier, for the new and the old secret, or the only one.
    fn lags(&mut self, what: &str, status: u16, lags: &[Lag]) {
        let secrets: &[_] = if lags.len() > 1 { &[", new secret", ", old secret"] } else { &[""] };
        for (secret, lag) in secrets.iter().zip(lags) {
            self.show.ok(&format!("{what}{secret}"), status, Some(lag.duration()));
            if lag.is_before() {
                self.show.note("Seen before the API server had answered the patch.");
            }
            self.show.figure(format!("{what}{secret}"), lag.to_string());
        }
    }

    /// Shows when each of the three tokens had followed, and notes the slowest for the summary.
    fn slowest(&mut self, what: &str, status: u16, lags: &[Lag]) {
        for (name, lag) in NAMES.iter().zip(lags) {
            self.show.ok(&format!("{what}, {name}"), status, Some(lag.duration()));
        }
        let slowest = lags.iter().map(|lag| lag.duration()).max().unwrap_or_default();
        self.show.figure(format!("{what}, the slowest of three"), duration(slowest));
    }

    /// Changes an ApiToken; returns when the API server had answered.
    async fn patch(&self, name: &str, patch: Value) -> anyhow::Result<Instant> {
        self.try_patch(name, patch).await.with_context(|| format!("{name} can't be patched"))?;
        Ok(Instant::now())
    }

    async fn try_patch(&self, name: &str, patch: Value) -> Result<ApiToken, kube::Error> {
        self.stage.tokens().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }
}

/// Checks that never stop: with the first secret, and with what the Secret contains at that moment.
struct Traffic {
    tasks: JoinSet<anyhow::Error>,
    passed: [Arc<AtomicU64>; 2],
}

impl Traffic {
    fn start(gate: &Gate, secrets: Api<Secret>, first: &Presented) -> Self {
        let passed: [Arc<AtomicU64>; 2] = Default::default();
        let mut tasks = JoinSet::new();
        let [with_first, with_content] = passed.clone();
        let (gate_of_first, first) = (gate.clone(), first.clone());
        tasks.spawn(async move {
            loop {
                if let Err(error) = passes(&gate_of_first, &first, "the first secret").await {
                    return error;
                }
                with_first.fetch_add(1, Ordering::Relaxed);
            }
        });
        let gate = gate.clone();
        tasks.spawn(async move {
            loop {
                let content = match stage::token_in(&secrets, BACKEND, "token").await {
                    Ok(content) => content,
                    Err(error) => return error,
                };
                if let Err(error) = passes(&gate, &content, "the Secret's content").await {
                    return error;
                }
                with_content.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { tasks, passed }
    }

    /// Waits until both have passed some more times.
    async fn flows(&self) {
        let counts = || self.passed.each_ref().map(|count| count.load(Ordering::Relaxed));
        let (before, start) = (counts(), Instant::now());
        while counts().into_iter().zip(before).any(|(now, before)| now < before + 20) {
            // A failed check ends its task; `end` says how it failed.
            if self.tasks.len() < 2 || start.elapsed() > Duration::from_secs(5) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends them; returns how many checks there were, of which none failed.
    async fn end(mut self) -> anyhow::Result<u64> {
        match self.tasks.try_join_next() {
            Some(Ok(error)) => return Err(error),
            Some(Err(error)) => return Err(error).context("a task has ended"),
            None => self.tasks.shutdown().await,
        }
        let [first, content] = self.passed.map(|count| count.load(Ordering::Relaxed));
        if first < 40 || content < 40 {
            bail!("too few checks to say anything: {first} and {content}");
        }
        Ok(first + content)
    }
}

async fn passes(gate: &Gate, token: &Presented, what: &str) -> anyhow::Result<()> {
    let answer = gate.ask(token, UNCHANGED_SCOPE).await?;
    expect(&format!("a check during the rotation, with {what}: {token}"), 200, answer.status)
}

/// The files in `examples/` that contain an ApiToken, as arguments of kubectl.
fn manifests() -> anyhow::Result<Vec<String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut files = Vec::new();
    for file in fs::read_dir(&folder).with_context(|| format!("{} can't be read", folder.display()))? {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".yaml") && fs::read_to_string(&path)?.lines().any(|line| line == "kind: ApiToken")
        {
            files.push(format!("examples/{name}"));
        }
    }
    files.sort();
    Ok(files)
}
