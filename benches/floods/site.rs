//! The cluster that is flooded: a control plane, a controller with admission, and a verifier. The first core is the
//! verifier's and the good load's, which takes some percent; all others, the floods included, have the second. On loopback
//! a packet is handled on its sender's core, so beside the floods the good load would measure these.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use devcluster::process::Guarded;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::good::{Outcome, Protocol};
use super::world::World;
use super::{free_address, process};

/// The memory limit of both roles in the chart's values.
pub const LIMIT_MIB: f64 = 512.0;
/// As many as a verifier with this limit allows, which has none here to find.
const MAX_CONNECTIONS: &str = "2730";
/// The namespace whose tokens are checked.
const GOOD: &str = "good";
const GOOD_TOKENS: usize = 200;
/// The namespace whose new tokens are waited for. Admission reviews them.
const NEIGHBOUR: &str = "neighbour";
const VERIFIER_CORE: &str = "0";
const OTHER_CORE: &str = "1";

pub struct Verifier {
    process: Guarded,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub telemetry: SocketAddr,
}

impl Verifier {
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

pub struct Site {
    // In the order in which they are dropped.
    pub verifier: Verifier,
    pub world: World,
    pub admission: SocketAddr,
    /// A genuine ServiceAccount token for the verifier, of an account without rights.
    pub jwt: String,
    pub folder: PathBuf,
    tokenward: PathBuf,
    created: usize,
}

impl Site {
    pub async fn start(tokenward: &Path, folder: &Path) -> anyhow::Result<Self> {
        eprintln!("starting a control plane and tokenward");
        let admission = free_address()?;
        let world = World::start(tokenward, &["--admission-listen", &admission.to_string()]).await?;
        configure_admission(&world, admission).await?;
        for name in [GOOD, NEIGHBOUR] {
            world.namespace(name).await?;
        }
        world.create(GOOD, GOOD_TOKENS).await?;
        let secrets: Api<Secret> = Api::namespaced(world.client().clone(), GOOD);
        let secrets = secrets.list(&ListParams::default()).await?.items;
        let tokens = secrets.into_iter().filter_map(|secret| secret.data?.remove("token"));
        let tokens: Vec<_> = tokens.filter_map(|token| String::from_utf8(token.0).ok()).collect();
        ensure!(tokens.len() == GOOD_TOKENS, "{} of {GOOD_TOKENS} tokens", tokens.len());
        std::fs::write(folder.join("good"), tokens.join("\n"))?;
        let verifier = verifier(&world, tokenward, folder).await?;
        let jwt = world.cluster().kubectl();
        let jwt = output(jwt, &["create", "token", "default", "-n", GOOD, "--audience", "tokenward"])?;
        let (tokenward, folder) = (tokenward.to_owned(), folder.to_owned());
        let jwt = jwt.trim().to_owned();
        let site = Self { verifier, world, admission, jwt, folder, tokenward, created: 0 };
        site.pin()?;
        Ok(site)
    }

    /// Puts all but the verifier on the second core.
    pub fn pin(&self) -> anyhow::Result<()> {
        let others = self.world.cluster().processes().into_iter().map(|(_, pid)| pid);
        for pid in others.chain([self.world.controller_pid()]) {
            output(Command::new("taskset"), &["-a", "-p", "-c", OTHER_CORE, &pid.to_string()])?;
        }
        Ok(())
    }

    /// Starts another verifier, which lists all that there is.
    pub async fn another_verifier(&self) -> anyhow::Result<Verifier> {
        verifier(&self.world, &self.tokenward, &self.folder).await
    }

    /// Makes a token in the neighbour's namespace. Returns after how many seconds it was active.
    pub async fn new_token(&mut self) -> anyhow::Result<f64> {
        self.created += 1;
        let name = format!("n{}", self.created);
        Ok(self.world.create_one(NEIGHBOUR, &name).await?.as_secs_f64())
    }

    /// Where checks are answered.
    pub fn address(&self, protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Http => self.verifier.http,
            Protocol::Grpc => self.verifier.grpc,
        }
    }

    /// One of the tokens that are checked.
    pub fn good_token(&self) -> anyhow::Result<String> {
        let tokens = std::fs::read_to_string(self.folder.join("good"))?;
        Ok(tokens.lines().next().context("no tokens")?.to_owned())
    }

