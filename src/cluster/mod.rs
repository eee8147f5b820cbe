//! What both roles need of a Kubernetes cluster: a client, the pepper, the lease, and what its errors mean.

pub mod backoff;
pub mod client;
pub mod error;
pub mod lease;
pub mod pepper;
