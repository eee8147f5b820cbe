//! A Git repository, served on loopback, and Flux's engine to reconcile it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use devcluster::process::Guarded;
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::tool;
use testkit::{Site, eventually, free_port};

/// What Flux did with one object.
#[derive(Debug, Deserialize)]
pub struct Outcome {
    pub object: String,
    pub action: String,
}

/// A repository whose folder `tokens` is applied to one namespace.
pub struct Repository<'s> {
    site: &'s Site,
    namespace: String,
    folder: TempDir,
    url: String,
    _server: Guarded,
}

impl<'s> Repository<'s> {
    /// Creates one with `examples/gitops`, and serves it by `git daemon`.
    pub async fn of_examples(site: &'s Site, namespace: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = folder.path().join("work/tokens");
        fs::create_dir_all(&tokens).expect("a folder");
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gitops");
        for file in fs::read_dir(examples).expect("examples").map(|file| file.expect("a file")) {
            fs::copy(file.path(), tokens.join(file.file_name())).expect("a copy");
        }
        let address = free_port();
        let mut daemon = Command::new("git");
        daemon.args(["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]);
        daemon.arg(format!("--port={}", address.port()));
        daemon.arg(format!("--base-path={}", folder.path().display()));
        let server = Guarded::spawn(daemon).expect("git daemon");
        let url = format!("git://{address}/work");
        let repository = Self { site, namespace: namespace.to_owned(), folder, url, _server: server };
        repository.git(&["init", "--quiet"]);
        repository.commit("the examples");
        eventually("git daemon", async || {
            std::net::TcpStream::connect(address).map(drop).map_err(|error| error.to_string())
        })
        .await;
        repository
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("work/tokens").join(name)
    }

    /// Adds an ApiToken to the folder and its kustomization.
    pub fn add(&self, name: &str, spec: &Value) {
        let token = serde_json::json!({
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "ApiToken", "metadata": {"name": name}, "spec": spec,
        });
        let file = format!("{name}.yaml");
        fs::write(self.path(&file), token.to_string()).expect("a file");
        self.edit("kustomization.yaml", "resources:\n", &format!("resources:\n  - {file}\n"));
    }

    /// Replaces a text in a file, which must contain it.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).expect("a file");
        assert!(text.contains(from), "{name} lacks {from}: {text}");
        fs::write(self.path(name), text.replace(from, to)).expect("a file");
    }

    pub fn commit(&self, message: &str) {
        self.git(&["add", "--all"]);
        let who = ["-c", "user.name=team", "-c", "user.email=team@example.com"];
        self.git(&[&who, &["commit", "--quiet", "--message", message][..]].concat());
    }

    /// Reconciles the last commit.
    pub fn reconcile(&self) -> Vec<Outcome> {
        self.try_reconcile(&[]).unwrap_or_else(|complaint| panic!("flux: {complaint}"))
    }

    /// What differs in the cluster from the last commit.
    pub fn drift(&self) -> Vec<Outcome> {
        self.try_reconcile(&["-drift"]).unwrap_or_else(|complaint| panic!("flux: {complaint}"))
    }

    /// Reconciles the last commit; returns the error's text if that fails.
    pub fn try_reconcile(&self, flags: &[&str]) -> Result<Vec<Outcome>, String> {
        let mut flux = Command::new(&*tool::FLUX);
        flux.env("KUBECONFIG", self.site.cluster.kubeconfig()).args([
            "-repository",
            &self.url,
            "-path",
            "tokens",
        ]);
        flux.args(["-namespace", &self.namespace]).args(flags);
        flux.arg("-inventory").arg(self.folder.path().join("inventory.json"));
        let (ok, printed, complaint) = tool::run(flux, "");
        if ok { Ok(serde_json::from_str(&printed).expect("JSON")) } else { Err(complaint) }
    }

    fn git(&self, args: &[&str]) {
        let mut git = Command::new("git");
        // Isolated from the user's own configuration.
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        let output = git.args(args).current_dir(self.folder.path().join("work")).output().expect("git runs");
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
