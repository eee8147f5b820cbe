//! How the processes are watched: logs, metrics and probes.

pub mod log;
pub mod probes;
