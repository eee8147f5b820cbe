//! The command line, as a library so that tests can list its flags.

pub mod cli;
pub mod manifests;
