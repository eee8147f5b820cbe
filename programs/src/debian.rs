//! Programs of the distribution. On a Debian system root installs what is missing; anybody else is told how.
//!
//! A package that brings a service starts it, and again at each boot. That is not what a test is for, so the
//! service of a package that was installed here is stopped and disabled.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use devcluster::Error as CacheError;
use devcluster::cache::{Cache, tail};
use devcluster::progress::Step;

use crate::{CACHE, Error, on_path};

/// A program in a package.
pub(crate) struct Package {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    pub(crate) service: Option<&'static str>,
}

impl Package {
    /// Answers the program's path; installs the package if it is missing.
    pub(crate) fn provide(&self) -> Result<PathBuf, Error> {
        if let Some(found) = on_path(self.program) {
            return Ok(found);
        }
        if !Path::new("/etc/debian_version").exists() || !rustix::process::geteuid().is_root() {
            return Err(self.missing(None));
        }
        // One at a time, as the package manager wants it.
        let cache = Cache::open(CACHE, &["debian"])?;
        let _lock = cache.lock()?;
        if let Some(found) = on_path(self.program) {
            return Ok(found);
        }
        self.install(&cache.path().join("log"))?;
        on_path(self.program)
            .ok_or_else(|| self.missing(Some(format!("{} is installed and lacks it", self.package))))
    }

    fn install(&self, log: &Path) -> Result<(), Error> {
        let mut step = Step::start(format!("installing {}", self.package), Duration::from_secs(15));
        // Somebody else may be installing too.
        let patience = "DPkg::Lock::Timeout=120";
        let install = ["apt-get", "-o", patience, "install", "-y", "--no-install-recommends", self.package];
        let result = self.run(&install, log, &mut step).or_else(|_| {
            // The list of packages may be missing or old.
            self.run(&["apt-get", "update"], log, &mut step)?;
            self.run(&install, log, &mut step)
        });
        let result = result.and_then(|()| match self.service {
            Some(service) => {
                self.run(&["service", service, "stop"], log, &mut step)?;
                self.run(&["update-rc.d", service, "disable"], log, &mut step)
            }
            None => Ok(()),
        });
        step.end(if result.is_ok() { "done" } else { "failed" });
        result
    }

    /// Runs a command to its end. Without a guard: a package manager that is killed leaves half a package.
    fn run(&self, line: &[&str], log: &Path, step: &mut Step) -> Result<(), Error> {
        let failed = |source| Error::Run { command: line.join(" "), program: self.program, source };
        let output = File::create(log).map_err(CacheError::file("create", log))?;
        let [program, args @ ..] = line else { return Ok(()) };
        let mut process = Command::new(program)
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stderr(output.try_clone().map_err(CacheError::file("open", log))?)
            .stdout(output)
            .spawn()
            .map_err(failed)?;
        loop {
            match process.try_wait().map_err(failed)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::Failed { command: line.join(" "), status, output: tail(log) });
                }
                None => {
                    thread::sleep(Duration::from_millis(200));
                    step.tick();
                }
            }
        }
    }

    fn missing(&self, reason: Option<String>) -> Error {
        let advice = format!("apt-get install --no-install-recommends {}", self.package);
        Error::Missing { program: self.program, advice, reason }
    }
}
