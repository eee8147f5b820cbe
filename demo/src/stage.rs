//! Where the story runs: a cluster, what users install there, and the two processes with their own rights.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use devcluster::process::Guarded;
use devcluster::{Cluster, Options};
use k8s_openapi::api::core::v1::Secret;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::Value;
use tokenward_core::crd::{ApiToken, TokenLock, TokenWebhook};

use crate::TIMEOUT;
use crate::gate::{Gate, Presented};
use crate::show::{Show, duration};

/// The namespace of the story.
pub const NAMESPACE: &str = "demo";

/// How much of a log is shown when something fails.
const TAIL_LINES: usize = 15;

/// How long the processes may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// All that was started.
pub struct Stage {
    // Before the cluster: they are its clients, and fields are dropped in this order.
    processes: Vec<Process>,
    verifier: SocketAddr,
    /// Where the controller asks the verifier how far it has come.
    verifier_telemetry: SocketAddr,
    client: Client,
    gate: Gate,
    cluster: Cluster,
    root: PathBuf,
    has_namespace: bool,
}

/// A process of ours.
struct Process {
    role: &'static str,
    guarded: Guarded,
    telemetry: SocketAddr,
    log: PathBuf,
}

/// Sets the stage, and shows how it went. What was started is in `stage` even if a later step fails.
pub async fn set(
    kubeconfig: Option<PathBuf>,
    show: &mut Show,
    stage: &mut Option<Stage>,
) -> anyhow::Result<()> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).to_owned();

    show.step("A Kubernetes control plane");
    let start = Instant::now();
    let options = Options { kubeconfig, ..Options::default() };
    let cluster = tokio::task::spawn_blocking(|| Cluster::connect_or_start(options)).await??;
    let (what, place) = match cluster.is_external() {
        true => ("connected, to what --kubeconfig or KUBECONFIG names", "cluster connected"),
        false => ("etcd, kube-apiserver and kube-controller-manager run", "cluster started"),
    };
    show.ok(what, "", Some(start.elapsed()));
    show.note(cluster.url());
    show.figure(place, duration(start.elapsed()));
    let config = Kubeconfig::read_from(cluster.kubeconfig()).context("the cluster's kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config).context("the Kubernetes client can't be made")?;
    let [verifier, telemetry @ ..] = free_ports()?;
    let gate = Gate::new(format!("http://{verifier}"))?;
    let stage = stage.insert(Stage {
        processes: Vec::new(),
        verifier,
        verifier_telemetry: telemetry[1],
        client,
        gate,
        cluster,
        root,
        has_namespace: false,
    });
    let version = stage.kubectl(&["version", "--output=json"]).await?;
    let version: Value = serde_json::from_str(&version).context("kubectl version")?;
    show.note(&format!("Kubernetes {}", version["serverVersion"]["gitVersion"].as_str().unwrap_or("?")));

    show.step("tokenward, as users install it");
    let program = program()?;
    let start = Instant::now();
    stage.install().await?;
    show.ok("CRDs, RBAC and policies of crds/ and deploy/ applied", "", Some(start.elapsed()));

    stage.make_namespace().await?;

    show.step("Its two processes, each with the rights of its own ServiceAccount");
    for (role, telemetry) in ["controller", "verifier"].into_iter().zip(telemetry) {
        let start = Instant::now();
        stage.start(&program, role, telemetry).await?;
        show.ok(&format!("tokenward {role} is ready"), 200, Some(start.elapsed()));
    }
    Ok(())
}

/// The program that users run. `cargo demo` builds it with the demo, beside it.
fn program() -> anyhow::Result<PathBuf> {
    let demo = std::env::current_exe().context("the path of the demo")?;
    let program = demo.parent().context("the folder of the demo")?.join("tokenward");
    if !program.is_file() {
        bail!("{} is missing: start the demo by `cargo demo`, which builds both", program.display());
    }
    Ok(program)
}

impl Stage {
    /// A client with all rights, as the demo's user has them.
    pub fn tokens(&self) -> Api<ApiToken> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn locks(&self) -> Api<TokenLock> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub fn webhooks(&self) -> Api<TokenWebhook> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The verifier, as a gateway asks it.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The token in a Secret.
    pub async fn token_in(&self, secret: &str, key: &str) -> anyhow::Result<Presented> {
        token_in(&self.secrets(), secret, key).await
    }

