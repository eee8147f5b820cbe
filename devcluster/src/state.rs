//! The detached cluster: `cargo cluster up` starts it, and a later `cargo cluster down` finds and stops it.
//!
//! A state file lists what runs, by process id and start time. It is written before the processes are detached: if
//! `up` is killed at any moment, it leaves either guarded processes, which end with it, or a state that `down` reads.
//! A state whose processes are gone (a reboot) is cleaned up by the next `up`. One lock serializes all commands.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Options};
use crate::control_plane::{kubectl, write_private};
use crate::identity::Identity;
use crate::node::Loader;
use crate::{Error, target_dir};

/// How long a process may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// The detached cluster of a workspace, in the folder `devcluster` of Cargo's target folder.
#[derive(Clone, Debug)]
pub struct DetachedCluster(PathBuf);

/// The content of the state file.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Running {
    url: String,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    logs: PathBuf,
    /// The version that was requested, if one was.
    version: Option<String>,
    /// `None` for a control plane without a node.
    node: Option<Loader>,
    processes: Vec<Process>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Process {
    name: String,
    #[serde(flatten)]
    identity: Identity,
}

#[derive(Clone, Debug)]
pub enum Up {
    Started(Running),
    AlreadyRunning(Running),
}

// === impl Running ===

impl Running {
    /// The URL of the API server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The kubeconfig with all rights.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The kubectl of the cluster's own version.
    pub fn kubectl(&self) -> &Path {
        &self.kubectl
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// Whether it has a node.
    pub fn has_node(&self) -> bool {
        self.node.is_some()
    }

    /// Whether it differs from what `options` ask for.
    fn differs(&self, options: &Options) -> bool {
        let version = options.version.map(|version| version.to_string());
        (options.node && self.node.is_none()) || (version.is_some() && version != self.version)
    }

    /// Name, process id, and whether it runs, for each process.
    pub fn processes(&self) -> impl Iterator<Item = (&str, u32, bool)> {
        self.processes
            .iter()
            .map(|process| (process.name.as_str(), process.identity.pid(), process.identity.is_alive()))
    }

    /// Whether every process of the cluster runs.
    pub fn is_whole(&self) -> bool {
        self.processes.iter().all(|process| process.identity.is_alive())
    }
}

// === impl DetachedCluster ===

impl DetachedCluster {
    pub fn of_workspace() -> Self {
        Self(target_dir().join("devcluster"))
    }

    /// Starts a cluster that runs until [`DetachedCluster::down`], unless one runs already. What is left of an incomplete one is
    /// stopped and removed first. `kubeconfig` is where the kubeconfig is written; by default beside the state.
    /// The folder in `options` is ignored: it is always below this one.
    pub fn up(&self, options: Options, kubeconfig: Option<PathBuf>) -> Result<Up, Error> {
        let _lock = self.lock()?;
        let root = self.0.canonicalize().map_err(Error::file("open", &self.0))?;
        if let Some(running) = self.read()? {
            if running.is_whole() {
                let wanted = !running.differs(&options);
                return if wanted { Ok(Up::AlreadyRunning(running)) } else { Err(Error::RunsDifferently) };
            }
            self.clean(&running)?;
        }
        // Also without a state: `up` may have been killed together with its watchdogs.
        remove(&self.run())?;

        let options = Options { dir: Some(self.run()), keep_dir: false, ..options };
        let cluster = Cluster::launch(&options, true)?;
        let kubeconfig = kubeconfig.unwrap_or_else(|| root.join("kubeconfig"));
        let kubeconfig = std::path::absolute(&kubeconfig).map_err(Error::file("find", &kubeconfig))?;
        let text = fs::read_to_string(cluster.kubeconfig());
        write_private(&kubeconfig, &text.map_err(Error::file("read", cluster.kubeconfig()))?)?;
        let mut processes = Vec::new();
        for (name, pid) in cluster.processes() {
            // One that has just ended leaves an incomplete state, which the next `up` repairs.
            let identity = Identity::of(pid).ok_or(Error::NotRunning)?;
            processes.push(Process { name: name.to_owned(), identity });
        }
        let running = Running {
            url: cluster.url().to_owned(),
            kubeconfig,
            kubectl: link(cluster.kubectl_program(), &root.join("bin"))?,
            logs: cluster.dir().join("logs"),
            version: options.version.map(|version| version.to_string()),
            node: cluster.loader(),
            processes,
        };
        write_private(&self.state(), &format!("{:#}\n", serde_json::json!(running)))?;
        cluster.detach()?;
        Ok(Up::Started(running))
    }

    /// Stops the cluster and removes its data. Returns whether there was one.
    pub fn down(&self) -> Result<bool, Error> {
        if !self.0.exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let Some(running) = self.read()? else { return Ok(false) };
        self.clean(&running)?;
        Ok(true)
    }

    /// The cluster that runs, or whose processes have ended without [`DetachedCluster::down`].
    pub fn status(&self) -> Result<Option<Running>, Error> {
        self.read()
    }

    /// Loads the images of a docker-archive into the node of the running cluster.
    pub fn load_image(&self, archive: &Path) -> Result<(), Error> {
        let running = self.read()?.filter(Running::is_whole).ok_or(Error::NotRunning)?;
        running.node.ok_or(Error::NoNode)?.load(archive)
    }

    /// A kubectl command for the running cluster. Add arguments and run it.
    pub fn kubectl(&self) -> Result<Command, Error> {
        let running = self.read()?.filter(Running::is_whole).ok_or(Error::NotRunning)?;
        Ok(kubectl(&running.kubectl, &running.kubeconfig, &self.run()))
    }

    fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    fn lock(&self) -> Result<File, Error> {
        fs::create_dir_all(&self.0).map_err(Error::file("create", &self.0))?;
        let path = self.0.join("lock");
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(file)
    }

    fn read(&self) -> Result<Option<Running>, Error> {
        let path = self.state();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(Error::file("read", &path))?,
        };
        serde_json::from_str(&text).map(Some).map_err(|source| Error::State { path, source })
    }

    /// Stops what runs of a cluster, in the order in which it is listed, etcd last. The state is removed after all
    /// else, so that a failure can be retried.
    fn clean(&self, running: &Running) -> Result<(), Error> {
        for process in &running.processes {
            process.identity.terminate(GRACE)?;
        }
        if let Some(node) = &running.node {
            node.namespaces.clean()?;
        }
        remove(&self.run())?;
        remove(&running.kubeconfig)?;
        remove(&self.state())
    }
}

/// Links kubectl from a folder that people find. Not a copy: the program is large.
fn link(program: &Path, folder: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    let path = folder.join("kubectl");
    remove(&path)?;
    std::os::unix::fs::symlink(program, &path).map_err(Error::file("link", &path))?;
    Ok(path)
}

/// Removes a file or a folder, if it is there.
fn remove(path: &Path) -> Result<(), Error> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(Error::file("remove", path)),
    }
}
