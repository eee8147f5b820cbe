//! The closed load: wrk on the second core, with 64 connections that send the next request after each response.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::server::{Server, output};
use super::tokens;

const CONNECTIONS: u64 = 64;

/// wrk's script. Requests are prepared beforehand, so that the load itself costs as little as possible.
const SCRIPT: &str = r#"
local requests, next = {}, 0
function init(args)
  for token in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format(nil, nil, {["Authorization"] = "Bearer " .. token, ["Host"] = "bench"})
  end
end
function request()
  next = next + 1
  if next > #requests then next = 1 end
  return requests[next]
end
"#;

/// The end of every script: it prints a line that [`Wrk::load`] parses.
pub const REPORT_RESULT: &str = r#"
function done(summary, latency)
  local e = summary.errors
  print("RESULT", summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9))
end
"#;

/// The figures of a server in one run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Requests answered in a second.
    pub rate: f64,
    /// The server's CPU time for one request, in microseconds.
    pub cpu: f64,
    /// Latencies under full load, in microseconds: p50, p99 and p99.9.
    pub latency: [f64; 3],
}

/// The result that wrk reports.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// How many requests were answered.
    pub requests: f64,
    /// How many of them got a status of 400 or above.
    pub refused: f64,
    /// Latencies in microseconds: p50, p99 and p99.9.
    pub latency: [f64; 3],
    microseconds: f64,
}

impl Outcome {
    /// Requests answered in a second.
    pub fn rate(&self) -> f64 {
        self.requests / self.microseconds * 1e6
    }
}

/// The load, ready to run.
pub struct Wrk {
    program: PathBuf,
    folder: PathBuf,
}

impl Wrk {
    /// Writes the load's script into a folder.
    pub fn new(program: PathBuf, folder: &Path) -> anyhow::Result<Self> {
        std::fs::write(folder.join("load.lua"), format!("{SCRIPT}{REPORT_RESULT}"))?;
        Ok(Self { program, folder: folder.to_owned() })
    }

    /// The file with the tokens of a load, written on first use.
    pub fn tokens(&self, tokens: u64) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("load-{tokens}"));
        if !path.exists() {
            let mut text = String::new();
            for token in tokens::load(tokens) {
                text.push_str(&token);
                text.push('\n');
            }
            std::fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))?;
        }
        Ok(path)
    }

    /// Loads a server for a time. Fails if more or fewer requests are denied than this share.
    pub fn run(&self, server: &Server, time: Duration, denied: f64) -> anyhow::Result<Run> {
        let tokens = self.tokens(server.tokens)?;
        let before = server.cpu()?;
        let outcome = self.load(&self.folder.join("load.lua"), &server.url(), time, Some(&tokens))?;
        let cpu = (server.cpu()? - before).as_secs_f64() * 1e6;
        let Outcome { requests, refused, latency, .. } = outcome;
        let expected = requests * denied;
        ensure!(
            (refused - expected).abs() <= CONNECTIONS as f64 + 1.0,
            "{}: {refused} of {requests} requests were denied, not {expected}",
            server.name
        );
        Ok(Run { rate: outcome.rate(), cpu: cpu / requests, latency })
    }

    /// Runs a script with a URL, on the second core. Fails if a request gets no response.
    pub fn load(
        &self,
        script: &Path,
        url: &str,
        time: Duration,
        argument: Option<&Path>,
    ) -> anyhow::Result<Outcome> {
        let mut wrk = self.command(script, url);
        wrk.args([
            "-t1",
            &format!("-c{CONNECTIONS}"),
            &format!("-d{}s", time.as_secs()),
            "--timeout",
            "10s",
            "--",
        ]);
        wrk.args(argument);
        let text = output(&wrk)?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("RESULT")).context("wrk printed no result")?;
        let fields: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [requests, microseconds, refused, broken, p50, p99, p999] = fields[..] else {
            anyhow::bail!("wrk printed {line}")
        };
        ensure!(broken == 0.0, "{url}: {broken} requests got no response");
        Ok(Outcome { requests, refused, latency: [p50, p99, p999], microseconds })
    }

    /// wrk's command, with a script and a URL.
    pub fn command(&self, script: &Path, url: &str) -> Command {
        let mut wrk = Command::new(&self.program);
        wrk.arg("-s").arg(script).arg(url);
        wrk
    }
}
