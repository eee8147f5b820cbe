//! What can go wrong, and what to do about it. One enum for the crate: its callers either show the message
//! or give up, and few errors are told apart.

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
    GoMissing {
        /// Their names.
        programs: String,
    },

    /// `go build` failed.
    #[error("building {programs} failed ({status}). The end of what `go build` said:\n{output}")]
    Build {
        /// What was being built.
        programs: String,
        /// How `go build` ended.
        status: ExitStatus,
        /// The end of its output.
        output: String,
    },

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
        /// Why.
        source: io::Error,
    },

    /// The folder for a new cluster has something in it, which the cluster's end would remove.
    #[error("{} is not empty: name a folder that is empty or does not exist", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },

    /// A node was asked for on another system.
    #[error("a node needs the Linux kernel's namespaces: leave out --node (Options::node), or use Linux")]
    NodeNeedsLinux,

    /// A node was asked for by somebody who may not make one.
    #[error(
        "a node needs root, which alone may make namespaces and networks: run it as root, or leave out --node"
    )]
    NodeNeedsRoot,

    /// A node was asked for on another version of Kubernetes.
    #[error("a node runs on Kubernetes {version} only: leave out --node, or the version")]
    NodeVersion {
        /// The version that has nodes.
        version: Version,
    },

    /// A file that the node must see is in a place where it has files of its own.
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

    /// The detached cluster is not the one that was asked for.
    #[error("a cluster runs that has no node, or another version: stop it with `cargo cluster down`")]
    RunsDifferently,

    /// An image was to be loaded and there is no node.
    #[error("the cluster has no node to load images into: start it with --node (Options::node)")]
    NoNode,

    /// Packages of the distribution are missing.
    #[error(
        "something of the distribution is missing; install it, on Debian by `apt-get install --no-install-recommends {packages}`{reason}"
    )]
    Packages {
        /// Their names.
        packages: String,
        /// Why it was not done here, if that is not plain.
        reason: String,
    },

    /// A program of the system refused to set something up for a node.
    #[error("`{program}` could not set up the node: {message}")]
    Setup {
        /// The program.
        program: &'static str,
        /// What it said.
        message: String,
    },

    /// An image could not be loaded.
    #[error("can't load {}: {message}", path.display())]
    Load {
        /// The archive.
        path: PathBuf,
        /// What containerd said.
        message: String,
    },

    /// A process could not be started or signalled.
    #[error("can't {action} {process}: {source}")]
    Process {
        /// What was attempted, such as "start".
        action: &'static str,
        /// The process.
        process: &'static str,
        /// Why.
        source: io::Error,
    },

    /// A process of the control plane ended by itself.
    #[error("{process} ended ({status}). The end of its log, {}:\n{tail}", log.display())]
    Ended {
        /// The process.
        process: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },

    /// A process of the control plane runs, but was not ready in time.
    #[error(
        "{process} was not ready within {} s ({reason}): raise Options::ready_timeout if the machine is slow. \
         The end of its log, {}:\n{tail}",
        waited.as_secs(),
        log.display()
    )]
    NotReady {
        /// The process.
        process: &'static str,
        /// How long it had.
        waited: Duration,
        /// What the last probe said.
        reason: String,
        /// Its log.
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

    /// `kubectl` was refused or failed.
    #[error("`kubectl {arguments}` failed: {message}")]
    Kubectl {
        /// Its arguments.
        arguments: String,
        /// Its standard error.
        message: String,
    },

    /// A fault was asked of a cluster that is not ours.
    #[error(
        "can't {action}: this cluster was named by {}, not started here; unset KUBECONFIG and leave out \
         --kubeconfig to have one started",
        kubeconfig.display()
    )]
    External {
        /// What was asked, such as "stop the API server".
        action: &'static str,
        /// The kubeconfig that names the cluster.
        kubeconfig: PathBuf,
    },

    /// The API server was asked to stop or pause while stopped.
    #[error("the API server is stopped: call start_apiserver first")]
    ApiserverStopped,

    /// The API server was asked to start while it runs.
    #[error("the API server runs already: call stop_apiserver first, or restart_apiserver")]
    ApiserverRunning,

    /// The kubeconfig of an existing cluster is not usable.
    #[error("the kubeconfig of the existing cluster is not usable: {0}")]
    Kubeconfig(String),

    /// The detached cluster's state file is not readable.
    #[error("{} is damaged ({source}): stop what it names by hand, then remove it", path.display())]
    State {
        /// The state file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },

    /// No detached cluster runs.
    #[error("no cluster runs: start one with `cargo cluster up`")]
    NotRunning,

    /// A process of the detached cluster did not end.
    #[error("process {pid} of the cluster does not end: look at it with `ps -p {pid}`, then try again")]
    Stuck {
        /// Its process id.
        pid: u32,
    },
}

impl Error {
    /// For `map_err` on what touches a file or a folder.
    pub fn file(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` on what starts or signals a process.
    pub(crate) fn process(action: &'static str, process: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Process { action, process, source }
    }

    /// Whether another process took the port between its choice and its use: worth another try.
    pub(crate) fn is_port_conflict(&self) -> bool {
        matches!(self, Self::Ended { tail, .. } if tail.contains("address already in use"))
    }
}
