//! A real cluster with tokenward on it, a namespace for each test, and waiting by polling.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devcluster::cache::tail;
use devcluster::process::Guarded;
use devcluster::{Cluster, Options};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokenward_core::crd::{ApiToken, ConditionType, find_condition};

/// Adds tests that share a stage, which the first of them to run starts.
#[macro_export]
macro_rules! tests {
    ($suite:expr, $runtime:expr, $stage:expr, $start:expr, $($module:ident $(:: $path:ident)+),+ $(,)?) => {
        $({
            let (stage, runtime) = ($stage.clone(), $runtime.clone());
            let name = concat!(stringify!($module) $(, "::", stringify!($path))+);
            $suite.push(libtest_mimic::Trial::test(name, move || {
                let stage = stage.get_or_init(|| runtime.block_on($start));
                runtime.block_on($module$(::$path)+(stage));
                Ok(())
            }));
        })+
    };
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The tokenward binary, which Cargo builds for the tests of its package and puts one folder above them.
pub fn tokenward() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let binary = test.ancestors().nth(2).expect("the folder of the profile").join("tokenward");
    assert!(binary.exists(), "no {}; run the test by cargo", binary.display());
    binary
}

/// The folder for the logs of processes.
fn log_folder() -> PathBuf {
    let folder = tokenward().with_file_name("test-logs");
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// How long [`eventually`] waits: generous, since the machine may be busy.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A cluster with our CRDs, namespace and RBAC, as users install them.
pub struct Site {
    pub cluster: Cluster,
    pub client: Client,
}

impl Site {
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Self {
        let site = Self::bare(options).await;
        let root = root();
        site.kubectl(&["apply", "--server-side", "-f", &root.join("crds").display().to_string()]);
        site.kubectl(&["apply", "-f", &root.join("deploy/namespace.yaml").display().to_string()]);
        site.kubectl(&["apply", "-f", &root.join("deploy/rbac.yaml").display().to_string()]);
        site.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]);
        site
    }

    /// Starts a cluster without installing anything.
    pub async fn bare(options: Options) -> Self {
        let cluster = tokio::task::spawn_blocking(|| Cluster::start(options).expect("a cluster"));
        let cluster = cluster.await.expect("a cluster");
        let client = client_of(cluster.kubeconfig()).await;
        Self { cluster, client }
    }

    /// Runs kubectl, which must succeed; returns what it printed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let (ok, output) = self.try_kubectl(args);
        assert!(ok, "kubectl {args:?}: {output}");
        output
    }

    /// Runs kubectl; returns whether it succeeded, and its output and errors.
    pub fn try_kubectl(&self, args: &[&str]) -> (bool, String) {
        let output = self.cluster.kubectl().args(args).stdin(Stdio::null()).output().expect("kubectl");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Creates a namespace with a unique name.
    pub async fn namespace(&self, name: &str) -> Space {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some(name.clone()), ..Default::default() },
            ..Default::default()
        };
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await.expect("a namespace");
        Space { name, client: self.client.clone() }
    }

    /// Deletes a namespace, and waits until it is gone.
    ///
    /// Kubernetes' namespace controller waits 5 s, then deletes one kind after the other, and reports its first condition
    /// after the last of them. On a busy machine that may take longer than [`TIMEOUT`], which therefore counts from the
    /// last progress: a request of that first pass, or a change of the conditions.
    pub async fn delete_namespace(&self, space: &Space) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&space.name, &DeleteParams::default()).await.expect("a deletion");
        let (mut progress, mut since) = (String::new(), Instant::now());
        while let Some(namespace) = namespaces.get_opt(&space.name).await.expect("a response") {
            let conditions = namespace.status.and_then(|status| status.conditions).unwrap_or_default();
            let seen = if conditions.is_empty() {
                format!("no conditions after {} deletions of collections", self.deleted_collections().await)
            } else {
                format!(
                    "{:?}",
                    conditions.iter().map(|c| (&c.type_, &c.status, &c.message)).collect::<Vec<_>>()
                )
            };
            if seen != progress {
                (progress, since) = (seen, Instant::now());
            }
            if since.elapsed() > TIMEOUT {
                let log = tail(&self.cluster.dir().join("logs/kube-controller-manager.log"));
                panic!("{} is not deleted; for {TIMEOUT:?}: {progress}\n{log}", space.name);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// How many collections in namespaces were deleted so far, by the API server's metrics.
    async fn deleted_collections(&self) -> f64 {
        let request = http::Request::get("/metrics").body(Vec::new()).expect("a request");
        let metrics = self.client.request_text(request).await.expect("metrics");
        let counters = metrics.lines().filter(|line| line.starts_with("apiserver_request_total{"));
        // DELETE is the HTTP method; for a single object the scope would be "resource".
        let collections = counters
            .filter(|line| line.contains(r#"scope="namespace""#) && line.contains(r#"verb="DELETE""#));
        collections.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Starts the controller under its own rights.
    pub fn controller(&self, args: &[&str]) -> Process {
        self.controller_with(args, &[])
    }

    /// Starts the controller with additional environment variables.
    pub fn controller_with(&self, args: &[&str], env: &[(&str, &str)]) -> Process {
        let kubeconfig = self.rights_of("tokenward-controller");
        let ports = ["--telemetry-listen"];
        Process::start("controller", &kubeconfig, &ports, args, env)
    }

    /// Starts the controller with all rights, for tests that are not about rights.
    pub fn controller_as_admin(&self, args: &[&str], env: &[(&str, &str)]) -> Process {
        Process::start("controller", self.cluster.kubeconfig(), &["--telemetry-listen"], args, env)
    }

    /// Starts the controller with a kubeconfig.
    pub fn controller_as(&self, kubeconfig: &Path, args: &[&str]) -> Process {
        Process::start("controller", kubeconfig, &["--telemetry-listen"], args, &[])
    }

    /// Starts the verifier under its own rights, over plain HTTP.
    pub fn verifier(&self, args: &[&str]) -> Process {
        self.verifier_with(&[&["--plain-http"], args].concat())
    }

    /// Starts the verifier under its own rights, over HTTPS.
    pub fn verifier_with_tls(&self, certificate: &Path, key: &Path) -> Process {
        let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
        self.verifier_with(&["--tls-cert", &certificate, "--tls-key", &key])
    }

    /// Starts the verifier under its own rights, with these flags only.
    pub fn verifier_with(&self, args: &[&str]) -> Process {
        let kubeconfig = self.rights_of("tokenward-verifier");
        let ports = ["--telemetry-listen", "--listen", "--grpc-listen"];
        Process::start("verifier", &kubeconfig, &ports, args, &[])
    }

    /// A kubeconfig with the rights of one of our service accounts.
    pub fn rights_of(&self, account: &str) -> PathBuf {
        self.cluster.kubeconfig_for_service_account("tokenward", account).expect("a kubeconfig")
    }
}

/// A second installation on the same cluster, for one watched namespace: its pepper and its lease are in a namespace
/// of their own. It has all rights, as rights are not what its tests are about.
pub struct Tenant<'s> {
    site: &'s Site,
    operator: Space,
    pub space: Space,
}

impl<'s> Tenant<'s> {
    pub async fn new(site: &'s Site, name: &str) -> Self {
        let operator = site.namespace(&format!("{name}-operator")).await;
        Self { site, operator, space: site.namespace(name).await }
    }

    pub fn controller(&self, args: &[&str]) -> Process {
        self.controller_with(args, &[])
    }

    /// Starts its controller with additional environment variables.
    pub fn controller_with(&self, args: &[&str], env: &[(&str, &str)]) -> Process {
        self.process("controller", &["--telemetry-listen"], args, env)
    }

    pub fn verifier(&self) -> Process {
        self.process("verifier", &["--telemetry-listen", "--listen"], &["--plain-http"], &[])
    }

    /// The Secrets of its operator's namespace.
    pub fn peppers(&self) -> Api<Secret> {
        self.operator.secrets()
    }

    /// The namespace of its pepper.
    pub fn namespace(&self) -> &str {
        &self.operator.name
    }

    fn process(&self, role: &str, ports: &[&str], args: &[&str], env: &[(&str, &str)]) -> Process {
        let own = ["--namespace", &self.operator.name, "--watch-namespaces", &self.space.name];
        Process::start(role, self.site.cluster.kubeconfig(), ports, &[&own, args].concat(), env)
    }
}

/// A client with the rights of a kubeconfig.
pub async fn client_of(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

/// A tokenward process, on free ports.
pub struct Process {
    guarded: Guarded,
    pub telemetry: SocketAddr,
    pub listen: SocketAddr,
    pub grpc: SocketAddr,
    log: PathBuf,
}

impl Process {
    /// Starts a role with a kubeconfig, and a free port for each flag in `ports`.
    pub fn start(role: &str, kubeconfig: &Path, ports: &[&str], args: &[&str], env: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let telemetry = free_port();
        let listen = free_port();
        let grpc = free_port();
        let log = log_folder().join(format!(
            "{role}-{}-{}.log",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        let mut command = Command::new(tokenward());
        command.arg(role).env("KUBECONFIG", kubeconfig).env("TOKENWARD_NAMESPACE", "tokenward");
        for (flag, port) in ports.iter().zip([telemetry, listen, grpc]) {
            command.arg(flag).arg(port.to_string());
        }
        command.args(args).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&log).expect("a log file"));
        Self { guarded: Guarded::spawn(command).expect("a process"), telemetry, listen, grpc, log }
    }

    /// Waits until `/readyz` returns 200.
    pub async fn ready(self) -> Self {
        self.ready_within(TIMEOUT).await
    }

    /// The same for a process that has much to list.
    pub async fn ready_within(self, timeout: Duration) -> Self {
        let url = format!("http://{}/readyz", self.telemetry);
        within(timeout, "ready", async || match reqwest::get(&url).await {
            Ok(answer) if answer.status() == 200 => Ok(()),
            Ok(answer) => Err(answer.text().await.unwrap_or_default()),
            Err(error) => Err(format!("{error}; {}", self.log())),
        })
        .await;
        self
    }

    /// The whole log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let url = format!("http://{}/metrics", self.telemetry);
        reqwest::get(url).await.expect("metrics").text().await.expect("metrics")
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.metrics().await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// Waits until `/readyz` names `part` as not ready.
    pub async fn waits_for(&self, part: &str) {
        let url = format!("http://{}/readyz", self.telemetry);
        eventually("not ready", async || {
            let answer = reqwest::get(&url).await.expect("an answer").text().await.expect("text");
            if answer.contains(part) { Ok(()) } else { Err(answer) }
        })
        .await;
    }

    /// Sends a token to `/auth`; returns the status code.
    pub async fn check(&self, token: &str, query: &str) -> u16 {
        self.ask(token, query).await.status().as_u16()
    }

    /// Sends a token to `/auth`; returns the response.
    pub async fn ask(&self, token: &str, query: &str) -> reqwest::Response {
        let url = format!("http://{}/auth?{query}", self.listen);
        client().get(url).bearer_auth(token).send().await.expect("an answer")
    }

    /// Waits until `/auth` returns this status code for a token.
    pub async fn answers(&self, token: &str, query: &str, expected: u16) {
        eventually(&format!("{expected} for a token ({query})"), async || {
            match self.check(token, query).await {
                status if status == expected => Ok(()),
                status => Err(status.to_string()),
            }
        })
        .await;
    }

    /// Ends the process by SIGKILL, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.guarded.kill();
    }

    /// Sends SIGTERM and waits; returns the exit code, and how long it took.
    pub fn terminate(&mut self) -> (Option<i32>, Duration) {
        let start = Instant::now();
        let status = self.guarded.terminate(Duration::from_secs(20)).expect("an exit status");
        (status.code(), start.elapsed())
    }

    pub fn pid(&self) -> u32 {
        self.guarded.pid()
    }

    /// Waits until it has ended by itself; returns its exit code, `None` for a signal.
    pub async fn ended(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.guarded.try_wait().expect("a status") {
                return status.code();
            }
            assert!(start.elapsed() < TIMEOUT * 2, "the process does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn runs(&mut self) -> bool {
        self.guarded.try_wait().expect("a status").is_none()
    }
}

/// An HTTP client that opens a connection for each request.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(10))
        .build()
        .expect("a client")
}

/// A loopback address with a port that is free, and that this process gives out once.
///
/// Outside of the kernel's ephemeral range, from which a connection could take it before it is listened on.
pub fn free_port() -> SocketAddr {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 8_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // By the process id, so that test binaries that run at the same time try different ports.
    let offset = || std::process::id().wrapping_mul(101).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let candidates = (0..COUNT).filter_map(|_| u16::try_from(FIRST + offset() % COUNT).ok());
    let mut addresses = candidates.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    addresses.find(|address| std::net::TcpListener::bind(address).is_ok()).expect("a free port")
}

/// A namespace, with what tests do in it.
#[derive(Clone)]
pub struct Space {
    pub name: String,
    pub client: Client,
}

impl Space {
    pub fn tokens(&self) -> Api<ApiToken> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates an ApiToken with this spec.
    pub async fn create(&self, name: &str, spec: Value) -> ApiToken {
        self.try_create(name, spec).await.expect("an ApiToken")
    }

    /// Creates an ApiToken; returns the API server's message if that is rejected.
    pub async fn try_create(&self, name: &str, spec: Value) -> Result<ApiToken, String> {
        let object = json!({
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "ApiToken", "metadata": {"name": name}, "spec": spec,
        });
        // Untyped, so that a spec that our types can't represent is sent too.
        let request =
            http::Request::post(format!("/apis/tokenward.dev/v1alpha1/namespaces/{}/apitokens", self.name))
                .header("content-type", "application/json")
                .body(object.to_string().into_bytes())
                .expect("a request");
        self.client.request::<ApiToken>(request).await.map_err(|error| message(&error))
    }

    /// Creates an ApiToken and waits until it is active; returns the token in its Secret.
    pub async fn active(&self, name: &str, spec: Value) -> String {
        self.create(name, spec).await;
        self.condition(name, ConditionType::Active, "True").await;
        self.secret_of(name).await
    }

    pub async fn get(&self, name: &str) -> ApiToken {
        self.tokens().get(name).await.expect("an ApiToken")
    }

    /// Changes an ApiToken by a merge patch.
    pub async fn patch(&self, name: &str, patch: Value) -> ApiToken {
        self.try_patch(name, patch).await.expect("a patch")
    }

    /// Changes an ApiToken by a merge patch; returns the API server's message if that is rejected.
    pub async fn try_patch(&self, name: &str, patch: Value) -> Result<ApiToken, String> {
        let params = PatchParams::default();
        self.tokens().patch(name, &params, &Patch::Merge(patch)).await.map_err(|error| message(&error))
    }

    /// Changes a status by hand, as a user with too many rights could.
    pub async fn patch_status(&self, name: &str, patch: Value) {
        let params = PatchParams::default();
        self.tokens().patch_status(name, &params, &Patch::Merge(patch)).await.expect("a status");
    }

    pub async fn delete(&self, name: &str) {
        self.tokens().delete(name, &DeleteParams::default()).await.expect("a deletion");
    }

    /// The token in the Secret of an ApiToken with the default Secret name and key.
    pub async fn secret_of(&self, name: &str) -> String {
        let secret = self.secrets().get(name).await.expect("a Secret");
        data(&secret, "token").expect("a token in the Secret")
    }

    /// Waits until `wanted` is true of an ApiToken; returns the ApiToken.
    pub async fn until(&self, name: &str, what: &str, wanted: impl Fn(&ApiToken) -> bool) -> ApiToken {
        eventually(what, async || match self.tokens().get(name).await {
            Ok(token) if wanted(&token) => Ok(token),
            Ok(token) => Err(serde_json::to_string_pretty(&token.status).unwrap_or_default()),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Waits until a condition has this status.
    pub async fn condition(&self, name: &str, type_: ConditionType, status: &str) -> ApiToken {
        let what = format!("{}={status} on {name}", type_.as_str());
        self.until(name, &what, |token| has(token, type_, status)).await
    }

    /// Waits until a condition has this reason.
    pub async fn reason(&self, name: &str, type_: ConditionType, reason: &str) -> ApiToken {
        let what = format!("{} with reason {reason} on {name}", type_.as_str());
        self.until(name, &what, |token| {
            condition(token, type_).is_some_and(|c| c.0 == reason) && observed(token)
        })
        .await
    }

    /// Waits until this version is in the Secret, under whichever key.
    pub async fn delivered(&self, name: &str, version: i64) -> ApiToken {
        let what = format!("version {version} of {name}");
        self.until(name, &what, |token| delivered(token) == Some(version)).await
    }

    /// Waits until the Secret contains this version; returns its token.
    pub async fn version(&self, name: &str, version: i64) -> String {
        let what = format!("version {version} of {name}");
        let token = self
            .until(name, &what, |token| {
                delivered(token) == Some(version) && has(token, ConditionType::Ready, "True")
            })
            .await;
        let secret = token.status.and_then(|s| s.secret_ref).expect("a Secret").name;
        self.secret_of(&secret).await
    }

    /// Asserts that an ApiToken does not change for a while.
    pub async fn stays(&self, name: &str, duration: Duration) {
        let before = self.get(name).await;
        tokio::time::sleep(duration).await;
        let after = self.get(name).await;
        assert_eq!(before.status, after.status);
        assert_eq!(before.metadata.resource_version, after.metadata.resource_version);
    }

    /// Waits until an object has Events with these reasons, which the controller writes asynchronously.
    pub async fn has_events(&self, name: &str, reasons: &[&str]) {
        eventually(&format!("Events {reasons:?} of {name}"), async || {
            let events = self.events(name).await;
            let complete = reasons.iter().all(|reason| events.iter().any(|event| event == reason));
            if complete { Ok(()) } else { Err(format!("{events:?}")) }
        })
        .await;
    }

    /// The reasons of the Events about an object.
    async fn events(&self, name: &str) -> Vec<String> {
        let api: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(self.client.clone(), &self.name);
        let events = api.list(&Default::default()).await.expect("events").items.into_iter();
        events
            .filter(|e| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name))
            .filter_map(|e| e.reason)
            .collect()
    }
}

/// The reason and message of a condition.
pub fn condition(token: &ApiToken, type_: ConditionType) -> Option<(String, String)> {
    let found = find_condition(&token.status.as_ref()?.conditions, type_)?;
    Some((found.reason.clone(), found.message.clone()))
}

/// The version that the Secret contains, by the status.
fn delivered(token: &ApiToken) -> Option<i64> {
    Some(token.status.as_ref()?.secret_ref.as_ref()?.version)
}

/// Whether a condition has this status, as of the current spec.
pub fn has(token: &ApiToken, type_: ConditionType, status: &str) -> bool {
    let found = token.status.as_ref().and_then(|s| find_condition(&s.conditions, type_));
    observed(token) && found.is_some_and(|c| c.status == status)
}

fn observed(token: &ApiToken) -> bool {
    token.status.as_ref().and_then(|s| s.observed_generation) == token.metadata.generation
}

/// A value of a Secret, as text.
pub fn data(secret: &Secret, key: &str) -> Option<String> {
    let value = secret.data.as_ref()?.get(key)?;
    String::from_utf8(value.0.clone()).ok()
}

/// The API server's message in an error, or the error as text.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Polls until `check` succeeds; panics with its last error after [`TIMEOUT`].
pub async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Result<T, String>) -> T {
    within(TIMEOUT, what, check).await
}

async fn within<T>(timeout: Duration, what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match check().await {
            Ok(found) => return found,
            Err(seen) if start.elapsed() > timeout => {
                panic!("no {what} within {timeout:?}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
