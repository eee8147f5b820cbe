//! A cluster as its users see it: its address, kubeconfigs for different users, and the faults that a test can cause.
//!
//! It is either a control plane that was started here, which ends with the value, or an existing one that the user has
//! named, which is never stopped or changed.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::control_plane::{ControlPlane, Plan, admin_kubeconfig, kubectl, write_private};
use crate::kubeconfig::{Credentials, Endpoint};
use crate::network::Network;
use crate::node::{self, Loader, Node};
use crate::process::{Guarded, Janitor, Signal};
use crate::{Binaries, Error, Version, binaries};

/// How long a service-account token is valid: longer than any test run.
const TOKEN_DURATION: &str = "24h";

/// What to start. `Options::default()` suits most tests.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kubeconfig of an existing cluster, for [`Cluster::connect_or_start`] only. Default: none.
    pub kubeconfig: Option<PathBuf>,
    /// The version of Kubernetes. Default: the newest, or what `KUBEBUILDER_ASSETS` has.
    pub version: Option<Version>,
    /// Whether to have a node, on which pods run: containerd, kubelet, kube-proxy, DNS. It needs root and Linux,
    /// and creates namespaces and one network interface. Default: false.
    pub node: bool,
    /// Whether to run kube-controller-manager. Without it there is no garbage collection, no `default`
    /// ServiceAccount, and a namespace's deletion never ends. Default: true.
    pub controller_manager: bool,
    /// More flags for kube-apiserver. They come last, so they override. Default: none.
    pub extra_apiserver_args: Vec<String>,
    /// More flags for kube-controller-manager. Default: none.
    pub extra_controller_manager_args: Vec<String>,
    /// The folder for data, logs and keys. It must be empty or not exist. Default: a new temporary one.
    pub dir: Option<PathBuf>,
    /// Whether the folder with the logs stays after the end. Default: false.
    pub keep_dir: bool,
    /// How long each process may take until it is ready. Default: 60 s, 30 times the usual.
    pub ready_timeout: Duration,
}

/// A Kubernetes API to test against.
///
/// Dropping it stops the processes (the API server before its database) and removes the folder. They end, too,
/// when this process is killed; see [`Guarded`](crate::process::Guarded). All methods take `&self`, so that
/// tests on several threads can share one.
pub struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
    endpoint: Endpoint,
    /// Numbers the kubeconfigs, since names of users are no file names.
    identities: AtomicU32,
    /// `None` for an existing cluster, and after the end.
    own: Mutex<Option<Own>>,
    /// After the processes: they write there.
    folder: Folder,
}

/// What was started here, and ends with the cluster: the node before the control plane that it talks to.
struct Own {
    node: Option<Node>,
    control_plane: ControlPlane,
}

/// A folder that is removed when its owner ends, however that ends.
struct Folder {
    path: PathBuf,
    janitor: Option<Janitor>,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            version: None,
            node: false,
            controller_manager: true,
            extra_apiserver_args: Vec::new(),
            extra_controller_manager_args: Vec::new(),
            dir: None,
            keep_dir: false,
            ready_timeout: Duration::from_secs(60),
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts a control plane and waits until it is ready. The very first start builds the programs, which
    /// takes minutes and is shown on stderr.
    pub fn start(options: Options) -> Result<Self, Error> {
        Self::launch(&options, false)
    }

    /// Uses the cluster that the user has named, by [`Options::kubeconfig`] or by the environment variable
    /// `KUBECONFIG`, and starts one otherwise. A named cluster is never stopped, and faults on it are an error.
    pub fn connect_or_start(options: Options) -> Result<Self, Error> {
        let environment = env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
        match options.kubeconfig.as_deref().map(|path| path.as_os_str().to_owned()).or(environment) {
            Some(kubeconfig) => Self::connect(Path::new(&kubeconfig)),
            None => Self::start(options),
        }
    }

    /// `detachable`: the processes are to outlive this one, by [`Cluster::detach`].
    pub(crate) fn launch(options: &Options, detachable: bool) -> Result<Self, Error> {
        if options.node {
            node::check(options)?;
        }
        let folder = Folder::create(options.dir.as_deref(), options.keep_dir)?;
        let own = Own::start(&folder.path, options, detachable)?;
        Ok(Self {
            kubectl: own.control_plane.binaries().kubectl.clone(),
            kubeconfig: admin_kubeconfig(&folder.path),
            endpoint: own.control_plane.endpoint().clone(),
            identities: AtomicU32::new(0),
            own: Mutex::new(Some(own)),
            folder,
        })
    }

