//! Where the API server keeps its objects, and how an administrator saves and restores them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Error;
use crate::binaries::CACHE;
use crate::control_plane::flag;
use crate::go::{Module, Program};

/// The release that runs in a cluster of the newest version.
const TOOLS: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../go/etcd/go.mod"),
    go_sum: include_str!("../go/etcd/go.sum"),
    ldflags: "-s -w",
};
const ETCDCTL: Program =
    Program { name: "etcdctl", package: "go.etcd.io/etcd/etcdctl/v3", usual: Duration::from_secs(60) };
const ETCDUTL: Program =
    Program { name: "etcdutl", package: "go.etcd.io/etcd/etcdutl/v3", usual: Duration::from_secs(20) };

/// The name of the only member.
const MEMBER: &str = "devcluster";
/// By how much a restore raises the revision, which is more than were written since the snapshot. Otherwise clients that watch
/// keep what is no longer true (<https://github.com/kubernetes/kubernetes/issues/118501>).
const BUMP: &str = "1000000000";

/// The etcd of one control plane.
pub(crate) struct Etcd {
    data: PathBuf,
    pub(crate) client_url: String,
    peer_url: String,
}

impl Etcd {
    pub(crate) fn new(data: &Path, client_port: u16, peer_port: u16) -> Self {
        let url = |port| format!("http://127.0.0.1:{port}");
        Self { data: data.to_owned(), client_url: url(client_port), peer_url: url(peer_port) }
    }

    pub(crate) fn flags(&self) -> Vec<OsString> {
        let Self { data, client_url, peer_url } = self;
        vec![
            flag("--name", MEMBER),
            flag("--data-dir", data),
            // The data need not survive a power failure.
            "--unsafe-no-fsync".into(),
            flag("--listen-client-urls", client_url),
            flag("--advertise-client-urls", client_url),
            flag("--listen-peer-urls", peer_url),
            flag("--initial-advertise-peer-urls", peer_url),
            flag("--initial-cluster", format!("{MEMBER}={peer_url}")),
            // It elects itself after this long; there is no peer that a short timeout could disturb.
            "--heartbeat-interval=10".into(),
            "--election-timeout=100".into(),
            "--log-level=warn".into(),
        ]
    }

    /// Writes a snapshot, while it runs.
    pub(crate) fn save(&self, snapshot: &Path) -> Result<(), Error> {
        let etcdctl = tools()?.join(ETCDCTL.name);
        let mut command = Command::new(etcdctl);
        command.arg(flag("--endpoints", &self.client_url)).args(["snapshot", "save"]).arg(snapshot);
        run(ETCDCTL.name, command)
    }

    /// Replaces the data by those of a snapshot, while it is stopped.
    pub(crate) fn restore(&self, snapshot: &Path) -> Result<(), Error> {
        let etcdutl = tools()?.join(ETCDUTL.name);
        fs::remove_dir_all(&self.data).map_err(Error::file("remove", &self.data))?;
        let mut command = Command::new(etcdutl);
        command
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .arg(flag("--data-dir", &self.data))
            .arg(flag("--name", MEMBER))
            .arg(flag("--initial-cluster", format!("{MEMBER}={}", self.peer_url)))
            .arg(flag("--initial-advertise-peer-urls", &self.peer_url))
            .arg(flag("--bump-revision", BUMP))
            .arg("--mark-compacted");
        run(ETCDUTL.name, command)
    }
}

/// The folder of etcdctl and etcdutl, which are built the first time.
pub(crate) fn tools() -> Result<PathBuf, Error> {
    TOOLS.provide(&[&ETCDCTL, &ETCDUTL])
}

fn run(name: &'static str, mut command: Command) -> Result<(), Error> {
    let output = command.output().map_err(Error::process("start", name))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Tool { program: name, message })
}
