//! The command line: parse, run the role, turn an error into an exit code.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokenward::cli::{Cli, CrdsArgs, Role};
use tokenward::manifests;
use tokenward_controller::remove_finalizers;
use tokenward_core::crd;
use tokenward_runtime::config::CommonArgs;
use tokenward_runtime::telemetry::log;
use tokenward_runtime::telemetry::log::Format;

// The image is built with musl, whose allocator serves one thread at a time. Other builds use the same allocator, so that
// what is tested is what is shipped.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many tasks run at most until sockets are looked at again. By tokio's 61, a request that comes while others are handled, of
/// which one may take a signature, waits for as many; `cargo bench --bench floods` shows it, and that a check costs no more.
const EVENT_INTERVAL: u32 = 16;

fn main() -> ExitCode {
    match run(Cli::parse().role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(role: Role) -> anyhow::Result<()> {
    match role {
        Role::Controller(args) => serve(&args.common.clone(), tokenward_controller::run(args)),
        Role::Verifier(args) => serve(&args.common.clone(), tokenward_verifier::run(args)),
        Role::RemoveFinalizers(args) => block_on(remove_finalizers::run(args), Format::Auto, "info"),
        Role::Crds(args) => crds(&args),
        Role::Openapi => print(&tokenward_verifier::endpoints::openapi::json()),
    }
}

fn serve(common: &CommonArgs, role: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    block_on(role, common.log_format, &common.log)
}

fn block_on(
    role: impl Future<Output = anyhow::Result<()>>,
    format: Format,
    filter: &str,
) -> anyhow::Result<()> {
    log::init(format, filter)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.event_interval(EVENT_INTERVAL).enable_all().build().context("no runtime")?.block_on(role)
}

fn crds(args: &CrdsArgs) -> anyhow::Result<()> {
    for (name, crd) in crd::all() {
        let yaml = manifests::yaml(&crd)?;
        match &args.dir {
            Some(dir) => {
                let path = dir.join(name);
                std::fs::write(&path, yaml)
                    .with_context(|| format!("{} can't be written", path.display()))?;
            }
            None => print(&yaml)?,
        }
    }
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader such as `head` may close the pipe early.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}