    fn connect(source: &Path) -> Result<Self, Error> {
        let program = binaries::kubectl()?;
        let folder = Folder::create(None, false)?;
        // One file out of what may be a list of files, with everything that it refers to inside.
        let mut command = Command::new(&program);
        command
            .args(["config", "view", "--minify", "--flatten", "--raw", "--output=json"])
            .env("KUBECONFIG", source);
        let text = output(command)?;
        let endpoint = Endpoint::from_kubeconfig(&text)?;
        let kubeconfig = admin_kubeconfig(&folder.path);
        write_private(&kubeconfig, &text)?;
        let cluster = Self {
            kubectl: program,
            kubeconfig,
            endpoint,
            identities: AtomicU32::new(0),
            own: Mutex::new(None),
            folder,
        };
        // Better to fail here than in the first test.
        cluster.ask(&["version", "--request-timeout=10s"])?;
        Ok(cluster)
    }

    /// The URL of the API server.
    pub fn url(&self) -> &str {
        self.endpoint.url()
    }

    /// A kubeconfig with all rights (group `system:masters`), or that of the existing cluster.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The folder with the cluster's data, its keys, and `logs/`.
    pub fn dir(&self) -> &Path {
        &self.folder.path
    }

    /// Whether this is an existing cluster that the user has named, which must not be broken.
    pub fn is_external(&self) -> bool {
        self.own().is_none()
    }

    /// Name and process id of each running process of the cluster; none for an existing cluster.
    pub fn processes(&self) -> Vec<(&'static str, u32)> {
        self.own().as_ref().map(Own::processes).unwrap_or_default()
    }

    /// Loads the images of a docker-archive or of an OCI layout (a tar file, such as [`Image`](crate::Image)
    /// writes) into the node. Pods that use them must not have `imagePullPolicy: Always`.
    pub fn load_image(&self, archive: &Path) -> Result<(), Error> {
        let loader = self.loader().ok_or(Error::NoNode)?;
        loader.load(archive)
    }

    /// `None` without a node.
    pub(crate) fn loader(&self) -> Option<Loader> {
        self.own().as_ref().and_then(|own| own.node.as_ref().map(Node::loader))
    }

    pub(crate) fn kubectl_program(&self) -> &Path {
        &self.kubectl
    }

    /// A kubectl command with all rights. Add arguments and run it.
    pub fn kubectl(&self) -> Command {
        self.kubectl_as(&self.kubeconfig)
    }

    /// A kubectl command with the rights of `kubeconfig`.
    pub fn kubectl_as(&self, kubeconfig: &Path) -> Command {
        kubectl(&self.kubectl, kubeconfig, &self.folder.path)
    }

    /// Makes a kubeconfig with the rights of an existing ServiceAccount, as a pod would have them: its token
    /// comes from the TokenRequest API and is valid for a day.
    pub fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf, Error> {
        let duration = format!("--duration={TOKEN_DURATION}");
        let token = self.ask(&["create", "token", name, "--namespace", namespace, &duration])?;
        self.write_identity(&self.endpoint.kubeconfig(&Credentials::Token(token.trim()), namespace))
    }

    /// Makes a kubeconfig for a user, in at most one group beyond `system:authenticated`. The user has no
    /// rights until a binding gives some. An error on an existing cluster, whose certificate authority we don't have.
    pub fn kubeconfig_for_user(&self, name: &str, group: Option<&str>) -> Result<PathBuf, Error> {
        let pair = {
            let own = self.own();
            let own = own.as_ref().ok_or_else(|| self.not_ours("sign a user"))?;
            own.control_plane.authority().client(name, group)?
        };
        self.write_identity(&self.endpoint.kubeconfig(&Credentials::Certificate(&pair), "default"))
    }

    /// Stops the API server: SIGTERM, and a second later SIGKILL, which cuts watches that are still open.
    /// Clients see refused connections; the data stays.
    pub fn stop_apiserver(&self) -> Result<(), Error> {
        self.ours("stop the API server", ControlPlane::stop_apiserver)
    }

    /// Starts the stopped API server again, on the same port and with the same data, and waits for it.
    pub fn start_apiserver(&self) -> Result<(), Error> {
        self.ours("start the API server", ControlPlane::start_apiserver)
    }

    /// Stops and starts the API server, and waits for it.
    pub fn restart_apiserver(&self) -> Result<(), Error> {
        self.ours("restart the API server", |control_plane| {
            control_plane.stop_apiserver()?;
            control_plane.start_apiserver()
        })
    }

    /// Writes a snapshot of etcd, by `etcdctl snapshot save`.
    pub fn save_etcd(&self, snapshot: &Path) -> Result<(), Error> {
        self.ours("save etcd", |control_plane| control_plane.save_etcd(snapshot))
    }

    /// Stops the API server and etcd, replaces the data by those of a snapshot, by `etcdutl snapshot restore`, and starts both
    /// again, on the same ports.
    pub fn restore_etcd(&self, snapshot: &Path) -> Result<(), Error> {
        self.ours("restore etcd", |control_plane| control_plane.restore_etcd(snapshot))
    }

    /// Freezes the API server (SIGSTOP). Clients see connections that stay open and responses that never come.
    pub fn pause_apiserver(&self) -> Result<(), Error> {
        self.ours("pause the API server", |control_plane| control_plane.signal_apiserver(Signal::STOP))
    }

