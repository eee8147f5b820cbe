//! The cluster, the controller, and operations on tokens.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use devcluster::process::Guarded;
use devcluster::{Cluster, Options};
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::wait::await_condition;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokenward_core::crd::{ApiToken, TokenWebhook};

use super::{TIMEOUT, process};

/// How many requests are in flight while tokens are created and revoked.
const CONCURRENT_REQUESTS: usize = 32;

const LOG: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/controller-bench.log");

/// Counts and CPU times (user and system) so far.
#[derive(Clone, Copy)]
pub struct Counts {
    /// Writes of ApiToken statuses.
    pub statuses: u64,
    /// Writes of TokenWebhook statuses.
    pub hooks: u64,
    pub controller_cpu: Duration,
    /// CPU time of etcd, the API server and the controller manager.
    pub control_plane_cpu: Duration,
}

/// The figures of a mass revocation.
pub struct Revocation {
    pub start: Instant,
    /// Time until every patch was acknowledged.
    pub patched: Duration,
    /// Time until every status was revoked.
    pub enforced: Duration,
    pub before: Counts,
    pub after: Counts,
}

impl Revocation {
    /// Writes of ApiToken statuses until all were revoked.
    pub fn writes(&self) -> u64 {
        self.after.statuses - self.before.statuses
    }
}

pub struct World {
    // In the order in which they are dropped.
    controller: Guarded,
    is_running: bool,
    /// The controller's program and its arguments.
    command: Vec<String>,
    /// The controller's kubeconfig.
    rights: PathBuf,
    telemetry: String,
    client: Client,
    followed: Mutex<HashMap<String, Store<ApiToken>>>,
    cluster: Cluster,
}

impl World {
    /// Starts a control plane with what users install, and a controller with its own rights and these further flags.
    pub async fn start(tokenward: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        Self::start_on(Options::default(), tokenward, flags).await
    }

    /// The same without a controller manager, whose garbage collector asks for each owner of a Secret at times of its own; and
    /// with an API server whose heap can be collected before it is measured.
    pub async fn start_quietly(tokenward: &Path) -> anyhow::Result<Self> {
        let extra_apiserver_args = vec!["--profiling=true".to_owned()];
        let options = Options { controller_manager: false, extra_apiserver_args, ..Options::default() };
        Self::start_on(options, tokenward, &[]).await
    }

    async fn start_on(options: Options, tokenward: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let cluster = tokio::task::spawn_blocking(move || Cluster::start(options)).await??;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in ["crds", "deploy/namespace.yaml", "deploy/rbac.yaml"] {
            kubectl(&cluster, &["apply", "--server-side", "-f", &root.join(file).display().to_string()])?;
        }
        kubectl(&cluster, &["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
        let client = client_of(cluster.kubeconfig()).await?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let telemetry = listener.local_addr()?.to_string();
        drop(listener);
        let rights = cluster.kubeconfig_for_service_account("tokenward", "tokenward-controller")?;
        std::fs::write(LOG, "")?;
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let command = controller_command(&tokenward.display().to_string(), &telemetry, &flags);
        let controller = start_controller(&command, &rights)?;
        let world = Self {
            controller,
            is_running: true,
            command,
            rights,
            telemetry,
            client,
            followed: Mutex::default(),
            cluster,
        };
        world.ready().await?;
        Ok(world)
    }

    /// Ends the controller as a crash would.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.controller.kill()?;
        self.is_running = false;
        Ok(())
    }

    /// The same, and starts it anew.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop()?;
        self.controller = start_controller(&self.command, &self.rights)?;
        self.is_running = true;
        self.ready().await
    }

    /// The same, with these further flags instead of those before.
    pub async fn restart_with(&mut self, flags: &[String]) -> anyhow::Result<()> {
        self.command = controller_command(&self.command[0], &self.telemetry, flags);
        self.restart().await
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let url = format!("http://{}/readyz", self.telemetry);
        self.until("a ready controller", async || {
            Ok(reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()))
        })
        .await
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Another client, with the controller's rights.
    pub async fn client_with_its_rights(&self) -> anyhow::Result<Client> {
        client_of(&self.rights).await
    }

