//! `cargo demo`: the life of three tokens on a real cluster, step by step; each step is measured and checked.
//!
//! `--keep` leaves it all running afterwards, to play with, until Ctrl-C. A step that fails ends the demo
//! with an error that says what was expected and what was seen.
//!
//! Map: [`story`] is what is shown, one function a step. [`stage`] sets up what it is shown on: the cluster, what
//! users install, the two processes. [`gate`] asks the verifier as a gateway does, [`hook`] receives events, [`live`]
//! watches the ApiTokens, [`show`] prints.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demo talks to its user")]

mod gate;
mod hook;
mod live;
mod show;
mod stage;
mod story;

use std::future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::show::Show;
use self::stage::Stage;

/// How long to wait for anything: generous, since the machine may be busy.
const TIMEOUT: Duration = Duration::from_secs(30);

/// By convention 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// The life of three API tokens on a real Kubernetes API server, in about half a minute.
#[derive(Parser)]
#[command(name = "cargo demo", bin_name = "cargo demo")]
struct Args {
    /// Stay up after the story, and say how to use it, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Use this cluster instead of starting one. What is installed there stays; the namespace `demo` does not
    /// [default: that of the environment variable KUBECONFIG, if it is set]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(&args));
    // A start that was interrupted is still waited for by a thread; its processes end with this one.
    runtime.shutdown_background();
    code
}

async fn run(args: &Args) -> ExitCode {
    let mut show = Show::new();
    let mut stage = None;
    let outcome = match on_signal() {
        Ok(mut signals) => tokio::select! {
            biased;
            // An error would be a sender that is gone, and it lives as long as the process.
            _ = signals.wait_for(|signals| *signals > 0) => Ok(false),
            outcome = demo(args, &mut show, &mut stage) => outcome.map(|()| true),
        },
        Err(error) => Err(error),
    };
    let complete = show.is_complete();
    let code = match &outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("\nInterrupted; stopping what was started.");
            if complete { ExitCode::SUCCESS } else { ExitCode::from(INTERRUPTED) }
        }
        Err(error) => {
            show.failure(error, stage.as_mut().map(Stage::log_tails).unwrap_or_default().as_slice());
            ExitCode::FAILURE
        }
    };
    let Some(stage) = stage else { return code };
    match stage.stop().await {
        Ok(left) => {
            println!("{left}");
            code
        }
        Err(error) => {
            eprintln!("error: stopping: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(args: &Args, show: &mut Show, stage: &mut Option<Stage>) -> anyhow::Result<()> {
    stage::set(args.kubeconfig.clone(), show, stage).await?;
    let stage = stage.as_ref().context("a stage that was set is there")?;
    story::run(show, stage).await?;
    show.summary();
    if args.keep {
        stage.say_how_to_use();
        future::pending::<()>().await;
    }
    Ok(())
}

/// Counts SIGINT and SIGTERM. The second one ends the process at once; what it started then ends by its guards.
fn on_signal() -> anyhow::Result<watch::Receiver<u32>> {
    let (count, counted) = watch::channel(0);
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be listened for")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be listened for")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if *count.borrow() > 0 {
                std::process::exit(i32::from(INTERRUPTED));
            }
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(counted)
}
