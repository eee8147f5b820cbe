//! The two Go programs, each built once.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

pub static FLUX: LazyLock<PathBuf> = LazyLock::new(|| build("flux"));
pub static ARGOCD: LazyLock<PathBuf> = LazyLock::new(|| build("argocd"));

/// Builds a program. Go caches packages, so only the first build takes minutes.
fn build(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gitops").join(name);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "building the {name} program; the first time takes some minutes");
    let mut go = Command::new("go");
    go.args(["build", "-mod=readonly", "-buildvcs=false", "-o"]).arg(&program).arg(".").current_dir(folder);
    go.env("GOWORK", "off").env("CGO_ENABLED", "0");
    assert!(go.status().expect("go runs").success(), "go build failed");
    program
}

/// Runs a program with a text on its standard input; returns whether it succeeded, its stdout and its stderr.
pub fn run(mut command: Command, input: &str) -> (bool, String, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("a process");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.success(), text(output.stdout), text(output.stderr))
}