    /// Whether there is a controller.
    pub fn is_running(&self) -> bool {
        self.is_running
    }

    pub fn controller_pid(&self) -> u32 {
        self.controller.pid()
    }

    /// The address of the controller's probes and metrics.
    pub fn telemetry(&self) -> &str {
        &self.telemetry
    }

    pub async fn create_namespace(&self, name: &str) -> anyhow::Result<()> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.create_object("/api/v1/namespaces", &namespace).await
    }

    /// Creates a namespace, and watches its tokens.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<()> {
        self.create_namespace(name).await?;
        // By a watch, as repeated lists would distort what is measured.
        let (store, writer) = reflector::store();
        let tokens: Api<ApiToken> = Api::namespaced(self.client.clone(), name);
        let follow =
            reflector::reflector(writer, watcher(tokens, watcher::Config::default()).default_backoff());
        tokio::spawn(follow.for_each(|_| std::future::ready(())));
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.insert(name.to_owned(), store);
        Ok(())
    }

    /// Creates a TokenWebhook, and waits until it is ready.
    pub async fn webhook(&self, namespace: &str, name: &str, url: &str, events: Value) -> anyhow::Result<()> {
        let object = json!({
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenWebhook", "metadata": {"name": name},
            "spec": {"url": url, "events": events},
        });
        let object = serde_json::from_value(object)?;
        self.hooks(namespace).create(&PostParams::default(), &object).await?;
        self.until("a ready webhook", async || {
            let status = self.hooks(namespace).get(name).await?.status.unwrap_or_default();
            Ok(status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        })
        .await
    }

    pub async fn delete_webhook(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        self.hooks(namespace).delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    pub async fn suspend(&self, namespace: &str, name: &str, suspend: bool) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
        let hook = self.hooks(namespace).patch(name, &PatchParams::default(), &patch).await?;
        if !suspend {
            return Ok(());
        }
        self.until("the webhook to be suspended", async || {
            let status = self.hooks(namespace).get(name).await?.status.unwrap_or_default();
            Ok(status.observed_generation == hook.metadata.generation)
        })
        .await
    }

    pub async fn pending(&self, namespace: &str, name: &str, count: usize) -> anyhow::Result<()> {
        self.until("all events pending", async || {
            let status = self.hooks(namespace).get(name).await?.status.unwrap_or_default();
            Ok(status.pending == i64::try_from(count).ok())
        })
        .await
    }

    /// Creates a token, and waits until it is active. Returns how long that took.
    pub async fn create_one(&self, namespace: &str, name: &str) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let object = ApiToken::new(name, serde_json::from_value(json!({"scopes": ["a:b"]}))?);
        let tokens: Api<ApiToken> = Api::namespaced(self.client.clone(), namespace);
        let active =
            await_condition(tokens.clone(), name, |token: Option<&ApiToken>| token.is_some_and(is_active));
        tokens.create(&PostParams::default(), &object).await?;
        tokio::time::timeout(TIMEOUT, active).await.context("it did not become active")??;
        Ok(start.elapsed())
    }

    /// Creates tokens that rotate as often as the CRD allows, and waits until all are active.
    pub async fn create_rotating(&self, namespace: &str, count: usize) -> anyhow::Result<()> {
        let rotation = json!({"interval": "10s", "overlap": "0s"});
        self.create_with(namespace, count, &json!({"scopes": ["a:b"], "rotation": rotation})).await
    }

    pub async fn delete_tokens(&self, namespace: &str) -> anyhow::Result<()> {
        let tokens: Api<ApiToken> = Api::namespaced(self.client.clone(), namespace);
        let delete =
            async || tokens.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
        match delete().await {
            // The API server closes connections that were idle for long, at times just then.
            Err(kube::Error::Service(_)) => delete().await?,
            other => other?,
        };
        self.all(namespace, 0, "deleted", |_| true).await
    }

    /// Creates tokens, and waits until all are active.
    pub async fn create(&self, namespace: &str, count: usize) -> anyhow::Result<()> {
        self.create_with(namespace, count, &json!({"scopes": ["a:b"]})).await
    }

    async fn create_with(&self, namespace: &str, count: usize, spec: &Value) -> anyhow::Result<()> {
        self.create_tokens(namespace, count, spec, |_| Ok(())).await?;
        // Those that rotate without end are active most of the time, and seldom all at once.
        self.all(namespace, count, "delivered", is_delivered).await
    }

    /// Creates tokens t0, t1 and so on, and waits for nothing. Passes on each as it is stored.
    pub async fn create_tokens(
        &self,
        namespace: &str,
        count: usize,
        spec: &Value,
        created: impl Fn(Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let path = format!("/apis/tokenward.dev/v1alpha1/namespaces/{namespace}/apitokens");
        let path = &path;
        stream::iter(0..count)
            .map(|n| async move {
                let object = json!({
                    "apiVersion": "tokenward.dev/v1alpha1", "kind": "ApiToken",
                    "metadata": {"name": format!("t{n}")}, "spec": spec,
                });
                self.post(path, &object).await
            })
            .buffer_unordered(CONCURRENT_REQUESTS)
            .try_for_each(|token| std::future::ready(created(token)))
            .await
    }

    /// Revokes all tokens, and waits until all statuses are revoked.
    pub async fn revoke(&self, namespace: &str, count: usize) -> anyhow::Result<Revocation> {
        self.quiet().await?;
        let before = self.counts().await?;
        let tokens: Api<ApiToken> = Api::namespaced(self.client.clone(), namespace);
        let tokens = &tokens;
        let start = Instant::now();
        stream::iter(0..count)
            .map(|n| async move {
                let patch = Patch::Merge(json!({"spec": {"revoked": true}}));
                tokens.patch(&format!("t{n}"), &PatchParams::default(), &patch).await.map(drop)
            })
            .buffer_unordered(CONCURRENT_REQUESTS)
            .try_collect::<()>()
            .await?;
        let patched = start.elapsed();
        self.all(namespace, count, "enforced", |token| {
            let revocation = token.status.as_ref().and_then(|status| status.revocation.as_ref());
            revocation.is_some_and(|revocation| revocation.enforced_at.is_some())
        })
        .await?;
        let enforced = start.elapsed();
        Ok(Revocation { start, patched, enforced, before, after: self.counts().await? })
    }

    /// Waits until the outboxes of all tokens are empty.
    pub async fn settled(&self, namespace: &str) -> anyhow::Result<()> {
        self.until("empty outboxes", async || {
            Ok(self.count(namespace, |token| {
                token.status.as_ref().is_some_and(|status| status.outbox.is_some())
            })? == 0)
        })
        .await
    }

    /// Waits until the controller writes no status for two seconds.
    pub async fn quiet(&self) -> anyhow::Result<()> {
        let mut before = u64::MAX;
        let start = Instant::now();
        while start.elapsed() < TIMEOUT {
            let now = self.counts().await?.statuses;
            if now == before {
                return Ok(());
            }
            before = now;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        bail!("the controller never stops writing")
    }

    pub async fn counts(&self) -> anyhow::Result<Counts> {
        let text = reqwest::get(format!("http://{}/metrics", self.telemetry)).await?.text().await?;
        let value = |name: &str| -> anyhow::Result<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.with_context(|| format!("no {name}"))?.parse().context("a number")
        };
        let control_plane = self.cluster.processes().into_iter().map(|(_, pid)| process::cpu(pid));
        Ok(Counts {
            statuses: value("tokenward_status_writes_total")?,
            hooks: value("tokenward_webhook_status_writes_total")?,
            controller_cpu: self.cpu()?,
            control_plane_cpu: control_plane.sum::<anyhow::Result<_>>()?,
        })
    }

    /// How often the controller has acquired the lease.
    pub fn terms(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_to_string(LOG)?.matches("leading: this replica writes").count())
    }

    /// The CPU time that the API server and etcd have used so far.
    pub fn api_cpu(&self) -> anyhow::Result<Duration> {
        let processes = self.cluster.processes().into_iter();
        let wanted = processes.filter(|(name, _)| ["kube-apiserver", "etcd"].contains(name));
        wanted.map(|(_, pid)| process::cpu(pid)).sum()
    }

    /// The CPU time that the controller has used so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        process::cpu(self.controller.pid())
    }

    /// The controller's peak memory so far, in MiB.
    pub fn memory(&self) -> anyhow::Result<f64> {
        Ok(process::memory(self.controller.pid(), "VmHWM")? as f64 / f64::from(1 << 20))
    }

    async fn all(
        &self,
        namespace: &str,
        count: usize,
        what: &str,
        wanted: impl Fn(&ApiToken) -> bool,
    ) -> anyhow::Result<()> {
        self.until(what, async || Ok(self.count(namespace, &wanted)? == count)).await
    }

    fn count(&self, namespace: &str, wanted: impl Fn(&ApiToken) -> bool) -> anyhow::Result<usize> {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let store = followed.get(namespace).context("a namespace that is followed")?;
        Ok(store.state().iter().filter(|token| wanted(token)).count())
    }

    pub async fn until(
        &self,
        what: &str,
        mut holds: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut printed = Instant::now();
        while !holds().await? {
            ensure!(start.elapsed() < TIMEOUT, "no {what} within {TIMEOUT:?}");
            if printed.elapsed() > Duration::from_secs(10) {
                eprintln!("waiting for {what}, {} s", start.elapsed().as_secs());
                printed = Instant::now();
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        Ok(())
    }

    pub async fn create_object(&self, path: &str, object: &Value) -> anyhow::Result<()> {
        self.post(path, object).await.map(drop)
    }

    /// Creates an object. Returns it as it is stored.
    async fn post(&self, path: &str, object: &Value) -> anyhow::Result<Value> {
        let create = async || {
            let request = http::Request::post(path).header("content-type", "application/json");
            let request = request.body(object.to_string().into_bytes())?;
            anyhow::Ok(self.client.request::<Value>(request).await)
        };
        match create().await? {
            // The API server closes connections that were idle for long, at times just then.
            Err(kube::Error::Service(_)) => Ok(create().await??),
            other => Ok(other?),
        }
    }

    fn hooks(&self, namespace: &str) -> Api<TokenWebhook> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

async fn client_of(kubeconfig: &Path) -> anyhow::Result<Client> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn controller_command(tokenward: &str, telemetry: &str, flags: &[String]) -> Vec<String> {
    let own = ["controller", "--telemetry-listen", telemetry, "--webhook-allow-cidrs", "127.0.0.0/8"];
    [tokenward].iter().chain(&own).map(|part| (*part).to_owned()).chain(flags.iter().cloned()).collect()
}

fn start_controller(command: &[String], rights: &Path) -> anyhow::Result<Guarded> {
    let log = std::fs::File::options().create(true).append(true).open(LOG)?;
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).env("KUBECONFIG", rights).env("TOKENWARD_NAMESPACE", "tokenward");
    process.stdin(Stdio::null()).stderr(log);
    Ok(Guarded::spawn(process)?)
}

fn is_delivered(token: &ApiToken) -> bool {
    token.status.as_ref().is_some_and(|status| status.secret_ref.is_some())
}

fn is_active(token: &ApiToken) -> bool {
    let conditions = token.status.as_ref().map(|status| &status.conditions);
    conditions.is_some_and(|list| list.iter().any(|c| c.type_ == "Active" && c.status == "True"))
}

fn kubectl(cluster: &Cluster, args: &[&str]) -> anyhow::Result<()> {
    let output = cluster.kubectl().args(args).output()?;
    ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
