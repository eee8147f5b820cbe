//! A real Kubernetes for tests and the demo: a control plane on loopback, and with [`Options::node`] a node.
//!
//! ```no_run
//! let cluster = devcluster::Cluster::start(devcluster::Options::default())?;
//! let status = cluster.kubectl().args(["create", "namespace", "demo"]).status();
//! # Ok::<(), devcluster::Error>(())
//! ```
//!
//! etcd, kube-apiserver, kube-controller-manager and kubectl are built from Go modules that are pinned by
//! hash, so it needs no container engine, no root and no installed Kubernetes. Without a node, objects are
//! stored, validated, watched and garbage-collected as in any cluster, but pods don't run. A node (containerd, runc,
//! kubelet, kube-proxy, CoreDNS, a scheduler) needs root and Linux; its images come from files ([`Image`]).
//!
//! Map: [`Cluster`] is what users see. `control_plane` starts the processes, each in a [`process::Guarded`], so that
//! none outlives its owner. `node` does the same in kernel namespaces, which end as a whole. `network` assigns
//! addresses. [`Binaries`] are built once by [`go`] and stored in a [`cache`], with [`progress`] on stderr; other
//! crates get their programs in the same way. `pki` and `kubeconfig` make identities. [`state`] is
//! `cargo cluster up`: the one case in which processes outlive the command.

mod binaries;
pub mod cache;
mod cluster;
mod control_plane;
mod error;
mod etcd;
pub mod go;
mod identity;
mod image;
mod kubeconfig;
mod network;
mod node;
pub mod packages;
mod pki;
pub mod process;
pub mod progress;
mod service;
pub mod state;

use std::env;
use std::path::{Path, PathBuf};

pub use binaries::{Binaries, Version};
pub use cluster::{Cluster, Options};
pub use error::Error;
pub use image::Image;

/// Installs and builds what a node needs, without starting one.
pub fn build_node() -> Result<(), Error> {
    node::check(&Options { node: true, ..Options::default() })?;
    node::Programs::provide().map(drop)
}

/// Builds what saves and restores etcd, unless it is there.
pub fn build_etcd_tools() -> Result<(), Error> {
    etcd::tools().map(drop)
}

/// Cargo's target folder of this workspace.
fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
    }
}
