//! A Python environment below the target directory, with the packages that `requirements.txt` pins.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/contract/requirements.txt");

pub struct Python {
    bin: PathBuf,
}

impl Python {
    /// Creates the environment, unless it is there already with exactly these packages.
    pub fn provide() -> Self {
        let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
        let wanted = fs::read_to_string(REQUIREMENTS).expect("the requirements");
        let installed = environment.join("installed.txt");
        if fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
            install(&environment);
            fs::write(&installed, &wanted).expect("a note of what is installed");
        }
        Self { bin: environment.join("bin") }
    }

    /// A program of one of its packages.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        // Not buffered, so that its output can be read line by line.
        command.env("PYTHONUNBUFFERED", "1").stdin(Stdio::null());
        command
    }
}

fn install(environment: &Path) {
    let start = Instant::now();
    eprintln!("installing schemathesis and Authlib into {}, once; some 30 s", environment.display());
    // From scratch: an interrupted run may have left it incomplete.
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment));
    let pip =
        ["-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", "--no-deps", "-r"];
    run(Command::new(environment.join("bin/python")).args(pip).arg(REQUIREMENTS));
    eprintln!("installed after {} s", start.elapsed().as_secs());
}

/// Runs a command that shows its own progress.
fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status();
    let status =
        status.unwrap_or_else(|error| panic!("{command:?}: {error}; install python3 and python3-venv"));
    assert!(status.success(), "{command:?}: {status}; on Debian, python3-venv must be installed too");
}
