//! What can go wrong, and what to do about it. One enum for the crate: most callers only show the message.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use crate::Version;

/// An error of this crate. Each message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Go tool chain is not on PATH, and a program is not in the cache yet.
    #[error(
        "`go` was not found, by which these are built: {programs}: install Go 1.26 or newer (https://go.dev/dl); for a \
         control plane, KUBEBUILDER_ASSETS may name a folder with etcd, kube-apiserver and kubectl instead"
    )]
    GoMissing { programs: String },

    #[error("building {programs} failed ({status}). The end of what `go build` said:\n{output}")]
    Build { programs: String, status: ExitStatus, output: String },

    /// `KUBEBUILDER_ASSETS` names a folder without a binary that is needed.
    #[error("KUBEBUILDER_ASSETS has no {}: put it there, or unset the variable to build it", path.display())]
    MissingAsset {
        /// Where the binary should be.
        path: PathBuf,
    },

    /// A file or a folder could not be used.
    #[error("can't {action} {}: {source}", path.display())]
    File {
        /// What was attempted, such as "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        source: io::Error,
    },

    /// The folder for a new cluster has something in it, which the cluster's end would remove.
    #[error("{} is not empty: name a folder that is empty or does not exist", path.display())]
    NotEmpty { path: PathBuf },

    /// A node was asked for on a system other than Linux.
    #[error("a node needs the Linux kernel's namespaces: leave out --node (Options::node), or use Linux")]
    NodeNeedsLinux,

    /// A node was asked for without root.
    #[error(
        "a node needs root, which alone may make namespaces and networks: run it as root, or leave out --node"
    )]
    NodeNeedsRoot,

    /// A node was asked for with a version of Kubernetes that it does not support.
    #[error("a node runs on Kubernetes {version} only: leave out --node, or the version")]
    NodeVersion {
        /// The version that has nodes.
        version: Version,
    },

    /// A path that the node must see is below one that the node mounts over.
    #[error(
        "a node can't see {}, since it has /run, /var/lib and /var/log of its own: set TMPDIR, CARGO_TARGET_DIR \
         or XDG_CACHE_HOME to another place",
        path.display()
    )]
    NodePath {
        /// The file or folder.
        path: PathBuf,
    },

    /// All the networks that a node could have are in use.
    #[error("no network is free for a node: 10.144.0.0/16 to 10.207.0.0/16 are all routed (`ip route`)")]
    NoNetwork,

    /// A detached cluster runs already, and differs from the one that was asked for.
    #[error("a cluster runs that has no node, or another version: stop it with `cargo cluster down`")]
    RunsDifferently,

    /// An image was to be loaded into a cluster without a node.
    #[error("the cluster has no node to load images into: start it with --node (Options::node)")]
    NoNode,

    /// Packages of the distribution are missing.
    #[error(
        "something of the distribution is missing; install it, on Debian by `apt-get install --no-install-recommends {packages}`{reason}"
    )]
    Packages {
        packages: String,
        /// Why they were not installed automatically, if that needs saying. Else empty.
        reason: String,
    },

    /// A system program failed while it set up a node.
    #[error("`{program}` could not set up the node: {message}")]
    Setup { program: &'static str, message: String },

    /// A tool of etcd failed.
    #[error("`{program}` failed: {message}")]
    Tool { program: &'static str, message: String },

    /// An image could not be loaded.
    #[error("can't load {}: {message}", path.display())]
    Load { path: PathBuf, message: String },

    /// A process could not be started or signalled.
    #[error("can't {action} {process}: {source}")]
    Process {
        /// What was attempted, such as "start".
        action: &'static str,
        process: &'static str,
        source: io::Error,
    },

    /// A process of the cluster ended by itself.
    #[error("{process} ended ({status}). The end of its log, {}:\n{tail}", log.display())]
    Ended {
        process: &'static str,
        status: ExitStatus,
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },

    /// A process of the cluster runs, but was not ready in time.
    #[error(
        "{process} was not ready within {} s ({reason}): raise Options::ready_timeout if the machine is slow. \
         The end of its log, {}:\n{tail}",
        waited.as_secs(),
        log.display()
    )]
    NotReady {
        process: &'static str,
        waited: Duration,
        /// What the last probe said.
        reason: String,
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },

    /// No free port could be found.
    #[error("no free port on 127.0.0.1: {0}")]
    Port(io::Error),

    /// A certificate or a key could not be made.
    #[error("can't make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),

    #[error("`kubectl {arguments}` failed: {message}")]
    Kubectl {
        arguments: String,
        /// What kubectl wrote to stderr.
        message: String,
    },

    /// A fault was requested on a cluster that was not started here.
    #[error(
        "can't {action}: this cluster was named by {}, not started here; unset KUBECONFIG and leave out \
         --kubeconfig to have one started",
        kubeconfig.display()
    )]
    External {
        /// What was attempted, such as "stop the API server".
        action: &'static str,
        /// The kubeconfig that names the cluster.
        kubeconfig: PathBuf,
    },

    #[error("the API server is stopped: call start_apiserver first")]
    ApiserverStopped,

    #[error("the API server runs already: call stop_apiserver first, or restart_apiserver")]
    ApiserverRunning,

    /// The kubeconfig of an existing cluster is not usable.
    #[error("the kubeconfig of the existing cluster is not usable: {0}")]
    Kubeconfig(String),

    /// The detached cluster's state file is not readable.
    #[error("{} is damaged ({source}): stop what it names by hand, then remove it", path.display())]
    State { path: PathBuf, source: serde_json::Error },

    #[error("no cluster runs: start one with `cargo cluster up`")]
    NotRunning,

    /// A process of the detached cluster did not end.
    #[error("process {pid} of the cluster does not end: inspect it with `ps -p {pid}`, then try again")]
    Stuck { pid: u32 },
}

impl Error {
    /// For `map_err` after an operation on a file or a folder.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` after starting or signalling a process.
    pub(crate) fn process(action: &'static str, process: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Process { action, process, source }
    }

    /// Whether another process took the port between its choice and its use: worth a retry.
    pub(crate) fn is_port_conflict(&self) -> bool {
        matches!(self, Self::Ended { tail, .. } if tail.contains("address already in use"))
    }
}
