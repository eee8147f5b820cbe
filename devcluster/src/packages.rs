//! Files that come from packages of the distribution. On Debian, root installs what is missing; for anybody else the
//! error names the packages.
//!
//! A package with a service starts it, and again at each boot. A test must not cause that, so the service of a package
//! that was installed here is stopped and disabled.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, thread};

use crate::Error;
use crate::cache::{Cache, tail};
use crate::progress::Step;

/// A file that a package of the distribution contains.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Names of a program, or absolute paths of a file: any of these will do.
    pub any_of: &'static [&'static str],
    /// The name of the Debian package.
    pub package: &'static str,
    /// The service that installing the package would start.
    pub service: Option<&'static str>,
}

impl Need {
    /// Returns its path, if it is there.
    pub fn find(&self) -> Option<PathBuf> {
        self.any_of.iter().find_map(|name| {
            if name.starts_with('/') {
                Some(PathBuf::from(name)).filter(|path| path.exists())
            } else {
                on_path(name)
            }
        })
    }

    /// Returns its path; installs the package first if that is necessary and possible.
    pub fn provide(&self) -> Result<PathBuf, Error> {
        provide(&[*self])?;
        self.find()
            .ok_or_else(|| Error::Packages { packages: self.package.to_owned(), reason: String::new() })
    }
}

/// Installs what is missing, if that is possible. An error otherwise.
pub fn provide(needs: &[Need]) -> Result<(), Error> {
    if missing(needs).is_empty() {
        return Ok(());
    }
    if !Path::new("/etc/debian_version").exists() || !rustix::process::geteuid().is_root() {
        return Err(Error::Packages { packages: names(&missing(needs)), reason: String::new() });
    }
    // One process at a time, since dpkg locks.
    let cache = Cache::open("tokenward-devcluster", &["debian"])?;
    let _lock = cache.lock()?;
    // Check again: the previous owner of the lock may have installed them.
    let wanted = missing(needs);
    if wanted.is_empty() {
        return Ok(());
    }
    install(&wanted, &cache.path().join("log"))?;
    match missing(needs) {
        left if left.is_empty() => Ok(()),
        left => {
            let reason = " (they are installed, and lack what is needed)".to_owned();
            Err(Error::Packages { packages: names(&left), reason })
        }
    }
}

fn missing(needs: &[Need]) -> Vec<Need> {
    needs.iter().filter(|need| need.find().is_none()).copied().collect()
}

fn names(needs: &[Need]) -> String {
    needs.iter().map(|need| need.package).collect::<Vec<_>>().join(" ")
}

fn install(needs: &[Need], log: &Path) -> Result<(), Error> {
    let mut step = Step::start(format!("installing {}", names(needs)), Duration::from_secs(20));
    // The user may be installing something too.
    let mut install = vec!["-o", "DPkg::Lock::Timeout=120", "install", "-y", "--no-install-recommends"];
    install.extend(needs.iter().map(|need| need.package));
    let result = run("apt-get", &install, log, &mut step).or_else(|_| {
        // The list of packages may be missing or old.
        run("apt-get", &["update"], log, &mut step)?;
        run("apt-get", &install, log, &mut step)
    });
    let result = result.and_then(|()| {
        needs.iter().filter_map(|need| need.service).try_for_each(|service| {
            run("service", &[service, "stop"], log, &mut step)?;
            run("update-rc.d", &[service, "disable"], log, &mut step)
        })
    });
    step.end(if result.is_ok() { "done" } else { "failed" });
    result.map_err(|reason| Error::Packages { packages: names(needs), reason: format!(": {reason}") })
}

/// Runs a command without a guard: a package manager that is killed leaves half a package.
fn run(program: &str, arguments: &[&str], log: &Path, step: &mut Step) -> Result<(), String> {
    let spawn = || {
        let output = File::create(log)?;
        Command::new(program)
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output)
            .spawn()
    };
    let mut process = spawn().map_err(|error| error.to_string())?;
    loop {
        match process.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("{status}. The end of its output:\n{}", tail(log))),
            None => {
                thread::sleep(Duration::from_millis(200));
                step.tick();
            }
        }
    }
}

/// Looks for a program on PATH, and in the sbin folders, which are not on every user's.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(sbin).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn what_is_missing_is_reported_by_its_package() {
        let sh = Need { any_of: &["/nowhere/sh", "sh"], package: "dash", service: None };
        let absent = Need { any_of: &["/nowhere", "no-such-program"], package: "absent", service: None };
        assert!(sh.find().unwrap().ends_with("sh"));
        assert_eq!(names(&missing(&[sh, absent])), "absent");
    }
}
