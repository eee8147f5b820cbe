//! `cargo programs [NAME]...`: gets the programs that tests and benchmarks use, and prints their paths.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use programs::Error;

type Provide = fn() -> Result<PathBuf, Error>;

const ALL: [(&str, Provide); 13] = [
    ("nginx", programs::nginx),
    ("haproxy", programs::haproxy),
    ("caddy", programs::caddy),
    ("envoy", programs::envoy),
    ("traefik", programs::traefik),
    ("apache", || programs::mod_auth_openidc().map(|apache| apache.program)),
    ("helm", programs::helm),
    ("helm3", programs::helm3),
    ("kubeconform", programs::kubeconform),
    ("crane", programs::crane),
    ("wrk", programs::wrk),
    ("promtool", programs::promtool),
    ("libfaketime", programs::faketime),
];

fn main() -> ExitCode {
    let names: Vec<String> = env::args().skip(1).collect();
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|(known, _)| known != name)) {
        let known = ALL.map(|(name, _)| name).join(", ");
        return fail(&format!("unknown program {unknown:?}: name any of {known}, or none for all"));
    }
    for (name, provide) in ALL {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        match provide() {
            Ok(path) => drop(writeln!(io::stdout(), "{name:11} {}", path.display())),
            Err(error) => return fail(&error.to_string()),
        }
    }
    ExitCode::SUCCESS
}

fn fail(message: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {message}");
    ExitCode::FAILURE
}
