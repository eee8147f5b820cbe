//! Child processes that can't outlive their owner.
//!
//! A destructor alone can't guarantee that: it doesn't run on SIGKILL, on Ctrl-C or on an abort. So each
//! [`Guarded`] process has a watchdog, a `/bin/sh` that blocks on a pipe whose write end only the owner has.
//! However the owner ends, the kernel closes that end, and the watchdog kills its own process group.
//! The process joined that group before its first instruction, so there is no moment when it runs unguarded,
//! its own children are covered too, and no process id is ever looked up: a recycled one can't be hit.
//! The group also keeps a terminal's Ctrl-C away from the process: the owner decides the order of a shutdown.

use std::ffi::OsStr;
use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

/// How long a dropped [`Guarded`] process may take to end after SIGTERM before it gets SIGKILL.
pub const DROP_GRACE: Duration = Duration::from_secs(5);

/// A child process that ends when its owner does, however that ends.
///
/// Dropping it sends SIGTERM, waits up to [`DROP_GRACE`], then sends SIGKILL; what is left of its process group
/// (its own children) is killed with it.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    /// `None` once it has been detached.
    watchdog: Option<Watchdog>,
}

/// Runs a script when its owner has ended, however it ended.
#[derive(Debug)]
pub(crate) struct Janitor(Option<Watchdog>);

/// A shell at the other end of a pipe, which runs its script when the pipe closes, unless it was disarmed.
#[derive(Debug)]
struct Watchdog {
    shell: Child,
    leash: PipeWriter,
}

// === impl Guarded ===

impl Guarded {
    /// Starts `command` under guard. The command's process group is replaced by the guard's.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        // `kill 0` reaches the watchdog's own group, the watchdog included.
        let watchdog = Watchdog::spawn("read -r _ || kill -KILL 0", &[])?;
        match command.process_group(watchdog.group()).spawn() {
            Ok(child) => Ok(Self { child, watchdog: Some(watchdog) }),
            Err(error) => {
                watchdog.trigger();
                Err(error)
            }
        }
    }

    /// Runs `command` under guard to its end and collects what it prints, as [`Command::output`] does.
    pub fn output(command: Command) -> io::Result<Output> {
        Self::output_of(command, Stdio::null())
    }

    /// The same, with `input` as standard input.
    pub(crate) fn output_of(mut command: Command, input: Stdio) -> io::Result<Output> {
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Self::spawn(command)?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (process.take_stdout(), process.take_stderr());
        // Both at once: a process that fills one pipe while only the other is read would block for ever.
        thread::scope(|scope| {
            let reader = scope.spawn(|| err.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut stderr)));
            let read = out.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut stdout));
            // The thread can't panic.
            reader.join().unwrap_or(Ok(0)).and(read)
        })?;
        let status = process.child.wait()?;
        Ok(Output { status, stdout, stderr })
    }

    /// The process id. It is not reused until the process has been waited for.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process (not to its children). Fails if the process has ended.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        // Once the process has been waited for, its id may belong to another.
        if self.child.try_wait()?.is_some() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"));
        }
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// How the process ended, or `None` while it runs.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until the process ends, or until `timeout` has passed (`None`).
    pub fn wait_timeout(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Ends the process: SIGTERM, and SIGKILL once `grace` has passed. Kills what is left of its children.
    /// Works on a stopped (SIGSTOP) process too. Returns the earlier status if the process has ended already.
    pub fn terminate(&mut self, grace: Duration) -> io::Result<ExitStatus> {
        let status = match self.child.try_wait()? {
            Some(status) => status,
            None => {
                self.request_end()?;
                match self.wait_timeout(grace)? {
                    Some(status) => status,
                    None => {
                        self.child.kill()?;
                        self.child.wait()?
                    }
                }
            }
        };
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.trigger();
        }
        Ok(status)
    }

    /// Kills the process and its children at once, as a crash would.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.terminate(Duration::ZERO)
    }

    /// Lets the process outlive its owner: releases the guard and returns the process id.
    pub fn detach(mut self) -> io::Result<u32> {
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.disarm()?;
        }
        Ok(self.child.id())
    }

    /// The process's standard input, if it was piped and not yet taken.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The process's standard output, if it was piped and not yet taken.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The process's standard error, if it was piped and not yet taken.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// Sends SIGTERM without waiting, so that several processes can end at the same time.
    pub(crate) fn request_end(&mut self) -> io::Result<()> {
        let pid = Pid::from_child(&self.child);
        // A stopped process would see SIGTERM only after SIGCONT.
        for signal in [Signal::TERM, Signal::CONT] {
            if self.child.try_wait()?.is_none() {
                kill_process(pid, signal)?;
            }
        }
        Ok(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if self.watchdog.is_some() {
            // There is nobody to report an error to; if even this fails, the watchdog kills the process.
            let _ = self.terminate(DROP_GRACE);
        }
    }
}

// === impl Janitor ===

impl Janitor {
    /// Will remove a folder.
    pub(crate) fn for_folder(folder: &Path) -> io::Result<Self> {
        // Several rounds: processes that write there are being killed by their own watchdogs at the same time.
        let script = "for round in 1 2 3 4 5 6 7 8 9 10; do
                rm -rf -- \"$1\" && test ! -e \"$1\" && exit
                sleep 0.2
            done";
        Self::watch(script, &[folder.as_os_str()])
    }

    /// Will run a shell script.
    pub(crate) fn watch(script: &str, arguments: &[&OsStr]) -> io::Result<Self> {
        Watchdog::spawn(&format!("read -r _ && exit\n{script}"), arguments)
            .map(|watchdog| Self(Some(watchdog)))
    }

