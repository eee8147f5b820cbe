//! tokenward: API tokens as Kubernetes objects.

pub mod crd;
pub mod lifecycle;
pub mod token;
