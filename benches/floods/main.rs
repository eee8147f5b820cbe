//! What strangers and tenants can do: floods of every port, and objects by the hundred, under the chart's memory limits, each
//! with a thousand good checks a second beside it.
//!
//! `cargo bench --bench floods` runs all of it in some 50 minutes and prints tables; `-- --write` stores them in
//! `benches/RESULTS.md`, `--seconds 10` is for a look. It needs two cores, root for nice values and peaks of memory, and open
//! files for ten thousand connections. All load goes to loopback.
//!
//! Map: [`strangers`] and [`tenants`] are the parts, [`site`] what is flooded, [`good`] the good load, [`flood`] the
//! floods with the bytes of [`http2`] and [`tls`], [`burn`] the baseline.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a report is printed")]

#[path = "../support/args.rs"]
mod args;
mod burn;
mod flood;
mod good;
mod http2;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/report.rs"]
mod report;
mod site;
mod steal;
mod strangers;
mod tenants;
mod tls;
#[path = "../support/world.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod world;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::args::Common;
use self::flood::{Attack, Kind, Wire};
use self::good::Protocol;
use self::report::Report;
use self::site::Site;

/// How long the cluster may take for anything.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Floods the ports and the API, and measures what others notice.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// What to measure [default: everything]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// How long each flood takes, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this kind of flood
    #[arg(long)]
    only: Option<Kind>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What a stranger does to each port
    Strangers,
    /// What a tenant does by its objects
    Tenants,
}

/// The processes of the benchmark that are this executable too.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Good { protocol: Protocol, address: SocketAddr, tokens: PathBuf, seconds: u64 },
    #[command(hide = true)]
    Flood { kind: Kind, wire: Wire, to: SocketAddr, from: IpAddr, seconds: u64, jwt: Option<String> },
    #[command(hide = true)]
    Burn { percent: u32, seconds: u64 },
}

fn main() -> anyhow::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let args = Args::parse();
    match args.role {
        Some(Role::Good { protocol, address, ref tokens, seconds }) => {
            good::main(protocol, address, tokens, Duration::from_secs(seconds))
        }
        Some(Role::Flood { kind, wire, to, from, seconds, jwt }) => {
            flood::main(&Attack { kind, wire, to, from, jwt }, Duration::from_secs(seconds))
        }
        Some(Role::Burn { percent, seconds }) => {
            burn::main(percent, Duration::from_secs(seconds));
            Ok(())
        }
        None => tokio::runtime::Runtime::new()?.block_on(measure(&args)),
    }
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("floods");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let mut report = Report::new("Floods", "`cargo bench --bench floods`.");
    let mut site = Site::start(&args.common.tokenward, &folder).await?;
    if wanted(Part::Strangers) {
        strangers::measure(&mut site, args.seconds, args.only, &mut report).await?;
    }
    if wanted(Part::Tenants) {
        tenants::measure(&mut site, args.seconds, &mut report).await?;
    }
    if args.common.write {
        report.store()?;
    }
    Ok(())
}

/// A loopback address with a free port.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
