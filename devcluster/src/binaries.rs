//! Where the programs of Kubernetes come from.
//!
//! They are built from a pinned module for each version, below `go/` ([`crate::go`]), once for each user.
//! `KUBEBUILDER_ASSETS` names a folder of prebuilt ones instead, as it does for other Kubernetes test tools.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::Error;
use crate::go::{Module, Program};

/// A minor version of Kubernetes: the oldest and the newest that tokenward supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    V1_33,
    #[default]
    V1_36,
}

pub(crate) const CACHE: &str = "tokenward-devcluster";

const V1_33: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../go/kubernetes-1.33/go.mod"),
    go_sum: include_str!("../go/kubernetes-1.33/go.sum"),
    // Without these, clients would see the server as v0.0.0. The version is that of go.mod, which a test compares.
    ldflags: "-s -w \
        -X k8s.io/component-base/version.gitVersion=v1.33.13 \
        -X k8s.io/component-base/version.gitMajor=1 \
        -X k8s.io/component-base/version.gitMinor=33 \
        -X k8s.io/client-go/pkg/version.gitVersion=v1.33.13",
};
const V1_36: Module = Module {
    cache: CACHE,
    go_mod: include_str!("../go/kubernetes-1.36/go.mod"),
    go_sum: include_str!("../go/kubernetes-1.36/go.sum"),
    ldflags: "-s -w \
        -X k8s.io/component-base/version.gitVersion=v1.36.3 \
        -X k8s.io/component-base/version.gitMajor=1 \
        -X k8s.io/component-base/version.gitMinor=36 \
        -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3",
};

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
const KUBE_SCHEDULER: Program = Program {
    name: "kube-scheduler",
    package: "k8s.io/kubernetes/cmd/kube-scheduler",
    usual: Duration::from_secs(20),
};
const KUBELET: Program =
    Program { name: "kubelet", package: "k8s.io/kubernetes/cmd/kubelet", usual: Duration::from_secs(20) };
const KUBE_PROXY: Program = Program {
    name: "kube-proxy",
    package: "k8s.io/kubernetes/cmd/kube-proxy",
    usual: Duration::from_secs(10),
};

/// The largest first: its duration is the estimate that is shown.
const CONTROL_PLANE: [&Program; 4] = [&KUBE_APISERVER, &KUBE_CONTROLLER_MANAGER, &KUBECTL, &ETCD];
const NODE: [&Program; 3] = [&KUBE_SCHEDULER, &KUBELET, &KUBE_PROXY];

/// The programs of the control plane, ready to run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Binaries {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    /// `None` only if a folder of prebuilt programs lacks it.
    pub kube_controller_manager: Option<PathBuf>,
    pub kubectl: PathBuf,
}

/// The programs of Kubernetes that run on a node.
#[derive(Clone, Debug)]
pub(crate) struct NodeBinaries {
    pub(crate) kube_scheduler: PathBuf,
    pub(crate) kubelet: PathBuf,
    pub(crate) kube_proxy: PathBuf,
}

// === impl Version ===

impl Version {
    const ALL: [Self; 2] = [Self::V1_33, Self::V1_36];

    fn name(self) -> &'static str {
        match self {
            Self::V1_33 => "1.33",
            Self::V1_36 => "1.36",
        }
    }

    fn module(self) -> &'static Module {
        match self {
            Self::V1_33 => &V1_33,
            Self::V1_36 => &V1_36,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(" and ");
        let found = Self::ALL.into_iter().find(|version| version.name() == text);
        found.ok_or_else(|| format!("there are {}", known()))
    }
}

// === impl Binaries ===

impl Binaries {
    /// Finds the programs of the newest version, and builds those that are missing (minutes the first time; progress
    /// on stderr). Prebuilt ones take precedence.
    pub fn provide() -> Result<Self, Error> {
        Self::provide_version(None)
    }

    /// The same for a given version, which is always built: the version of prebuilt programs is not known.
    pub fn provide_version(version: Option<Version>) -> Result<Self, Error> {
        if let Some(folder) = assets().filter(|_| version.is_none()) {
            let controller_manager = folder.join(KUBE_CONTROLLER_MANAGER.name);
            return Ok(Self {
                etcd: prebuilt(&folder, &ETCD)?,
                kube_apiserver: prebuilt(&folder, &KUBE_APISERVER)?,
                kube_controller_manager: controller_manager.is_file().then_some(controller_manager),
                kubectl: prebuilt(&folder, &KUBECTL)?,
            });
        }
        let cache = version.unwrap_or_default().module().provide(&CONTROL_PLANE)?;
        Ok(Self {
            etcd: cache.join(ETCD.name),
            kube_apiserver: cache.join(KUBE_APISERVER.name),
            kube_controller_manager: Some(cache.join(KUBE_CONTROLLER_MANAGER.name)),
            kubectl: cache.join(KUBECTL.name),
        })
    }
}

impl NodeBinaries {
    /// Finds or builds the programs, of the newest version.
    pub(crate) fn provide() -> Result<Self, Error> {
        let cache = V1_36.provide(&NODE)?;
        Ok(Self {
            kube_scheduler: cache.join(KUBE_SCHEDULER.name),
            kubelet: cache.join(KUBELET.name),
            kube_proxy: cache.join(KUBE_PROXY.name),
        })
    }
}

/// Finds a kubectl for an external cluster: the one on PATH, which its user uses too.
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
    Ok(V1_36.provide(&[&KUBECTL])?.join(KUBECTL.name))
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
        for wanted in Version::ALL {
            let Module { go_mod, ldflags, .. } = wanted.module();
            let version = go_mod
                .lines()
                .find_map(|line| {
                    line.trim_start_matches("require ").trim().strip_prefix("k8s.io/kubernetes ")
                })
                .and_then(|rest| rest.split_whitespace().next())
                .unwrap();
            assert!(version.starts_with(&format!("v{wanted}.")), "{wanted} is {version}");
            for variable in ["component-base/version.gitVersion", "client-go/pkg/version.gitVersion"] {
                assert!(ldflags.contains(&format!("{variable}={version}")), "{variable} is not {version}");
            }
            let mut parts = version.trim_start_matches('v').split('.');
            assert!(ldflags.contains(&format!("gitMajor={} ", parts.next().unwrap())));
            assert!(ldflags.contains(&format!("gitMinor={} ", parts.next().unwrap())));
        }
    }

    #[test]
    fn every_program_is_a_tool_of_its_module() {
        let has = |module: &Module, program: &Program| {
            let found = module.go_mod.lines().any(|line| line.trim() == program.package);
            assert!(found, "{}", program.package);
        };
        for version in Version::ALL {
            CONTROL_PLANE.iter().for_each(|program| has(version.module(), program));
        }
        NODE.iter().for_each(|program| has(&V1_36, program));
    }

    #[test]
    fn a_version_is_parsed_as_people_write_it() {
        assert_eq!("1.33".parse(), Ok(Version::V1_33));
        assert_eq!("1.2".parse::<Version>(), Err("there are 1.33 and 1.36".to_owned()));
    }
}