    /// The good load, for a time.
    pub fn good_load(&self, protocol: Protocol, time: Duration) -> anyhow::Result<GoodLoad> {
        let mut command = of_own(VERIFIER_CORE, "-10")?;
        command
            .args(["good", &argument(protocol), &self.address(protocol).to_string()])
            .arg(self.folder.join("good"));
        command.arg(time.as_secs().to_string());
        Ok(GoodLoad(command))
    }
}

/// The command of the good load.
pub struct GoodLoad(Command);

impl GoodLoad {
    pub async fn run(self) -> anyhow::Result<Outcome> {
        let text = tokio::task::spawn_blocking(|| output(self.0, &[])).await??;
        Ok(serde_json::from_str(&text)?)
    }
}

/// What this executable takes on its command line for a value.
pub fn argument(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// This executable on a core, with a nice value.
fn of_own(core: &str, nice: &str) -> anyhow::Result<Command> {
    let mut command = Command::new("taskset");
    command.args(["-c", core, "nice", "-n", nice]).arg(std::env::current_exe()?);
    Ok(command)
}

/// The command of a flood, and of what takes its place on its core: behind all others there.
pub fn behind_all() -> anyhow::Result<Command> {
    of_own(OTHER_CORE, "19")
}

/// The command of what shares the verifier's core.
pub fn beside_the_verifier() -> anyhow::Result<Command> {
    of_own(VERIFIER_CORE, "0")
}

/// Runs a command; returns its output.
pub fn output(mut command: Command, args: &[&str]) -> anyhow::Result<String> {
    command.args(args).stdin(Stdio::null());
    let program = command.get_program().display().to_string();
    let output = Guarded::output(command)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {errors}");
    if !errors.is_empty() {
        eprint!("{errors}");
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn verifier(world: &World, tokenward: &Path, folder: &Path) -> anyhow::Result<Verifier> {
    let rights = world.cluster().kubeconfig_for_service_account("tokenward", "tokenward-verifier")?;
    let (http, grpc, telemetry) = (free_address()?, free_address()?, free_address()?);
    let mut command = Command::new("taskset");
    command.args(["-c", VERIFIER_CORE]).arg(tokenward).args(["verifier", "--plain-http"]);
    command.args(["--namespace", "tokenward", "--max-connections", MAX_CONNECTIONS]);
    command.args(["--listen", &http.to_string(), "--grpc-listen", &grpc.to_string()]);
    command.args(["--telemetry-listen", &telemetry.to_string()]).env("KUBECONFIG", rights);
    let log = std::fs::File::options().create(true).append(true).open(folder.join("verifier.log"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let process = Guarded::spawn(command).context("a verifier")?;
    let url = format!("http://{telemetry}/readyz");
    let ready = async || Ok(reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()));
    world.until("a ready verifier", ready).await?;
    Ok(Verifier { process, http, grpc, telemetry })
}

/// Makes the API server ask the controller about the neighbour's tokens, and admit none without its answer. Without a node
/// there is no Service network, so the Service is an alias of localhost.
async fn configure_admission(world: &World, admission: SocketAddr) -> anyhow::Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "tokenward-admission"},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    });
    world.create_object("/api/v1/namespaces/tokenward/services", &service).await?;
    let service = json!({
        "namespace": "tokenward", "name": "tokenward-admission",
        "path": "/validate/apitoken", "port": admission.port(),
    });
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "tokenward"},
        "webhooks": [{
            "name": "apitokens.tokenward.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Fail", "timeoutSeconds": 5, "clientConfig": {"service": service},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NEIGHBOUR}},
            "rules": [{
                "apiGroups": ["tokenward.dev"], "apiVersions": ["*"], "resources": ["apitokens"],
                "operations": ["CREATE", "UPDATE"],
            }],
        }],
    });
    let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
    world.create_object(path, &configuration).await
}

/// Forgets a process's peak memory, so that the next one is that of what comes now.
pub fn reset_peak(pid: u32) -> anyhow::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("a peak can't be reset")
}

/// A process's peak memory, in MiB.
pub fn peak(pid: u32) -> anyhow::Result<f64> {
    Ok(process::memory(pid, "VmHWM")? as f64 / f64::from(1 << 20))
}
