//! Which process a process id belongs to. Ids are reused, so a file that stores one also stores when that process
//! started: another process that got the id later is never signalled.

use std::io;
#[cfg(any(test, not(target_os = "linux")))]
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::process::Signal;

/// A process, as opposed to any later one with the same id.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Identity {
    pid: u32,
    /// When it started, as the operating system prints it. Only ever compared.
    started: String,
}

impl Identity {
    /// The process that has this id now, if there is one. A zombie counts as ended.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        started(pid).map(|started| Self { pid, started })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Ends the process: SIGTERM, and SIGKILL once `grace` has passed. No error if it has ended already.
    pub(crate) fn terminate(&self, grace: Duration) -> Result<(), Error> {
        // After SIGKILL only the kernel's own work is left.
        for (signal, limit) in [(Signal::TERM, grace), (Signal::KILL, Duration::from_secs(5))] {
            if !self.is_alive() {
                return Ok(());
            }
            self.signal(signal)?;
            // A stopped process would see SIGTERM only after SIGCONT.
            self.signal(Signal::CONT)?;
            let start = Instant::now();
            while start.elapsed() < limit {
                if !self.is_alive() {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Err(Error::Stuck { pid: self.pid })
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let Some(pid) = Pid::from_raw(self.pid.cast_signed()) else { return Ok(()) };
        match kill_process(pid, signal) {
            // It ended between the check and the signal.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => result.map_err(io::Error::from).map_err(Error::process("signal", "the cluster")),
        }
    }
}

/// When the process started: the id of the boot, and the clock ticks since then.
#[cfg(target_os = "linux")]
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may contain anything; the fields after it start with the state.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    (!matches!(state, "Z" | "X")).then(|| format!("{} {ticks}", boot.trim()))
}

/// When the process started, to the second, and its command line.
#[cfg(not(target_os = "linux"))]
fn started(pid: u32) -> Option<String> {
    let mut command = Command::new("ps");
    command.args(["-o", "stat=,lstart=,command=", "-p", &pid.to_string()]).env("LC_ALL", "C");
    let output = command.stdin(Stdio::null()).output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout);
    // The state changes while the process lives, so it isn't part of the identity.
    let (state, identity) = line.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| identity.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn a_process_is_alive_until_it_ends() {
        let mut child = sleeper();
        let identity = Identity::of(child.id()).unwrap();
        assert!(identity.is_alive());
        assert_eq!(Identity::of(child.id()), Some(identity.clone()));
        // A zombie until it is waited for, which counts as ended.
        identity.terminate(Duration::from_secs(5)).unwrap();
        assert!(!identity.is_alive());
        child.wait().unwrap();
        identity.terminate(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_recycled_id_is_not_signalled() {
        let mut child = sleeper();
        let old = Identity { started: "long ago".to_owned(), pid: child.id() };
        assert!(!old.is_alive());
        old.terminate(Duration::ZERO).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
