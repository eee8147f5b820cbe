//! The closed load: wrk on the second core, 64 connections that ask again as soon as they are answered.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::server::{Server, output};
use super::tokens;

const CONNECTIONS: u64 = 64;

/// wrk's script. Requests are made beforehand, so that the load costs as little as it can.
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
function done(summary, latency)
  local e = summary.errors
  print("RESULT", summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9))
end
"#;

/// What one run has shown.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Requests answered in a second.
    pub rate: f64,
    /// The server's CPU time for one request, in microseconds.
    pub cpu: f64,
    /// Latencies under full load, in microseconds: median, 99 and 99.9 of 100.
    pub latency: [f64; 3],
}

/// The load, ready to run.
pub struct Wrk {
    program: PathBuf,
    folder: PathBuf,
}

impl Wrk {
    /// Writes the script into a folder.
    pub fn new(program: PathBuf, folder: &Path) -> anyhow::Result<Self> {
        std::fs::write(folder.join("load.lua"), SCRIPT)?;
        Ok(Self { program, folder: folder.to_owned() })
    }

    /// The file of the load over a number of tokens, made on first use.
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

    /// Loads a server for a time. An answer that was not to be expected fails the run.
    pub fn run(&self, server: &Server, time: Duration) -> anyhow::Result<Run> {
        let mut wrk = Command::new(&self.program);
        wrk.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{}s", time.as_secs()), "--timeout", "10s"]);
        wrk.arg("-s").arg(self.folder.join("load.lua"));
        wrk.arg(format!("http://{}{}", server.address, server.path));
        wrk.arg("--").arg(self.tokens(server.tokens)?);
        let before = server.cpu()?;
        let text = output(&wrk)?;
        let cpu = (server.cpu()? - before).as_secs_f64() * 1e6;
        let line =
            text.lines().find_map(|line| line.strip_prefix("RESULT")).context("wrk printed no result")?;
        let fields: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [requests, microseconds, refused, broken, p50, p99, p999] = fields[..] else {
            anyhow::bail!("wrk printed {line}")
        };
        let expected = requests / tokens::BAD_EVERY as f64;
        ensure!(broken == 0.0, "{}: {broken} requests had no answer", server.name);
        ensure!(
            (refused - expected).abs() <= CONNECTIONS as f64 + 1.0,
            "{}: {refused} of {requests} requests were refused, not {expected}",
            server.name
        );
        Ok(Run { rate: requests / microseconds * 1e6, cpu: cpu / requests, latency: [p50, p99, p999] })
    }
}
