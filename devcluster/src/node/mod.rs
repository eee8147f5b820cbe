//! A node: containerd, kubelet, kube-proxy and CoreDNS in a [`Sandbox`], and a scheduler, so that pods run.
//!
//! The kubelet, kube-proxy, the scheduler and CoreDNS each have a user of their own, with the rights that Kubernetes
//! gives to it: what a pod may mount is decided as in any cluster.
//! Pods reach each other, Services, the node and this machine, and nothing beyond it.

mod config;
mod loader;
mod programs;
mod sandbox;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control_plane::{ControlPlane, flag, probe, write_private};
use crate::image::Image;
use crate::kubeconfig::Credentials;
use crate::network::{Network, NodeNetwork};
use crate::process::DROP_GRACE;
use crate::progress::Step;
use crate::service::{Launcher, Service, connects};
use crate::{Error, Options, Version};

pub(crate) use loader::Loader;
pub(crate) use programs::Programs;
use sandbox::{Namespaces, Sandbox};

/// A running node. Dropping it ends every pod.
pub(crate) struct Node {
    programs: Programs,
    folder: PathBuf,
    sandbox: Sandbox,
    services: Vec<Service>,
}

/// Fails unless a node can run here and with these options. Called before anything is started.
pub(crate) fn check(options: &Options) -> Result<(), Error> {
    if !cfg!(target_os = "linux") {
        return Err(Error::NodeNeedsLinux);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NodeNeedsRoot);
    }
    if options.version.is_some_and(|version| version != Version::default()) {
        return Err(Error::NodeVersion { version: Version::default() });
    }
    Ok(())
}

/// Fails if a node would not see this path, because it mounts folders of its own there.
fn check_visible(path: &Path) -> Result<(), Error> {
    const HIDDEN: [&str; 3] = ["/run", "/var/lib", "/var/log"];
    if HIDDEN.iter().any(|hidden| path.starts_with(hidden)) {
        return Err(Error::NodePath { path: path.to_owned() });
    }
    Ok(())
}

// === impl Node ===

impl Node {
    /// Gets the programs, and creates the namespaces and the network, which the control plane needs to start.
    pub(crate) fn prepare(launcher: &Launcher) -> Result<Self, Error> {
        check_visible(&launcher.folder)?;
        let programs = Programs::provide()?;
        check_visible(&programs.containerd)?;
        let folder = launcher.folder.join("node");
        let sandbox = Sandbox::start(launcher, &folder)?;
        Ok(Self { programs, folder, sandbox, services: Vec::new() })
    }

    /// Starts everything on the control plane, and waits until the node is ready.
    pub(crate) fn start(&mut self, control_plane: &ControlPlane) -> Result<(), Error> {
        let step = Step::start("starting the node".to_owned(), Duration::from_secs(15));
        self.write_files(control_plane)?;
        let launcher = control_plane.launcher();
        self.start_containerd(launcher)?;
        self.start_kubernetes(launcher, control_plane)?;
        self.start_dns(launcher, control_plane)?;
        self.wait_until_ready(launcher, control_plane)?;
        step.end("done");
        Ok(())
    }

    /// Name and process id of each process, the one that ends all others first.
    pub(crate) fn processes(&self) -> Vec<(&'static str, u32)> {
        let services = self.services.iter().map(|service| (service.name, service.process.pid()));
        [self.sandbox.process()].into_iter().chain(services).collect()
    }

    pub(crate) fn loader(&self) -> Loader {
        Loader { namespaces: self.sandbox.namespaces().clone(), ctr: self.programs.ctr.clone() }
    }

    pub(crate) fn stop(self) -> Result<(), Error> {
        self.sandbox.stop()?;
        for service in self.services {
            service.stop(DROP_GRACE)?;
        }
        Ok(())
    }

    /// Lets the node outlive this process.
    pub(crate) fn detach(self) -> Result<(), Error> {
        for service in self.services {
            service.process.detach().map_err(Error::process("detach", service.name))?;
        }
        self.sandbox.detach()
    }

    pub(crate) fn network(&self) -> NodeNetwork {
        self.sandbox.network()
    }

    fn name(&self) -> &str {
        self.sandbox.namespaces().name()
    }

    fn write_files(&self, control_plane: &ControlPlane) -> Result<(), Error> {
        let (pki, cni) = (self.folder.join("pki"), self.folder.join("cni"));
        for folder in [&pki, &cni] {
            fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        }
        let authority = control_plane.authority();
        let address = self.network().node().to_string();
        let serving = authority.server(&format!("system:node:{}", self.name()), &[&address])?;
        for (path, text) in [
            (pki.join("ca.crt"), authority.certificate()),
            (pki.join("kubelet.crt"), serving.certificate.clone()),
            (pki.join("kubelet.key"), serving.key.clone()),
            (cni.join("10-devcluster.conflist"), config::cni(self.network())),
            (self.file("containerd.toml"), config::containerd(&self.programs.cni, &cni)),
            (self.file("kubelet.json"), config::kubelet(self.network(), &pki, self.name())),
            (self.file("Corefile"), config::corefile(self.network(), &self.kubeconfig("coredns"))),
            (self.file("dns.json"), config::dns_objects(self.network())),
        ] {
            write_private(&path, &text)?;
        }
        for (name, user, group) in [
            ("kubelet", format!("system:node:{}", self.name()), Some("system:nodes")),
            ("kube-proxy", "system:kube-proxy".to_owned(), None),
            ("kube-scheduler", "system:kube-scheduler".to_owned(), None),
            ("coredns", "system:coredns".to_owned(), None),
        ] {
            let pair = authority.client(&user, group)?;
            let text = control_plane.endpoint().kubeconfig(&Credentials::Certificate(&pair), "default");
            write_private(&self.kubeconfig(name), &text)?;
        }
        Ok(())
    }

