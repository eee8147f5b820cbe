//! Logs, metrics and probes.

pub mod log;
pub mod probes;
