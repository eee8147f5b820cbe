//! The command `cargo cluster`: a development cluster that runs until `cargo cluster down`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command talks to its user")]

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use devcluster::state::{DetachedCluster, Running, Up};
use devcluster::{Binaries, Error, Options, Version};

/// A real Kubernetes control plane on loopback, for development and the demo.
#[derive(Parser)]
#[command(name = "cargo cluster", bin_name = "cargo cluster")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start the cluster, unless it runs already, and leave it running. The first time builds it, which takes minutes.
    Up {
        /// Where to write the kubeconfig (full rights). Default: target/devcluster/kubeconfig.
        #[arg(long, value_name = "FILE")]
        kubeconfig_out: Option<PathBuf>,
        /// Start a node too, on which pods run. Needs root and Linux; builds containerd and others the first time.
        #[arg(long)]
        node: bool,
        /// The version of Kubernetes, 1.33 or 1.36. Default: the newest.
        #[arg(long, value_name = "VERSION")]
        kubernetes: Option<Version>,
        /// One more flag for kube-apiserver, such as --apiserver-arg=--v=6. Can be repeated.
        #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
        apiserver_arg: Vec<String>,
    },
    /// Stop the cluster and remove its data.
    Down,
    /// Show what runs. Fails if the cluster isn't up.
    Status,
    /// Load an image into the node, from a file such as `docker save` writes.
    Load {
        /// A docker-archive, or an OCI layout as a tar file.
        archive: PathBuf,
    },
    /// Run kubectl on the cluster, with full rights.
    Kubectl {
        /// Passed to kubectl unchanged.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Only build the programs, for example to fill a cache.
    Build {
        /// Build those of a node too.
        #[arg(long)]
        node: bool,
        /// The version of Kubernetes, 1.33 or 1.36. Default: the newest.
        #[arg(long, value_name = "VERSION")]
        kubernetes: Option<Version>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode, Error> {
    let place = DetachedCluster::of_workspace();
    match task {
        Task::Up { kubeconfig_out, node, kubernetes, apiserver_arg } => {
            let options = Options {
                node,
                version: kubernetes,
                extra_apiserver_args: apiserver_arg,
                ..Options::default()
            };
            match place.up(options, kubeconfig_out)? {
                Up::Started(running) => {
                    println!("The cluster runs, at {}. Stop it with `cargo cluster down`.", running.url());
                    show(&running);
                }
                Up::AlreadyRunning(running) => {
                    println!("The cluster runs already, at {}.", running.url());
                    show(&running);
                }
            }
        }
        Task::Down => match place.down()? {
            true => println!("The cluster is stopped, its data removed."),
            false => println!("No cluster runs."),
        },
        Task::Status => return status(&place),
        Task::Kubectl { arguments } => {
            // Replaces this process, so that exit code and signals are kubectl's own.
            let source = place.kubectl()?.args(arguments).exec();
            return Err(Error::Process { action: "start", process: "kubectl", source });
        }
        Task::Load { archive } => {
            place.load_image(&archive)?;
            println!("{} is loaded.", archive.display());
        }
        Task::Build { node, kubernetes } => {
            let binaries = Binaries::provide_version(kubernetes)?;
            if node {
                devcluster::build_node()?;
            }
            println!("{}", binaries.kube_apiserver.with_file_name("").display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(running: &Running) {
    println!("kubeconfig: {}", running.kubeconfig().display());
    println!("kubectl:    {}", running.kubectl().display());
    println!("export KUBECONFIG='{}'", running.kubeconfig().display());
}

fn status(place: &DetachedCluster) -> Result<ExitCode, Error> {
    let Some(running) = place.status()? else {
        println!("No cluster runs.");
        return Ok(ExitCode::FAILURE);
    };
    let whole = running.is_whole();
    let word = if whole { "runs" } else { "is incomplete (`cargo cluster up` starts it anew)" };
    println!("The cluster {word}, at {}.", running.url());
    for (name, pid, alive) in running.processes() {
        println!("{name:<24} {pid:>7} {}", if alive { "runs" } else { "has ended" });
    }
    println!("logs:       {}", running.logs().display());
    show(&running);
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
