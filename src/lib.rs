//! The command line, as a library so that tests can ask it which flags there are.

pub mod cli;
pub mod manifests;