    fn start_containerd(&mut self, launcher: &Launcher) -> Result<(), Error> {
        // It looks for runc and its own shim on PATH.
        let folders =
            [&self.programs.containerd, &self.programs.runc].map(|program| program.with_file_name(""));
        let [own, runc] = folders.each_ref().map(|folder| folder.display());
        let path = format!("PATH={own}:{runc}:/usr/sbin:/usr/bin:/sbin:/bin");
        let program = self.programs.containerd.clone().into_os_string();
        let config = flag("--config", self.file("containerd.toml"));
        self.spawn(launcher, "containerd", "env", &[path.into(), program, config])?;
        let loader = self.loader();
        self.wait_ready(launcher, "containerd", || loader.probe())?;

        let pause = self.file("pause.tar");
        let image = Image::new(config::PAUSE_IMAGE).program("/pause", &self.programs.pause);
        image.entrypoint(&["/pause"]).write(&pause)?;
        loader.load(&pause)
    }

    fn start_kubernetes(&mut self, launcher: &Launcher, control_plane: &ControlPlane) -> Result<(), Error> {
        let programs = self.programs.kubernetes.clone();
        let name = flag("--hostname-override", self.name());
        let scheduler = vec![
            flag("--kubeconfig", self.kubeconfig("kube-scheduler")),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
        ];
        // Outside of the node, of which it needs nothing.
        self.services.push(launcher.spawn("kube-scheduler", &programs.kube_scheduler, &scheduler)?);

        let kubelet = vec![
            flag("--config", self.file("kubelet.json")),
            flag("--kubeconfig", self.kubeconfig("kubelet")),
            flag("--node-ip", self.network().node().to_string()),
            name.clone(),
        ];
        self.spawn(launcher, "kubelet", programs.kubelet, &kubelet)?;
        let node = format!("node/{}", self.name());
        let (kubectl, folder) = (control_plane.binaries().kubectl.clone(), launcher.folder.clone());
        // First the Node object: kube-proxy reads the node's address once, and waits long before it retries.
        self.wait_ready(launcher, "kubelet", || probe(&kubectl, &folder, &["get", &node]))?;

        let kube_proxy = vec![
            flag("--kubeconfig", self.kubeconfig("kube-proxy")),
            name,
            // With nftables it has tables of its own, and touches no others.
            "--proxy-mode=nftables".into(),
            flag("--cluster-cidr", self.network().pods()),
            // The node must not change the machine's limits.
            "--conntrack-max-per-core=0".into(),
        ];
        self.spawn(launcher, "kube-proxy", programs.kube_proxy, &kube_proxy)
    }

    fn start_dns(&mut self, launcher: &Launcher, control_plane: &ControlPlane) -> Result<(), Error> {
        let objects = self.file("dns.json").display().to_string();
        let words = ["create", "--filename", &objects];
        let created = probe(&control_plane.binaries().kubectl, &launcher.folder, &words);
        created.map_err(|message| Error::Kubectl { arguments: words.join(" "), message })?;
        let flags = ["-conf".into(), self.file("Corefile").into()];
        self.spawn(launcher, "coredns", self.programs.coredns.clone(), &flags)
    }

    /// Waits until pods can be scheduled, and Services respond, DNS included.
    fn wait_until_ready(&mut self, launcher: &Launcher, control_plane: &ControlPlane) -> Result<(), Error> {
        let node = format!("node/{}", self.name());
        let wait = ["wait", "--for=condition=Ready", "--timeout=1s", &node];
        let (kubectl, folder) = (control_plane.binaries().kubectl.clone(), launcher.folder.clone());
        let kubernetes = format!("https://{}:443", Network::from(self.network()).kubernetes_service());
        let dns = format!("http://{}:53", self.network().dns_service());
        self.wait_ready(launcher, "kubelet", || probe(&kubectl, &folder, &wait))?;
        self.wait_ready(launcher, "kube-proxy", || connects(&kubernetes))?;
        self.wait_ready(launcher, "coredns", || connects(&dns))
    }

    fn spawn(
        &mut self,
        launcher: &Launcher,
        name: &'static str,
        program: impl AsRef<OsStr>,
        flags: &[OsString],
    ) -> Result<(), Error> {
        let words = self.sandbox.namespaces().enter(program, flags);
        self.services.push(launcher.spawn(name, Path::new("nsenter"), &words)?);
        Ok(())
    }

    fn wait_ready(
        &mut self,
        launcher: &Launcher,
        name: &str,
        probe: impl FnMut() -> Result<(), String>,
    ) -> Result<(), Error> {
        let service = self.services.iter_mut().find(|service| service.name == name);
        service.map_or(Ok(()), |service| launcher.wait_ready(service, probe))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.kubeconfig"))
    }
}
