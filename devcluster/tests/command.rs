//! `cargo cluster` from up to down, in a target folder of its own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Runs the command with a target folder of its own, and stops the cluster even if the test fails.
struct CargoCluster {
    target: tempfile::TempDir,
}

impl CargoCluster {
    fn run(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_devcluster"))
            .args(arguments.split(' '))
            .env("CARGO_TARGET_DIR", self.target.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn succeeds(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.target.path().join("devcluster").join(name)
    }

    /// The process id of kube-apiserver. `None`: it does not run.
    fn apiserver(&self) -> Option<String> {
        let status = String::from_utf8(self.run("status").stdout).unwrap();
        let line = status.lines().find(|line| line.starts_with("kube-apiserver"))?.to_owned();
        line.ends_with(" runs").then(|| line.split_whitespace().nth(1).map(str::to_owned))?
    }
}

impl Drop for CargoCluster {
    fn drop(&mut self) {
        self.run("down");
    }
}

#[test]
fn the_cluster_stays_from_up_to_down() {
    let cluster = CargoCluster { target: tempfile::tempdir().unwrap() };
    assert_eq!(cluster.succeeds("down"), "No cluster runs.\n");
    assert!(!cluster.run("status").status.success());
    let unborn = cluster.run("kubectl get namespaces");
    assert!(String::from_utf8(unborn.stderr).unwrap().contains("cargo cluster up"));

    let up = cluster.succeeds("up");
    assert!(up.contains("export KUBECONFIG="), "{up}");
    assert!(up.contains(&*cluster.path("kubeconfig").to_string_lossy()), "{up}");
    assert!(up.contains(&*cluster.path("bin/kubectl").to_string_lossy()), "{up}");
    let kubectl = Command::new(cluster.path("bin/kubectl"))
        .args(["get", "--raw", "/readyz"])
        .env("KUBECONFIG", cluster.path("kubeconfig"))
        .output()
        .unwrap();
    assert_eq!(kubectl.stdout, b"ok");

    // Arguments and exit code are passed through.
    cluster.succeeds("kubectl get serviceaccount default -n default --output=name");
    assert_eq!(cluster.run("kubectl get namespace nowhere").status.code(), Some(1));

    let first = cluster.apiserver().unwrap();
    assert!(cluster.succeeds("up").contains("already"));
    assert_eq!(cluster.apiserver().unwrap(), first);

    // As after a crash: what is left is stopped, and a new cluster started.
    assert!(Command::new("kill").args(["-KILL", &first]).status().unwrap().success());
    while cluster.apiserver().is_some() {}
    assert!(cluster.run("status").stdout.starts_with(b"The cluster is incomplete"));
    assert!(cluster.succeeds("up").starts_with("The cluster runs, at"));
    assert_ne!(cluster.apiserver().unwrap(), first);

    assert_eq!(cluster.succeeds("down"), "The cluster is stopped, its data removed.\n");
    for name in ["state.json", "kubeconfig", "run"] {
        assert!(!cluster.path(name).exists(), "{name}");
    }
    let left = Command::new("ps").args(["-A", "-o", "command="]).output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(!left.contains(&*cluster.target.path().to_string_lossy()), "{left}");
}
