//! A cluster with a node, on which tokenward is installed as docs/install.md says.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use devcluster::{Image, Options};

use testkit::{Site, Space};

/// The install guide, whose commands are run.
const INSTALL: &str = include_str!("../../docs/install.md");
/// An image with a shell, by the name that the chart's own test uses.
pub const BUSYBOX: &str = "docker.io/library/busybox:1.37";

pub struct Stage {
    pub site: Site,
    /// A folder with kubectl and helm, for PATH.
    programs: PathBuf,
}

impl Stage {
    pub async fn start() -> Self {
        let image = tokio::task::block_in_place(image);
        let helm = tokio::task::block_in_place(programs::helm).expect("Helm");
        let site = Site::bare(Options { node: true, ..Options::default() }).await;
        let programs = site.cluster.dir().join("programs");
        fs::create_dir(&programs).expect("a folder");
        symlink(helm, programs.join("helm")).expect("a link");
        symlink(site.cluster.kubectl().get_program(), programs.join("kubectl")).expect("a link");
        let stage = Self { site, programs };

        stage.load(&image);
        // As root, like the published image of this name.
        let busybox = stage.programs.join("busybox.tar");
        Image::busybox(BUSYBOX).expect("busybox").user("0").write(&busybox).expect("an image");
        stage.load(&busybox);
        stage.install();
        stage
    }

    /// Runs the commands of docs/install.md, and waits for the rollout.
    pub fn install(&self) {
        let start = Instant::now();
        self.sh(commands(INSTALL, "## Helm"));
        self.wait_for_rollout();
        eprintln!("installed: ready {:.1?} after the first command", start.elapsed());
    }

    pub fn wait_for_rollout(&self) {
        let deployments = "deployment/tokenward-controller deployment/tokenward-verifier";
        self.sh(&format!("kubectl rollout status -n tokenward --timeout=180s {deployments}"));
    }

    /// Runs a script in the repository's root, which must succeed; returns what it printed.
    pub fn sh(&self, script: &str) -> String {
        let (ok, output) = self.try_sh(script);
        assert!(ok, "{script}\n{output}\n{}", self.state());
        output
    }

    /// Runs a script; returns whether it succeeded, and its output and errors.
    pub fn try_sh(&self, script: &str) -> (bool, String) {
        let mut path = self.programs.clone().into_os_string();
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let home = self.programs.join("home");
        let output = Command::new("/bin/sh")
            .args(["-euc", script])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("PATH", path)
            .env("KUBECONFIG", self.site.cluster.kubeconfig())
            // Isolated from the user's own Helm configuration.
            .env("HELM_CACHE_HOME", &home)
            .env("HELM_CONFIG_HOME", &home)
            .env("HELM_DATA_HOME", &home)
            .stdin(Stdio::null())
            .output()
            .expect("a shell");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Creates a namespace that enforces the restricted Pod Security Standard.
    pub async fn namespace(&self, name: &str) -> Space {
        let space = self.site.namespace(name).await;
        let label = "pod-security.kubernetes.io/enforce=restricted";
        self.sh(&format!("kubectl label namespace {} {label}", space.name));
        space
    }

    fn load(&self, archive: &Path) {
        self.site.cluster.load_image(archive).expect("the image loads");
    }

    /// The state of the installation, for the message of a failed assertion.
    fn state(&self) -> String {
        self.try_sh(
            "kubectl get pods -A -o wide; kubectl get events -A --sort-by=.lastTimestamp | tail -20
            kubectl logs -n tokenward -l app.kubernetes.io/part-of=tokenward --tail=20 --prefix",
        )
        .1
    }
}

/// The archive of the image: built by `image/build`, or the one that TOKENWARD_IMAGE names.
fn image() -> PathBuf {
    if let Some(archive) = env::var_os("TOKENWARD_IMAGE").filter(|value| !value.is_empty()) {
        return archive.into();
    }
    eprintln!("building the image, once; a release build takes some 10 minutes on two cores");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script =
        Command::new(root.join("image/build")).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = script.expect("image/build");
    assert!(output.status.success(), "image/build failed");
    let printed = String::from_utf8(output.stdout).expect("text");
    root.join(printed.lines().last().expect("a path"))
}

/// The first block of shell commands below a heading.
fn commands<'t>(text: &'t str, heading: &str) -> &'t str {
    let section = text.split_once(&format!("\n{heading}\n")).expect("the heading").1;
    let block = section.split_once("```sh\n").expect("commands").1;
    block.split_once("```").expect("an end").0
}

/// Polls until `check` succeeds; panics with its last error after `timeout`.
pub async fn within<T>(timeout: Duration, what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match check() {
            Ok(found) => return found,
            Err(seen) if start.elapsed() > timeout => {
                panic!("no {what} within {timeout:?}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
