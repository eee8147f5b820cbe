//! CPU time and memory of a process, from /proc.

use std::time::Duration;

use anyhow::Context;

/// The unit of times in /proc: Linux has a fixed rate of 100 ticks a second.
const TICK: Duration = Duration::from_millis(10);

/// CPU time that a process has used so far, in user space and in the kernel.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before them is in parentheses and may contain spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).context("a short line")?.parse::<u32>().map_err(anyhow::Error::from);
    Ok(TICK * (ticks(11)? + ticks(12)?))
}

/// A process's memory in bytes: the field `VmRSS` is resident memory, `VmHWM` its peak.
pub fn memory(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = value.with_context(|| format!("no {field}"))?.trim().trim_end_matches(" kB");
    Ok(kib.parse::<u64>()? * 1024)
}
