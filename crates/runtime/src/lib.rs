//! What every process needs, once: the cluster, TLS, telemetry, listeners, shutdown.

pub mod backoff;
pub mod cluster;
pub mod config;
pub mod failpoint;
pub mod listen;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