    /// Resumes the frozen API server.
    pub fn resume_apiserver(&self) -> Result<(), Error> {
        self.ours("resume the API server", |control_plane| control_plane.signal_apiserver(Signal::CONT))
    }

    /// Stops the processes and removes the folder, and says what failed. Does nothing to an existing cluster.
    pub fn stop(self) -> Result<(), Error> {
        let own = self.own().take();
        own.map_or(Ok(()), Own::stop)
    }

    /// Lets the processes and the folder outlive this process.
    pub(crate) fn detach(mut self) -> Result<(), Error> {
        let own = self.own().take();
        own.map_or(Ok(()), Own::detach)?;
        self.folder.keep()
    }

    /// Runs kubectl with all rights and returns what it prints.
    fn ask(&self, arguments: &[&str]) -> Result<String, Error> {
        let mut command = self.kubectl();
        command.args(arguments);
        output(command)
    }

    fn write_identity(&self, text: &str) -> Result<PathBuf, Error> {
        let number = self.identities.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path.join(format!("identity-{number}.kubeconfig"));
        write_private(&path, text)?;
        Ok(path)
    }

    fn ours<T>(
        &self,
        action: &'static str,
        act: impl FnOnce(&mut ControlPlane) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut own = self.own();
        act(&mut own.as_mut().ok_or_else(|| self.not_ours(action))?.control_plane)
    }

    fn not_ours(&self, action: &'static str) -> Error {
        Error::External { action, kubeconfig: self.kubeconfig.clone() }
    }

    /// Ignores poisoning: after a test has panicked with the lock, the cluster can still be stopped.
    fn own(&self) -> MutexGuard<'_, Option<Own>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither keys nor the lock.
        let mut debug = formatter.debug_struct("Cluster");
        debug.field("url", &self.url()).field("dir", &self.dir()).finish_non_exhaustive()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(own) = self.own().take() {
            // There is nobody to report an error to; what did not stop in order is killed by its guard.
            let _ = own.stop();
        }
    }
}

// === impl Own ===

impl Own {
    fn start(folder: &Path, options: &Options, detachable: bool) -> Result<Self, Error> {
        let binaries = Binaries::provide_version(options.version)?;
        let mut plan = Plan { folder, binaries, network: Network::Loopback, options, detachable };
        if !options.node {
            return Ok(Self { node: None, control_plane: ControlPlane::start(&plan)? });
        }
        // First, as the API server listens on the node's network.
        let mut node = Node::prepare(&plan.launcher())?;
        plan.network = node.network().into();
        let control_plane = ControlPlane::start(&plan)?;
        node.start(&control_plane)?;
        Ok(Self { node: Some(node), control_plane })
    }

    /// In the order in which they may be stopped.
    fn processes(&self) -> Vec<(&'static str, u32)> {
        let node = self.node.as_ref().map(Node::processes).unwrap_or_default();
        node.into_iter().chain(self.control_plane.processes()).collect()
    }

    fn stop(self) -> Result<(), Error> {
        // The control plane is stopped even if stopping the node fails.
        let node = self.node.map_or(Ok(()), Node::stop);
        self.control_plane.stop().and(node)
    }

    fn detach(self) -> Result<(), Error> {
        self.node.map_or(Ok(()), Node::detach)?;
        self.control_plane.detach()
    }
}

// === impl Folder ===

impl Folder {
    fn create(named: Option<&Path>, keep: bool) -> Result<Self, Error> {
        let path = match named {
            Some(path) => {
                fs::create_dir_all(path).map_err(Error::file("create", path))?;
                let empty = fs::read_dir(path).map_err(Error::file("read", path))?.next().is_none();
                if !empty {
                    return Err(Error::NotEmpty { path: path.to_owned() });
                }
                // Programs run with it as their current folder.
                path.canonicalize().map_err(Error::file("open", path))?
            }
            None => {
                let parent = env::temp_dir();
                let folder = tempfile::Builder::new().prefix("devcluster-").tempdir();
                folder.map_err(Error::file("create a folder in", &parent))?.keep()
            }
        };
        let janitor = if keep {
            None
        } else {
            Some(Janitor::for_folder(&path).map_err(Error::process("start", "/bin/sh"))?)
        };
        Ok(Self { path, janitor })
    }

    fn keep(&mut self) -> Result<(), Error> {
        let kept: io::Result<()> = self.janitor.take().map_or(Ok(()), Janitor::disarm);
        kept.map_err(Error::file("keep", &self.path))
    }
}

/// Runs a kubectl command and returns what it prints.
fn output(command: Command) -> Result<String, Error> {
    let words = command.get_args().map(|word| word.to_string_lossy());
    let arguments = words.collect::<Vec<_>>().join(" ");
    let output = Guarded::output(command).map_err(Error::process("start", "kubectl"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Kubectl { arguments, message: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_can_share_a_cluster() {
        fn shared<T: Send + Sync>() {}
        shared::<Cluster>();
    }
}
