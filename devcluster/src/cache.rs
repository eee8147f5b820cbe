//! Programs that take long to get are stored in the user's cache folder, where `cargo clean` doesn't remove them.
//!
//! A folder is named by a hash of all that its content depends on. Files are moved in when they are complete, and
//! a lock stops two processes from making the same one.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, iter};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::progress::Step;
use crate::{Error, target_dir};

/// Prefix of the folders in which files are made. They are beside the result, as a rename can't cross file systems.
const WORK_PREFIX: &str = ".building-";

/// A folder in the cache.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

/// The exclusive right to write to a cache's folder. The kernel releases it if this process dies.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file is what unlocks it")] File);

impl Cache {
    /// Opens the folder `name/HASH`, with the hash of `parts`.
    pub fn open(name: &str, parts: &[&str]) -> Result<Self, Error> {
        let root = root(env::var_os("XDG_CACHE_HOME").map(PathBuf::from), env::home_dir());
        let folder = root.unwrap_or_else(|| target_dir().join("devcluster")).join(name).join(key(parts));
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        Ok(Self(folder))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Waits for the lock, and removes what killed writers have left behind.
    pub fn lock(&self) -> Result<Lock, Error> {
        let lock = lock(&self.0.join("lock"))?;
        self.remove_leftovers()?;
        Ok(lock)
    }

    /// Creates a temporary folder on the same file system.
    pub fn work_folder(&self, _: &Lock) -> Result<TempDir, Error> {
        let folder = tempfile::Builder::new().prefix(WORK_PREFIX).tempdir_in(&self.0);
        folder.map_err(Error::file("create a folder in", &self.0))
    }

    /// Moves a finished file into the cache; returns its path there.
    pub fn store(&self, file: &Path, name: &str, _: &Lock) -> Result<PathBuf, Error> {
        let result = self.0.join(name);
        fs::rename(file, &result).map_err(Error::file("rename to", &result))?;
        Ok(result)
    }

    fn remove_leftovers(&self) -> Result<(), Error> {
        for entry in fs::read_dir(&self.0).map_err(Error::file("read", &self.0))? {
            let path = entry.map_err(Error::file("read", &self.0))?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(WORK_PREFIX)) {
                fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// `$XDG_CACHE_HOME`, or `~/.cache`. A relative setting is invalid by the XDG specification, and ignored.
fn root(xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    xdg.filter(|path| path.is_absolute())
        .or_else(|| home.filter(|path| path.is_absolute()).map(|home| home.join(".cache")))
}

fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts.iter().chain(&[env::consts::OS, env::consts::ARCH]) {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn lock(path: &Path) -> Result<Lock, Error> {
    let file = File::create(path).map_err(Error::file("create", path))?;
    match file.try_lock() {
        Ok(()) => return Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(Error::file("lock", path)(source)),
    }
    let step = Step::start("waiting for another process's build".to_owned(), Duration::from_secs(300));
    file.lock().map_err(Error::file("lock", path))?;
    step.end("done");
    Ok(Lock(file))
}

/// The last lines of a log, for an error message.
pub fn tail(log: &Path) -> String {
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
    fn the_cache_is_where_the_user_says() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(root(path("/x"), path("/home/me")), path("/x"));
        assert_eq!(root(path("x"), path("/home/me")), path("/home/me/.cache"));
        assert_eq!(root(None, path("/home/me")), path("/home/me/.cache"));
        assert_eq!(root(None, path("")), None);
        assert_eq!(root(None, None), None);
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
