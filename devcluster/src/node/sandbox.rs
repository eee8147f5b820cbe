//! Isolates a node: its processes, mounts and network are in kernel namespaces of their own (namespaces(7)). When
//! their first process ends, however that happens, the kernel ends all the others, unmounts what was mounted, and
//! removes interfaces, routes and packet filters. So cleaning up needs no process that might be dead, the machine's
//! own settings stay as they are, and nodes don't interfere.
//!
//! Two things are outside: one end of a link, which the kernel removes with the other one, and control groups,
//! which a watchdog removes.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::identity::Identity;
use crate::network::NodeNetwork;
use crate::process::{Guarded, Janitor};
use crate::service::{Launcher, Service};

const INIT: &str = include_str!("init.sh");
const REMOVE_CGROUPS: &str = include_str!("cgroups.sh");
/// The networks of nodes: `10.144.0.0/16` and the next 63. Companies and container engines mostly use others.
const FIRST_NETWORK: u8 = 144;
const NETWORKS: u8 = 64;

/// The namespaces of one node.
pub(crate) struct Sandbox {
    namespaces: Namespaces,
    network: NodeNetwork,
    /// Dropped before the janitor, as control groups can be removed only once their processes have ended.
    init: Service,
    cgroups: Janitor,
}

/// How to enter a node's namespaces, and the name of what it has outside. Serializable, for use by another process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Namespaces {
    init: Identity,
    /// The name of the interface, the control groups and the node.
    name: String,
}

// === impl Sandbox ===

impl Sandbox {
    /// Creates the namespaces, and a link to them.
    pub(crate) fn start(launcher: &Launcher, folder: &Path) -> Result<Self, Error> {
        for name in ["lib", "log", "sysctl"] {
            let folder = folder.join(name);
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        }
        let mut flags: Vec<OsString> =
            ["--fork", "--kill-child", "--pid", "--mount", "--net", "/bin/sh", "-c"]
                .map(OsString::from)
                .into();
        flags.extend([INIT.into(), "devcluster-node".into(), folder.into()]);
        let mut init = launcher.spawn("node", Path::new("unshare"), &flags)?;
        let file = folder.join("pid");
        launcher.wait_ready(&mut init, || {
            if file.exists() { Ok(()) } else { Err("its namespaces are not made yet".to_owned()) }
        })?;
        let pid = fs::read_to_string(&file).map_err(Error::file("read", &file))?;
        let identity = pid.trim().parse().ok().and_then(Identity::of).ok_or(Error::NotRunning)?;

        let (name, network) = link(identity.pid())?;
        let cgroups = Janitor::watch(REMOVE_CGROUPS, &[OsStr::new(&name)]);
        let cgroups = cgroups.map_err(Error::process("start", "/bin/sh"))?;
        let sandbox = Self { namespaces: Namespaces { init: identity, name }, network, init, cgroups };
        sandbox.connect()?;
        make_cgroups(&sandbox.namespaces.name)?;
        Ok(sandbox)
    }

    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    pub(crate) fn network(&self) -> NodeNetwork {
        self.network
    }

    /// Name and process id of the first process.
    pub(crate) fn process(&self) -> (&'static str, u32) {
        (self.init.name, self.namespaces.init.pid())
    }

    /// Ends everything in the namespaces.
    pub(crate) fn stop(self) -> Result<(), Error> {
        let Self { mut init, cgroups, .. } = self;
        // SIGKILL, which the kernel passes on to all the others: there is no state worth saving.
        init.process.kill().map_err(Error::process("stop", init.name))?;
        cgroups.trigger();
        Ok(())
    }

    /// Lets the namespaces outlive this process.
    pub(crate) fn detach(self) -> Result<(), Error> {
        self.init.process.detach().map_err(Error::process("detach", self.init.name))?;
        self.cgroups.disarm().map_err(Error::process("detach", self.init.name))
    }

    /// Gives addresses to both ends of the link, and routes the cluster's network through it.
    fn connect(&self) -> Result<(), Error> {
        let (name, network) = (&self.namespaces.name, self.network);
        let ip = |line: String| run("ip", line.split(' '));
        ip(format!("address add {}/30 dev {name}", network.host()))?;
        ip(format!("link set {name} up"))?;
        ip(format!("route add {} via {}", network.all(), network.node()))?;
        let inside = |line: String| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            run("nsenter", self.namespaces.enter("ip", &words))
        };
        inside(format!("address add {}/30 dev eth0", network.node()))?;
        inside("link set eth0 up".to_owned())?;
        inside(format!("route add default via {}", network.host()))
    }
}

// === impl Namespaces ===

impl Namespaces {
    /// The name of the node.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The arguments of `nsenter` that run a program on the node.
    pub(crate) fn enter(&self, program: impl AsRef<OsStr>, flags: &[OsString]) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["--mount", "--net", "--pid", "--target"].map(OsString::from).into();
        words.extend([self.init.pid().to_string().into(), "--".into(), program.as_ref().to_owned()]);
        words.extend_from_slice(flags);
        words
    }

    /// Removes what outlives the node's processes. Only for a detached node; others have a janitor.
    pub(crate) fn clean(&self) -> Result<(), Error> {
        run("/bin/sh", ["-c", REMOVE_CGROUPS, "devcluster-cgroups", &self.name])
    }
}

/// Creates a link into the network namespace of a process, with the first free name and network. The kernel makes
/// sure that only one process gets a name.
fn link(pid: u32) -> Result<(String, NodeNetwork), Error> {
    let mut last = None;
    for index in 0..NETWORKS {
        let (name, network) = (format!("devcluster{index}"), NodeNetwork(FIRST_NETWORK + index));
        if is_routed(network)? {
            continue;
        }
        let line = format!("link add {name} type veth peer name eth0 netns {pid}");
        match run("ip", line.split(' ')) {
            Ok(()) => return Ok((name, network)),
            Err(error) if Path::new("/sys/class/net").join(&name).exists() => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(Error::NoNetwork))
}

/// Whether this machine already has a route for a part of this network.
fn is_routed(network: NodeNetwork) -> Result<bool, Error> {
    let mut command = Command::new("ip");
    command.args(["-4", "route", "show", "root", &network.all()]);
    let output = Guarded::output(command).map_err(Error::process("start", "ip"))?;
    Ok(!output.stdout.is_empty())
}

/// Creates the control groups below which the kubelet puts its pods: one, or with cgroups v1 one for each controller.
fn make_cgroups(name: &str) -> Result<(), Error> {
    for root in cgroup_roots() {
        let path = root.join(name);
        // Removes an empty one that an earlier node of this name has left; the kubelet creates what is below.
        fs::create_dir_all(&path).map_err(Error::file("create", &path))?;
    }
    Ok(())
}

fn cgroup_roots() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let folders = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    folders.filter(|path| path.join("cgroup.procs").exists()).collect()
}

/// Runs a program of the system to its end.
fn run(program: &'static str, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.args(words);
    let output = Guarded::output(command).map_err(Error::process("start", program))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Setup { program, message: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}
