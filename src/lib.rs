#![doc = include_str!("../ARCHITECTURE.md")]

pub mod admission;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod crd;
mod failpoint;
pub mod lifecycle;
mod listen;
mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod token;
pub mod verifier;
pub mod webhook;