    /// Runs kubectl, which must succeed, with all rights; returns what it printed.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.cluster.kubectl();
        command.args(arguments).current_dir(&self.root);
        let words = arguments.join(" ");
        let output = tokio::task::spawn_blocking(|| Guarded::output(command)).await?;
        let output = output.context("kubectl can't be started")?;
        if !output.status.success() {
            bail!("`kubectl {words}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Installs what users install but the pods, from the files that they have.
    async fn install(&self) -> anyhow::Result<()> {
        self.kubectl(&["apply", "--server-side", "-f", "crds"]).await?;
        self.kubectl(&["apply", "-f", "deploy/namespace.yaml"]).await?;
        self.kubectl(&["apply", "-f", "deploy/rbac.yaml"]).await?;
        self.kubectl(&["apply", "-f", "deploy/policies.yaml"]).await?;
        let crds = [
            "crd/apitokens.tokenward.dev",
            "crd/clustertokenlocks.tokenward.dev",
            "crd/tokenlocks.tokenward.dev",
            "crd/tokenwebhooks.tokenward.dev",
        ];
        let wait = [&["wait", "--for=condition=Established", "--timeout=30s"], &crds[..]].concat();
        self.kubectl(&wait).await.map(drop)
    }

    /// Makes the story's namespace, which it wants to itself.
    async fn make_namespace(&mut self) -> anyhow::Result<()> {
        let advice =
            "the demo wants a namespace of its own; if this one is left from an earlier run, delete it";
        self.kubectl(&["create", "namespace", NAMESPACE]).await.context(advice)?;
        self.has_namespace = true;
        Ok(())
    }

    /// Starts a role and waits until it is ready.
    async fn start(
        &mut self,
        program: &Path,
        role: &'static str,
        telemetry: SocketAddr,
    ) -> anyhow::Result<()> {
        let logs = self.cluster.dir().join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("{} can't be made", logs.display()))?;
        let log = logs.join(format!("tokenward-{role}.log"));
        let account = format!("tokenward-{role}");
        let kubeconfig = self.cluster.kubeconfig_for_service_account("tokenward", &account)?;
        let mut command = Command::new(program);
        command
            .arg(role)
            .args(["--telemetry-listen", &telemetry.to_string()])
            .env("KUBECONFIG", kubeconfig)
            .env("TOKENWARD_NAMESPACE", "tokenward")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).with_context(|| format!("{} can't be made", log.display()))?);
        if role == "controller" {
            // The demo's webhook goes to this machine, which it may only if that is said.
            command.args(["--webhook-allow-cidrs", "127.0.0.0/8"]);
            command.args(["--verifiers", &self.verifier_telemetry.to_string()]);
        }
        if role == "verifier" {
            command.args(["--plain-http", "--listen", &self.verifier.to_string()]);
        }
        let guarded =
            Guarded::spawn(command).with_context(|| format!("tokenward {role} can't be started"))?;
        self.processes.push(Process { role, guarded, telemetry, log });
        let process = self.processes.last_mut().context("the process just started")?;
        process.ready().await
    }

    /// Each process's name, with how it has ended if it has, and the end of its log.
    pub fn log_tails(&mut self) -> Vec<(String, String)> {
        let tail = |process: &mut Process| match process.guarded.try_wait() {
            Ok(Some(status)) => (format!("{} (which has ended: {status})", process.role), process.log_tail()),
            _ => (process.role.to_owned(), process.log_tail()),
        };
        self.processes.iter_mut().map(tail).collect()
    }

    /// Says how to use what runs.
    pub fn say_how_to_use(&self) {
        let kubectl = self.cluster.kubectl();
        println!("It stays up until Ctrl-C. In another terminal:");
        println!("    export KUBECONFIG='{}'", self.cluster.kubeconfig().display());
        println!("    alias kubectl='{}'", Path::new(kubectl.get_program()).display());
        println!("    kubectl get apitokens -n {NAMESPACE} -o wide");
        println!("The verifier answers at http://{}/auth:", self.verifier);
        println!(
            "    TOKEN=\"$(kubectl get secret ci-staging -n {NAMESPACE} -o jsonpath='{{.data.token}}' | base64 -d)\""
        );
        println!(
            "    curl -i -H \"Authorization: Bearer $TOKEN\" 'http://{}/auth?scope=orders:read'",
            self.verifier
        );
        println!("The processes log to {}.", self.cluster.dir().join("logs").display());
    }

    /// Stops all that was started; returns what is left, in a sentence.
    pub async fn stop(mut self) -> anyhow::Result<&'static str> {
        let external = self.cluster.is_external();
        for process in self.processes.iter_mut().rev() {
            process.guarded.terminate(GRACE).with_context(|| format!("tokenward {}", process.role))?;
        }
        self.processes.clear();
        if external && self.has_namespace {
            self.kubectl(&["delete", "namespace", NAMESPACE, "--timeout=30s"]).await?;
        }
        self.cluster.stop()?;
        Ok(match external {
            true => "Stopped. The cluster still has the CRDs, the roles and the namespace tokenward.",
            false => "Stopped; nothing is left.",
        })
    }
}

impl Process {
    async fn ready(&mut self) -> anyhow::Result<()> {
        let url = format!("http://{}/readyz", self.telemetry);
        let start = Instant::now();
        loop {
            let seen = match reqwest::get(&url).await {
                Ok(answer) if answer.status() == 200 => return Ok(()),
                Ok(answer) => answer.text().await.unwrap_or_default().trim().to_owned(),
                Err(error) => error.to_string(),
            };
            if let Some(status) = self.guarded.try_wait()? {
                bail!("tokenward {} has ended ({status})", self.role);
            }
            if start.elapsed() > TIMEOUT {
                bail!("tokenward {} is not ready within {} s: {seen}", self.role, TIMEOUT.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// The token in a Secret.
pub async fn token_in(secrets: &Api<Secret>, secret: &str, key: &str) -> anyhow::Result<Presented> {
    let found = secrets.get(secret).await.with_context(|| format!("the Secret {secret}"))?;
    let value = found.data.as_ref().and_then(|data| data.get(key));
    let value = value.with_context(|| format!("the Secret {secret} has no key {key}"))?;
    Ok(Presented::new(std::str::from_utf8(&value.0).context("the token is no text")?))
}

/// Three free ports on loopback, bound at the same time so that they differ.
fn free_ports() -> anyhow::Result<[SocketAddr; 3]> {
    let bind = || TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1");
    let bound_ports = [bind()?, bind()?, bind()?];
    let [first, second, third] = bound_ports.each_ref().map(TcpListener::local_addr);
    Ok([first?, second?, third?])
}
