//! What both roles need of a Kubernetes cluster: a client, the pepper, the lease, who may do what, and what its errors
//! mean.

pub mod access;
pub mod client;
pub mod error;
pub mod lease;
pub mod pepper;
pub mod watch;