    /// Runs the script now.
    pub(crate) fn trigger(self) {
        drop(self);
    }

    /// Ends without running the script.
    pub(crate) fn disarm(mut self) -> io::Result<()> {
        self.0.take().map_or(Ok(()), Watchdog::disarm)
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        if let Some(watchdog) = self.0.take() {
            watchdog.trigger();
        }
    }
}

// === impl Watchdog ===

impl Watchdog {
    /// Starts `script` in a new process group, with the pipe's read end as its input. The script must begin with a
    /// `read`, which fails when the pipe closes, and succeeds if it was disarmed.
    fn spawn(script: &str, arguments: &[&OsStr]) -> io::Result<Self> {
        // Both ends are close-on-exec: no other child of the owner inherits the leash.
        let (reader, leash) = io::pipe()?;
        let shell = Command::new("/bin/sh")
            .arg("-c")
            // Signals to the group are meant for the guarded process.
            .arg(format!("trap '' HUP INT TERM\n{script}"))
            .arg("devcluster-watchdog")
            .args(arguments)
            .stdin(reader)
            // Not inherited: a pipe behind them would stay open for as long as the watchdog lives.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not inherited: it may be a folder that is to be removed.
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        Ok(Self { shell, leash })
    }

    fn group(&self) -> i32 {
        // Never negative: in the kernel, process ids are of the type i32.
        self.shell.id().cast_signed()
    }

    /// Lets the script run, and waits for it, so that no zombie stays.
    fn trigger(self) {
        let Self { mut shell, leash } = self;
        drop(leash);
        let _ = shell.wait();
    }

    fn disarm(self) -> io::Result<()> {
        let Self { mut shell, mut leash } = self;
        leash.write_all(b"disarm\n")?;
        shell.wait().map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;

    fn shell(script: &str) -> Guarded {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        Guarded::spawn(command).unwrap()
    }

    fn first_line(process: &mut Guarded) -> String {
        let mut line = String::new();
        BufReader::new(process.take_stdout().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn exists(pid: u32) -> bool {
        // A zombie that is not reaped yet doesn't count.
        let output = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
        matches!(String::from_utf8_lossy(&output.stdout).trim().chars().next(), Some(state) if state != 'Z')
    }

    fn gone(pid: u32) -> bool {
        (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            !exists(pid)
        })
    }

    #[test]
    fn reports_the_exit_status() {
        let mut process = shell("exit 7");
        assert_eq!(process.wait_timeout(Duration::from_secs(5)).unwrap().unwrap().code(), Some(7));
        assert_eq!(process.terminate(Duration::ZERO).unwrap().code(), Some(7));
        assert_eq!(process.signal(Signal::TERM).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_command_that_does_not_exist_is_an_error() {
        let error = Guarded::spawn(Command::new("/nonexistent")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn output_collects_both_streams() {
        let mut command = Command::new("/bin/sh");
        // More than a pipe buffers, on both.
        command.args(["-c", "head -c 200000 /dev/zero >&2; head -c 300000 /dev/zero; exit 4"]);
        let output = Guarded::output(command).unwrap();
        assert_eq!((output.stdout.len(), output.stderr.len()), (300_000, 200_000));
        assert_eq!(output.status.code(), Some(4));
    }

    #[test]
    fn waiting_times_out() {
        let mut process = shell("exec sleep 60");
        assert!(process.wait_timeout(Duration::from_millis(30)).unwrap().is_none());
    }

    #[test]
    fn terminate_sends_sigterm_first() {
        let mut process = shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done");
        assert_eq!(first_line(&mut process), "ready");
        assert_eq!(process.terminate(Duration::from_secs(5)).unwrap().code(), Some(3));
    }

    #[test]
    fn terminate_kills_after_the_grace_period() {
        let mut process = shell("trap '' TERM; echo ready; while :; do sleep 0.01; done");
        assert_eq!(first_line(&mut process), "ready");
        assert_eq!(process.terminate(Duration::from_millis(50)).unwrap().signal(), Some(9));
    }

    #[test]
    fn a_stopped_process_ends_by_sigterm() {
        let mut process = shell("echo ready; exec sleep 60");
        assert_eq!(first_line(&mut process), "ready");
        process.signal(Signal::STOP).unwrap();
        assert_eq!(process.terminate(Duration::from_secs(5)).unwrap().signal(), Some(15));
    }

    #[test]
    fn children_of_the_process_end_with_it() {
        let mut process = shell("sleep 60 & echo $!; wait");
        let grandchild = first_line(&mut process).parse().unwrap();
        assert!(exists(grandchild));
        drop(process);
        assert!(gone(grandchild));
    }

    #[test]
    fn a_closed_leash_ends_the_process() {
        let mut process = shell("trap '' TERM; echo ready; exec sleep 60");
        assert_eq!(first_line(&mut process), "ready");
        // As the kernel does when the owner ends.
        process.watchdog.take().unwrap().trigger();
        assert_eq!(process.wait_timeout(Duration::from_secs(5)).unwrap().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_detached_process_lives_on() {
        let mut process = shell("echo ready; exec sleep 60");
        assert_eq!(first_line(&mut process), "ready");
        let pid = process.detach().unwrap();
        assert!(exists(pid));
        kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn a_janitor_runs_its_script_unless_it_is_disarmed() {
        let folder = tempfile::tempdir().unwrap();
        Janitor::for_folder(folder.path()).unwrap().disarm().unwrap();
        assert!(folder.path().exists());
        Janitor::for_folder(folder.path()).unwrap().trigger();
        assert!(!folder.path().exists());
    }
}
