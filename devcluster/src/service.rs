//! A process of the cluster, with a log of its own and a probe for readiness.
//!
//! A process that ends before it is ready is an error at once, with the end of its log.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;
use crate::cache::tail;
use crate::process::Guarded;

/// Starts processes whose output goes to a log of their own.
pub(crate) struct Launcher {
    pub(crate) folder: PathBuf,
    pub(crate) timeout: Duration,
    /// Whether the processes are to outlive this one.
    pub(crate) detachable: bool,
}

/// A process with a name and a log.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    log: PathBuf,
    pub(crate) process: Guarded,
}

// === impl Launcher ===

impl Launcher {
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        program: &Path,
        flags: &[OsString],
    ) -> Result<Service, Error> {
        let logs = self.folder.join("logs");
        fs::create_dir_all(&logs).map_err(Error::file("create", &logs))?;
        let log = logs.join(format!("{name}.log"));
        let mut options = OpenOptions::new();
        let output: File = options.create(true).append(true).open(&log).map_err(Error::file("open", &log))?;

        let mut command = if self.detachable {
            // Closing the terminal must not end it. nohup replaces itself by exec, so the process id stays.
            let mut command = Command::new("nohup");
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .args(flags)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stderr(output.try_clone().map_err(Error::file("open", &log))?)
            .stdout(output);
        let process = Guarded::spawn(command).map_err(Error::process("start", name))?;
        Ok(Service { name, log, process })
    }

    /// Waits until `probe` succeeds. A process that ends meanwhile is an error.
    pub(crate) fn wait_ready(
        &self,
        service: &mut Service,
        mut probe: impl FnMut() -> Result<(), String>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let outcome = probe();
            // Also after a success: the response may have come from another process on the same port.
            if let Some(status) =
                service.process.try_wait().map_err(Error::process("wait for", service.name))?
            {
                let (log, tail) = (service.log.clone(), tail(&service.log));
                return Err(Error::Ended { process: service.name, status, log, tail });
            }
            match outcome {
                Ok(()) => return Ok(()),
                Err(reason) if start.elapsed() > self.timeout => {
                    return Err(Error::NotReady {
                        process: service.name,
                        waited: self.timeout,
                        reason,
                        log: service.log.clone(),
                        tail: tail(&service.log),
                    });
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

// === impl Service ===

impl Service {
    pub(crate) fn stop(mut self, grace: Duration) -> Result<(), Error> {
        self.process.terminate(grace).map_err(Error::process("stop", self.name)).map(drop)
    }
}

/// Whether something accepts connections at `url`, which names an address and a port.
pub(crate) fn connects(url: &str) -> Result<(), String> {
    let address = url.rsplit_once('/').map_or(url, |(_, address)| address);
    let address: SocketAddr = address.parse().map_err(|error| format!("{url}: {error}"))?;
    TcpStream::connect_timeout(&address, Duration::from_millis(500))
        .map(drop)
        .map_err(|error| format!("no connection: {error}"))
}
