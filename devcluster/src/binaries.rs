//! Where the programs of the control plane come from.
//!
//! They are built with `go build` from the pinned module in `go/control-plane`, once: the results stay in the
//! user's cache folder, named by a hash of the module and of the recipe, so `cargo clean` doesn't lose them.
//! A binary appears there whole or not at all, and two processes never build at the same time.
//! `KUBEBUILDER_ASSETS` names a folder of prebuilt ones instead, as it does for other Kubernetes test tools.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, iter};

use sha2::{Digest, Sha256};

use crate::process::Guarded;
use crate::progress::Step;
use crate::{Error, target_dir};

/// Part of this program, so that the cache's key and the build can't disagree with it.
const GO_MOD: &str = include_str!("../go/control-plane/go.mod");
const GO_SUM: &str = include_str!("../go/control-plane/go.sum");

/// Without these, clients would see the server as v0.0.0. The version is that of go.mod, which a test compares.
const LDFLAGS: &str = "-s -w \
    -X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=36 \
    -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3";

/// A program and how to make it.
struct Recipe {
    name: &'static str,
    package: &'static str,
    /// What the build took on two cores, after those before it: they share most packages.
    usual: Duration,
}

const KUBE_APISERVER: Recipe = Recipe {
    name: "kube-apiserver",
    package: "k8s.io/kubernetes/cmd/kube-apiserver",
    usual: Duration::from_secs(180),
};
const KUBE_CONTROLLER_MANAGER: Recipe = Recipe {
    name: "kube-controller-manager",
    package: "k8s.io/kubernetes/cmd/kube-controller-manager",
    usual: Duration::from_secs(50),
};
const KUBECTL: Recipe =
    Recipe { name: "kubectl", package: "k8s.io/kubernetes/cmd/kubectl", usual: Duration::from_secs(20) };
const ETCD: Recipe =
    Recipe { name: "etcd", package: "go.etcd.io/etcd/server/v3", usual: Duration::from_secs(10) };

/// The largest first: its estimate is the one that counts.
const ALL: [&Recipe; 4] = [&KUBE_APISERVER, &KUBE_CONTROLLER_MANAGER, &KUBECTL, &ETCD];

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
        let cache = cache()?;
        build_missing(&cache, &ALL)?;
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
    let cache = cache()?;
    build_missing(&cache, &[&KUBECTL])?;
    Ok(cache.join(KUBECTL.name))
}

fn assets() -> Option<PathBuf> {
    env::var_os("KUBEBUILDER_ASSETS").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

fn prebuilt(folder: &Path, recipe: &Recipe) -> Result<PathBuf, Error> {
    let path = folder.join(recipe.name);
    if path.is_file() { Ok(path) } else { Err(Error::MissingAsset { path }) }
}

/// The folder of the binaries of exactly this module and recipe.
fn cache() -> Result<PathBuf, Error> {
    let root = cache_root(env::var_os("XDG_CACHE_HOME").map(PathBuf::from), env::home_dir());
    let folder =
        root.unwrap_or_else(|| target_dir().join("devcluster")).join("tokenward-devcluster").join(key());
    fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    Ok(folder)
}

/// `~/.cache`, or what the user has set instead. A relative setting is invalid by the XDG specification.
fn cache_root(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    xdg.filter(|path| path.is_absolute())
        .or_else(|| home.filter(|path| path.is_absolute()).map(|home| home.join(".cache")))
}

fn key() -> String {
    let mut hash = Sha256::new();
    for part in [GO_MOD, GO_SUM, LDFLAGS, env::consts::OS, env::consts::ARCH] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn build_missing(cache: &Path, recipes: &[&Recipe]) -> Result<(), Error> {
    let missing =
        || recipes.iter().filter(|recipe| !cache.join(recipe.name).is_file()).copied().collect::<Vec<_>>();
    // The usual case takes no lock: what is there is whole.
    if missing().is_empty() {
        return Ok(());
    }
    let _lock = lock(&cache.join("lock"))?;
    remove_leftovers(cache)?;
    // Read again: who held the lock has built them.
    let missing = missing();
    for (index, recipe) in missing.iter().enumerate() {
        let label = format!("building {} ({} of {})", recipe.name, index + 1, missing.len());
        build(cache, recipe, Step::start(label, recipe.usual))?;
    }
    Ok(())
}

/// Takes the lock of the cache folder, until the file is closed. The kernel closes it if this process dies.
fn lock(path: &Path) -> Result<File, Error> {
    let file = File::create(path).map_err(Error::file("create", path))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(Error::file("lock", path)(source)),
    }
    let step = Step::start("waiting for another process's build".to_owned(), Duration::from_secs(300));
    file.lock().map_err(Error::file("lock", path))?;
    step.end("done");
    Ok(file)
}

/// Where a build happens, beside its result: a rename doesn't cross file systems.
const BUILD_FOLDER: &str = ".building-";

/// Removes what builds that were killed have left. Only the lock's holder may.
fn remove_leftovers(cache: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(cache).map_err(Error::file("read", cache))? {
        let path = entry.map_err(Error::file("read", cache))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(BUILD_FOLDER)) {
            fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
        }
    }
    Ok(())
}

