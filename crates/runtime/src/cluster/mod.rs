//! Kubernetes: the client, its errors, watches, access reviews, the lease and the pepper.

pub mod access;
pub mod client;
pub mod error;
pub mod lease;
pub mod pepper;
pub mod watch;
