//! The command `cargo demo`: builds Kubernetes with Go and tokenward with cargo at the same time, then becomes the
//! program `demo`, with the arguments that it was given.
//!
//! An example, so that `cargo build` and the commands that users install lack it.

#![allow(clippy::print_stderr, reason = "a command talks to its user")]

use std::convert::Infallible;
use std::error::Error;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{env, thread};

use devcluster::process::Guarded;
use devcluster::{Binaries, progress};
use serde_json::Value;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = env::args_os().skip(1).collect();
    // `cargo demo -- --keep`: the alias has one of its own.
    if arguments.first().is_some_and(|argument| argument == "--") {
        arguments.remove(0);
    }
    let Err(error) = run(&arguments);
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

fn run(arguments: &[OsString]) -> Result<Infallible, Failure> {
    // Cargo draws on the terminal too.
    progress::lines_only();
    let (send, results) = mpsc::channel();
    if needs_control_plane(arguments) {
        let send = send.clone();
        thread::spawn(move || send.send(Binaries::provide().map(|_| None).map_err(Failure::from)));
    }
    thread::spawn(move || send.send(build().map(Some)));
    let mut demo = None;
    // The first failure ends this process, and with it the other build.
    for result in results {
        demo = result?.or(demo);
    }
    let demo = demo.ok_or("the demo was not built")?;
    Err(Command::new(demo).args(arguments).exec().into())
}

/// Whether the demo will start a cluster: not on one that exists, and not for its help.
fn needs_control_plane(arguments: &[OsString]) -> bool {
    let is_other = |argument: &OsString| {
        let argument = argument.to_string_lossy();
        argument.starts_with("--kubeconfig") || argument == "--help" || argument == "-h"
    };
    env::var_os("KUBECONFIG").is_none_or(|value| value.is_empty()) && !arguments.iter().any(is_other)
}

/// Builds the demo and tokenward, and returns the path of the demo. Beside an example, which this launcher is, the
/// dependencies get the features that tests ask of them, so `cargo test` builds none of them again.
fn build() -> Result<PathBuf, Failure> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--workspace", "--bin", "demo", "--bin", "tokenward", "--example", "cargo-demo"])
        // Cargo itself says where it has put the demo, whatever target folder is configured.
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // `cargo run` describes this package to us. Build scripts would take it for a change, and half of the
    // dependencies would be built anew, now and at the next `cargo test`.
    let foreign = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(foreign)) {
        command.env_remove(name);
    }
    let mut cargo = Guarded::spawn(command).map_err(|error| format!("cargo can't be started: {error}"))?;
    let mut messages = String::new();
    cargo.take_stdout().ok_or("cargo has no output")?.read_to_string(&mut messages)?;
    // It has closed its output, so it is about to end.
    let status = cargo.wait_timeout(Duration::from_secs(10))?.ok_or("cargo does not end")?;
    if !status.success() {
        return Err(format!("the demo can't be built ({status})").into());
    }
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut demos = messages.filter(|message| message["target"]["name"] == "demo");
    let demo = demos.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    demo.ok_or_else(|| "cargo does not say where it has put the demo".into())
}