fn build(cache: &Path, recipe: &Recipe, mut step: Step) -> Result<(), Error> {
    let folder = tempfile::Builder::new().prefix(BUILD_FOLDER).tempdir_in(cache);
    let folder = folder.map_err(Error::file("create a folder in", cache))?;
    for (name, text) in [("go.mod", GO_MOD), ("go.sum", GO_SUM)] {
        let path = folder.path().join(name);
        fs::write(&path, text).map_err(Error::file("write", &path))?;
    }
    let binary = folder.path().join(recipe.name);
    let log = folder.path().join("log");
    let output = File::create(&log).map_err(Error::file("create", &log))?;

    let mut command = Command::new("go");
    command
        .args(["build", "-mod=readonly", "-buildvcs=false", "-ldflags", LDFLAGS, "-o"])
        .arg(&binary)
        .arg(recipe.package)
        .current_dir(folder.path())
        // Nothing of the surroundings may change what is built: a workspace, a cross compilation, a C compiler.
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .stdin(Stdio::null())
        .stderr(output.try_clone().map_err(Error::file("open", &log))?)
        .stdout(output);
    if env::home_dir().is_none() {
        // Go refuses to run without a place for its own caches.
        command.env("HOME", cache);
    }
    let mut go = Guarded::spawn(command).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::GoMissing,
        _ => Error::process("start", "go")(error),
    })?;
    let status = loop {
        match go.wait_timeout(Duration::from_secs(1)).map_err(Error::process("wait for", "go"))? {
            Some(status) => break status,
            None => step.tick(),
        }
    };
    if !status.success() {
        step.end("failed");
        return Err(Error::Build { binary: recipe.name, status, output: tail(&log) });
    }
    let result = cache.join(recipe.name);
    fs::rename(&binary, &result).map_err(Error::file("rename to", &result))?;
    step.end("done");
    Ok(())
}

/// The last lines of a log, for an error message.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 25;
    let text = match fs::read(log) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return format!("(not readable: {error})"),
    };
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(LINES);
    let last = lines.iter().skip(skipped).copied();
    iter::once("...").filter(|_| skipped > 0).chain(last).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn the_version_that_is_shown_is_the_version_that_is_built() {
        let version = GO_MOD
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
    fn every_recipe_is_a_tool_of_the_module() {
        for recipe in ALL {
            assert!(GO_MOD.lines().any(|line| line.trim() == recipe.package), "{}", recipe.package);
        }
    }

    #[test]
    fn the_cache_is_where_the_user_says() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(cache_root(path("/x"), path("/home/me")), path("/x"));
        assert_eq!(cache_root(path("x"), path("/home/me")), path("/home/me/.cache"));
        assert_eq!(cache_root(None, path("/home/me")), path("/home/me/.cache"));
        assert_eq!(cache_root(None, path("")), None);
        assert_eq!(cache_root(None, None), None);
    }

    #[test]
    fn a_tail_is_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        fs::write(&log, "one\ntwo\n").unwrap();
        assert_eq!(tail(&log), "one\ntwo");
        fs::write(&log, (0..100).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        assert!(tail(&log).starts_with("...\n75\n") && tail(&log).ends_with("\n99"));
    }
}
