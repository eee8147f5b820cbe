//! What the host takes of the machine's processors for other machines, from /proc.

use anyhow::Context;

/// The processors since the machine has started, in ticks of all of them.
#[derive(Clone, Copy)]
pub struct Processors {
    all: u64,
    stolen: u64,
}

impl Processors {
    pub fn now() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no processors")?;
        // user, nice, system, idle, iowait, irq, softirq, steal. What follows is contained in these.
        let ticks: Vec<u64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { all: ticks.iter().sum(), stolen: ticks.last().copied().unwrap_or_default() })
    }

    /// Percent of the time since then that the host took.
    pub fn stolen_since(self) -> anyhow::Result<f64> {
        let now = Self::now()?;
        let (stolen, all) = (now.stolen.saturating_sub(self.stolen), now.all.saturating_sub(self.all));
        Ok(stolen as f64 / all.max(1) as f64 * 100.0)
    }
}
