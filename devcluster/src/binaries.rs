//! Where the programs of the control plane come from.
//!
//! They are built from the pinned module in `go/control-plane` ([`crate::go`]), once for each user.
//! `KUBEBUILDER_ASSETS` names a folder of prebuilt ones instead, as it does for other Kubernetes test tools.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::go::{Module, Program};

const CONTROL_PLANE: Module = Module {
    cache: "tokenward-devcluster",
    go_mod: include_str!("../go/control-plane/go.mod"),
    go_sum: include_str!("../go/control-plane/go.sum"),
    ldflags: LDFLAGS,
};

/// Without these, clients would see the server as v0.0.0. The version is that of go.mod, which a test compares.
const LDFLAGS: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=36 \
    -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3";

const KUBE_APISERVER: Program = Program {
    name: "kube-apiserver",
    package: "k8s.io/kubernetes/cmd/kube-apiserver",
    usual: Duration::from_secs(180),
};
const KUBE_CONTROLLER_MANAGER: Program = Program {
    name: "kube-controller-manager",
    package: "k8s.io/kubernetes/cmd/kube-controller-manager",
    usual: Duration::from_secs(50),
};
const KUBECTL: Program =
    Program { name: "kubectl", package: "k8s.io/kubernetes/cmd/kubectl", usual: Duration::from_secs(20) };
const ETCD: Program =
    Program { name: "etcd", package: "go.etcd.io/etcd/server/v3", usual: Duration::from_secs(10) };

/// The largest first: its estimate is the one that counts.
const ALL: [&Program; 4] = [&KUBE_APISERVER, &KUBE_CONTROLLER_MANAGER, &KUBECTL, &ETCD];

/// The programs of the control plane, ready to run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Binaries {
    /// The database.
    pub etcd: PathBuf,
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// The controllers of Kubernetes itself. Only a folder of prebuilt programs may lack it.
    pub kube_controller_manager: Option<PathBuf>,
    /// The command-line client.
    pub kubectl: PathBuf,
}

impl Binaries {
    /// Finds the programs, and builds those that are missing (minutes at the first time; shown on stderr).
    pub fn provide() -> Result<Self, Error> {
        if let Some(folder) = assets() {
            let controller_manager = folder.join(KUBE_CONTROLLER_MANAGER.name);
            return Ok(Self {
                etcd: prebuilt(&folder, &ETCD)?,
                kube_apiserver: prebuilt(&folder, &KUBE_APISERVER)?,
                kube_controller_manager: controller_manager.is_file().then_some(controller_manager),
                kubectl: prebuilt(&folder, &KUBECTL)?,
            });
        }
        let cache = CONTROL_PLANE.provide(&ALL)?;
        Ok(Self {
            etcd: cache.join(ETCD.name),
            kube_apiserver: cache.join(KUBE_APISERVER.name),
            kube_controller_manager: Some(cache.join(KUBE_CONTROLLER_MANAGER.name)),
            kubectl: cache.join(KUBECTL.name),
        })
    }
}

/// Finds a kubectl for a cluster that is not ours. The one on PATH will do: its owner uses it there.
pub(crate) fn kubectl() -> Result<PathBuf, Error> {
    if let Some(folder) = assets() {
        return prebuilt(&folder, &KUBECTL);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(found) =
        env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|path| path.is_file())
    {
        return Ok(found);
    }
    Ok(CONTROL_PLANE.provide(&[&KUBECTL])?.join(KUBECTL.name))
}

fn assets() -> Option<PathBuf> {
    env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

fn prebuilt(folder: &Path, program: &Program) -> Result<PathBuf, Error> {
    let path = folder.join(program.name);
    if path.is_file() { Ok(path) } else { Err(Error::MissingAsset { path }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn the_version_that_is_shown_is_the_version_that_is_built() {
        let version = CONTROL_PLANE
            .go_mod
            .lines()
            .find_map(|line| line.trim_start_matches("require ").trim().strip_prefix("k8s.io/kubernetes "))
            .and_then(|rest| rest.split_whitespace().next())
            .unwrap();
        for variable in ["component-base/version.gitVersion", "client-go/pkg/version.gitVersion"] {
            assert!(LDFLAGS.contains(&format!("{variable}={version}")), "{variable} is not {version}");
        }
        let mut parts = version.trim_start_matches('v').split('.');
        assert!(LDFLAGS.contains(&format!("gitMajor={} ", parts.next().unwrap())));
        assert!(LDFLAGS.contains(&format!("gitMinor={} ", parts.next().unwrap())));
    }

    #[test]
    fn every_program_is_a_tool_of_the_module() {
        for program in ALL {
            assert!(
                CONTROL_PLANE.go_mod.lines().any(|line| line.trim() == program.package),
                "{}",
                program.package
            );
        }
    }
}
