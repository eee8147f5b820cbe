//! Programs that are built with `go build` from a module that is pinned by hash, and then cached.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io};

use crate::Error;
use crate::cache::{Cache, Lock, tail};
use crate::progress::Step;

/// A Go module as text, from which both the cache's key and the build are made, so they can't disagree.
#[derive(Debug)]
pub struct Module {
    /// The name of the folder in the user's cache.
    pub cache: &'static str,
    pub go_mod: &'static str,
    /// Pins everything it is built from by hash.
    pub go_sum: &'static str,
    /// Flags for the linker, such as the version that the program reports.
    pub ldflags: &'static str,
}

/// How a module is built, if not by the defaults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recipe {
    /// Build tags, separated by commas.
    pub tags: &'static str,
    /// Whether it is built with cgo, which needs a C compiler and the libraries' headers.
    pub cgo: bool,
    /// The text of a main.go, for a program that is no package of an upstream module.
    pub main: Option<&'static str>,
}

/// A program of a module.
#[derive(Debug)]
pub struct Program {
    /// The name of the executable.
    pub name: &'static str,
    pub package: &'static str,
    /// How long it takes to build on two cores, beyond the packages that it shares with others of the module.
    pub usual: Duration,
}

impl Module {
    /// Builds those programs that are missing (minutes the first time; progress on stderr). Returns the folder that
    /// contains them.
    pub fn provide(&self, programs: &[&Program]) -> Result<PathBuf, Error> {
        self.provide_by(&Recipe::default(), programs)
    }

    /// [`Module::provide`], built by a recipe.
    pub fn provide_by(&self, recipe: &Recipe, programs: &[&Program]) -> Result<PathBuf, Error> {
        let mut key = vec![self.go_mod, self.go_sum, self.ldflags];
        key.extend(recipe.key());
        let cache = Cache::open(self.cache, &key)?;
        let missing = || {
            let missing = programs.iter().filter(|program| !cache.path().join(program.name).is_file());
            missing.copied().collect::<Vec<_>>()
        };
        // The usual case takes no lock: files in the cache are complete.
        if !missing().is_empty() {
            let lock = cache.lock()?;
            // Check again: the previous owner of the lock may have built them.
            let missing = missing();
            if !missing.is_empty() {
                self.build(recipe, &missing, &cache, &lock)?;
            }
        }
        Ok(cache.path().to_owned())
    }

    /// Builds all of `programs` by one command, so that no core waits while one of them is linked.
    fn build(&self, recipe: &Recipe, programs: &[&Program], cache: &Cache, lock: &Lock) -> Result<(), Error> {
        let names = || programs.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
        let usual = programs.iter().map(|program| program.usual).sum();
        let mut step = Step::start(format!("building {}", names()), usual);
        let folder = cache.work_folder(lock)?;
        let main = recipe.main.map(|text| ("main.go", text));
        for (name, text) in [("go.mod", self.go_mod), ("go.sum", self.go_sum)].into_iter().chain(main) {
            let path = folder.path().join(name);
            fs::write(&path, text).map_err(Error::file("write", &path))?;
        }
        let output = folder.path().join("bin");
        fs::create_dir(&output).map_err(Error::file("create", &output))?;
        let log = folder.path().join("log");
        let command = self.command(recipe, programs, folder.path(), &output, cache.path());
        let status = step.run(command, &log).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::GoMissing { programs: names() },
            _ => Error::process("run", "go")(error),
        })?;
        if !status.success() {
            step.end("failed");
            return Err(Error::Build { programs: names(), status, output: tail(&log) });
        }
        for program in programs {
            cache.store(&output.join(self.executable(program)), program.name, lock)?;
        }
        step.end("done");
        Ok(())
    }

    fn command(
        &self,
        recipe: &Recipe,
        programs: &[&Program],
        folder: &Path,
        output: &Path,
        home: &Path,
    ) -> Command {
        let mut command = Command::new("go");
        command
            .args(["build", "-mod=readonly", "-buildvcs=false", "-tags", recipe.tags])
            // Debug information takes a while to make, and the linker would leave it out.
            .args(["-gcflags=all=-dwarf=false", "-ldflags", self.ldflags, "-o"])
            .arg(output)
            .args(programs.iter().map(|program| program.package))
            .current_dir(folder)
            // Nothing in the environment may change what is built: a workspace, a cross compilation, a C compiler.
            .env("GOWORK", "off")
            .env("CGO_ENABLED", if recipe.cgo { "1" } else { "0" })
            .env_remove("GOOS")
            .env_remove("GOARCH");
        if env::home_dir().is_none() {
            // Go does not run without a place for its own caches.
            command.env("HOME", home);
        }
        command
    }

    /// How `go build` names the executable: by the last part of its package's path that is no major version.
    fn executable(&self, program: &Program) -> &str {
        let path = match program.package {
            "." => self.go_mod.lines().find_map(|line| line.strip_prefix("module ")).unwrap_or_default(),
            package => package,
        };
        let is_version = |part: &str| {
            part.strip_prefix('v').is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        path.trim().rsplit('/').find(|part| !is_version(part)).unwrap_or_default()
    }
}

impl Recipe {
    /// What it adds to the cache's key: nothing for the defaults.
    fn key(&self) -> Vec<&'static str> {
        let tags = Some(self.tags).filter(|tags| !tags.is_empty());
        let cgo = self.cgo.then_some("cgo");
        tags.into_iter().chain(cgo).chain(self.main).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_named_as_go_does() {
        let module = Module {
            cache: "",
            go_mod: "// A comment.\nmodule example.com/tools/pause\n",
            go_sum: "",
            ldflags: "",
        };
        let name =
            |package| module.executable(&Program { name: "x", package, usual: Duration::ZERO }).to_owned();
        assert_eq!(name("k8s.io/kubernetes/cmd/kubectl"), "kubectl");
        assert_eq!(name("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(name("."), "pause");
    }
}
