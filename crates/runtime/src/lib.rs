//! What every process needs: the cluster, TLS, telemetry, listeners, shutdown.

pub mod backoff;
pub mod cluster;
pub mod config;
pub mod entropy;
pub mod failpoint;
pub mod listen;
pub mod serve;
pub mod shutdown;
pub mod sync;
pub mod telemetry;
pub mod tls;
pub mod turns;
