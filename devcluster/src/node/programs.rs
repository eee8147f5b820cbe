//! Where the programs of a node come from: pinned Go modules, and a few packages of the distribution.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::binaries::NodeBinaries;
use crate::go::{Module, Program, Recipe};
use crate::packages::{self, Need};

const CACHE: &str = "tokenward-devcluster";

const CONTAINERD: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../../go/containerd/go.mod"),
    go_sum: include_str!("../../go/containerd/go.sum"),
    ldflags: "-s -w",
};
/// Without the snapshotters that need C libraries.
const CONTAINERD_RECIPE: Recipe = Recipe { tags: "no_btrfs,no_devmapper,no_zfs", cgo: false, main: None };
const CONTAINERD_PROGRAMS: [&Program; 3] = [
    &Program {
        name: "containerd",
        package: "github.com/containerd/containerd/v2/cmd/containerd",
        usual: Duration::from_secs(80),
    },
    &Program {
        name: "containerd-shim-runc-v2",
        package: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        usual: Duration::from_secs(10),
    },
    &Program {
        name: "ctr",
        package: "github.com/containerd/containerd/v2/cmd/ctr",
        usual: Duration::from_secs(15),
    },
];

const RUNC: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../../go/runc/go.mod"),
    go_sum: include_str!("../../go/runc/go.sum"),
    ldflags: "-s -w",
};
/// Without seccomp it fails on the profile that every container gets.
const RUNC_RECIPE: Recipe = Recipe { tags: "seccomp", cgo: true, main: None };
const RUNC_PROGRAM: Program =
    Program { name: "runc", package: "github.com/opencontainers/runc", usual: Duration::from_secs(16) };

const COREDNS: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../../go/coredns/go.mod"),
    go_sum: include_str!("../../go/coredns/go.sum"),
    ldflags: "-s -w",
};
const COREDNS_RECIPE: Recipe =
    Recipe { tags: "", cgo: false, main: Some(include_str!("../../go/coredns/main.go")) };
const COREDNS_PROGRAM: Program = Program { name: "coredns", package: ".", usual: Duration::from_secs(100) };

const PAUSE: Module =
    Module { cache: CACHE, go_mod: include_str!("../../go/pause/go.mod"), go_sum: "", ldflags: "-s -w" };
const PAUSE_RECIPE: Recipe =
    Recipe { tags: "", cgo: false, main: Some(include_str!("../../go/pause/main.go")) };
const PAUSE_PROGRAM: Program = Program { name: "pause", package: ".", usual: Duration::from_secs(2) };

/// A CNI plugin; the others are in the same folder.
const CNI: Need = Need {
    any_of: &["/usr/lib/cni/ptp", "/opt/cni/bin/ptp", "/usr/libexec/cni/ptp"],
    package: "containernetworking-plugins",
    service: None,
};
const NFT: Need = Need { any_of: &["nft"], package: "nftables", service: None };
const IP: Need = Need { any_of: &["ip"], package: "iproute2", service: None };
const UNSHARE: Need = Need { any_of: &["unshare"], package: "util-linux", service: None };
const NSENTER: Need = Need { any_of: &["nsenter"], package: "util-linux", service: None };
const MOUNT: Need = Need { any_of: &["mount"], package: "mount", service: None };
/// Needed to build runc, with the next two.
const SECCOMP: Need = Need { any_of: &["/usr/include/seccomp.h"], package: "libseccomp-dev", service: None };
const PKG_CONFIG: Need = Need { any_of: &["pkg-config"], package: "pkg-config", service: None };
const CC: Need = Need { any_of: &["cc", "gcc", "clang"], package: "gcc", service: None };

/// All programs of a node, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) kubernetes: NodeBinaries,
    pub(crate) containerd: PathBuf,
    pub(crate) ctr: PathBuf,
    pub(crate) runc: PathBuf,
    pub(crate) coredns: PathBuf,
    pub(crate) pause: PathBuf,
    /// The folder of the CNI plugins.
    pub(crate) cni: PathBuf,
}

impl Programs {
    /// Finds the programs, installs packages and builds what is missing; shown on stderr.
    pub(crate) fn provide() -> Result<Self, Error> {
        packages::provide(&[CNI, NFT, IP, UNSHARE, NSENTER, MOUNT, SECCOMP, PKG_CONFIG, CC])?;
        let plugin = CNI.find().unwrap_or_default();
        let containerd = CONTAINERD.provide_by(&CONTAINERD_RECIPE, &CONTAINERD_PROGRAMS)?;
        let one = |module: &Module, recipe: &Recipe, program: &Program| -> Result<PathBuf, Error> {
            Ok(module.provide_by(recipe, &[program])?.join(program.name))
        };
        Ok(Self {
            kubernetes: NodeBinaries::provide()?,
            ctr: containerd.join("ctr"),
            containerd: containerd.join("containerd"),
            runc: one(&RUNC, &RUNC_RECIPE, &RUNC_PROGRAM)?,
            coredns: one(&COREDNS, &COREDNS_RECIPE, &COREDNS_PROGRAM)?,
            pause: one(&PAUSE, &PAUSE_RECIPE, &PAUSE_PROGRAM)?,
            cni: plugin.parent().unwrap_or(Path::new("/")).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_a_tool_of_its_module() {
        for program in CONTAINERD_PROGRAMS {
            assert!(CONTAINERD.go_mod.lines().any(|line| line.trim() == program.package));
        }
        assert!(RUNC.go_mod.lines().any(|line| line == format!("tool {}", RUNC_PROGRAM.package)));
    }
}
