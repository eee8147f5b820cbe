//! A server that is measured: alone on the first core, over HTTP/1.1, with its CPU time and memory from /proc.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use devcluster::process::Guarded;

use super::process;

/// How long a server may take to start.
const TIMEOUT: Duration = Duration::from_secs(900);

pub struct Server {
    /// Its name in tables.
    pub name: String,
    /// What a check is for this server.
    pub check: &'static str,
    pub address: SocketAddr,
    /// The path that is asked for.
    pub path: &'static str,
    /// How many tokens or keys it has.
    pub tokens: u64,
    process: Guarded,
}

impl Server {
    /// Starts a command on the first core, and waits until it allows a good token and denies a bad one.
    pub fn start(
        name: impl Into<String>,
        check: &'static str,
        address: SocketAddr,
        path: &'static str,
        tokens: u64,
        command: &Command,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut server = Self::start_anywhere(name.into(), address, path, tokens, on_core(0, command), log)?;
        server.check = check;
        Ok(server)
    }

    /// The same, on any core.
    pub fn start_anywhere(
        name: String,
        address: SocketAddr,
        path: &'static str,
        tokens: u64,
        mut command: Command,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let output =
            std::fs::File::create(log).with_context(|| format!("{} can't be written", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let process = Guarded::spawn(command).with_context(|| format!("{name} can't be started"))?;
        let mut server = Self { name, check: "", address, path, tokens, process };
        server.wait(log)?;
        Ok(server)
    }

    fn wait(&mut self, log: &Path) -> anyhow::Result<()> {
        let (good, bad) = (super::tokens::good(self.tokens - 1), super::tokens::bad(0, self.tokens));
        let (start, mut printed) = (Instant::now(), Instant::now());
        loop {
            if printed.elapsed() > Duration::from_secs(10) {
                eprintln!("waiting for {}, {} s", self.name, start.elapsed().as_secs());
                printed = Instant::now();
            }
            let seen = (self.ask(&good), self.ask(&bad));
            match seen {
                (Ok(200..=299), Ok(401)) => return Ok(()),
                _ if self.process.try_wait()?.is_some() => {
                    bail!("{} has ended; see {}", self.name, log.display())
                }
                _ if start.elapsed() > TIMEOUT => {
                    bail!("{} answers a good and a bad token with {seen:?}; see {}", self.name, log.display())
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.path)
    }

    /// Connects, to send one check after the other.
    pub fn connect(&self) -> anyhow::Result<Client> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Client { stream: BufReader::new(stream), path: self.path })
    }

    fn ask(&self, token: &str) -> anyhow::Result<u16> {
        self.connect()?.ask(token)
    }

    /// The CPU time that it has used so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        process::cpu(self.process.pid())
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        process::memory(self.process.pid(), "VmRSS")
    }
}

/// A connection to a server.
pub struct Client {
    stream: BufReader<TcpStream>,
    path: &'static str,
}

impl Client {
    /// Sends a check; returns the status code.
    pub fn ask(&mut self, token: &str) -> anyhow::Result<u16> {
        let path = self.path;
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
            match (status, line.trim_end().split_once(':')) {
                (None, _) => status = Some(line.split(' ').nth(1).context("no status")?.parse()?),
                (Some(_), Some((name, value))) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse()?;
                }
                (Some(status), None) => {
                    self.stream.read_exact(&mut vec![0; length])?;
                    return Ok(status);
                }
                _ => {}
            }
        }
    }
}

/// A command, pinned to one core.
pub fn on_core(core: usize, command: &Command) -> Command {
    let mut taskset = Command::new("taskset");
    taskset.args(["-c", &core.to_string()]).arg(command.get_program()).args(command.get_args());
    taskset.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        taskset.current_dir(folder);
    }
    taskset
}

/// Runs a command on the second core; returns its stdout.
pub fn output(command: &Command) -> anyhow::Result<String> {
    let output = Guarded::output(on_core(1, command))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let program = PathBuf::from(command.get_program());
    ensure!(
        output.status.success(),
        "{} failed: {text}{}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// A loopback address with a free port.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
