//! The processes of one control plane: etcd, kube-apiserver and kube-controller-manager, with their flags,
//! their order and what "ready" means for each.
//!
//! Readiness is probed, never slept for, and a process that ends while it is waited for is an error at once,
//! with the end of its log.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::tail;
use crate::kubeconfig::{Credentials, Endpoint};
use crate::pki::{Authority, TokenKeys};
use crate::process::{DROP_GRACE, Guarded, Signal};
use crate::{Binaries, Error, Options};

/// What Kubernetes gives to services. Nothing routes it here, but the API server wants one.
const SERVICE_RANGE: &str = "10.96.0.0/16";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// All that the API server may be called, from here or by habit.
const APISERVER_NAMES: [&str; 7] = [
    "127.0.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "10.96.0.1",
];
/// The controllers that make the API itself behave: names follow their namespace, objects their owner, and
/// accounts exist. Those that make pods are left out, since no node would run them.
const CONTROLLERS: &str = "garbage-collector-controller,namespace-controller,serviceaccount-controller,\
    serviceaccount-token-controller,root-ca-certificate-publisher-controller,\
    clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller,\
    resourcequota-controller,ttl-after-finished-controller";

/// The API server would serve open watches for a minute after SIGTERM. Nothing is lost by a cut: what it has
/// acknowledged is in the database.
const APISERVER_GRACE: Duration = Duration::from_secs(1);

/// A running control plane. Dropping it stops the processes, the API server before its database.
pub(crate) struct ControlPlane {
    launcher: Launcher,
    binaries: Binaries,
    authority: Authority,
    endpoint: Endpoint,
    apiserver_flags: Vec<OsString>,
    controller_manager: Option<Service>,
    /// None while stopped by a fault test.
    apiserver: Option<Service>,
    etcd: Service,
}

/// Starts processes whose output goes to a log of their own.
struct Launcher {
    folder: PathBuf,
    timeout: Duration,
    /// Whether the processes are to outlive this one.
    detachable: bool,
}

/// A process with a name and a log.
struct Service {
    name: &'static str,
    log: PathBuf,
    process: Guarded,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Starts everything and waits until it is ready.
    pub(crate) fn start(folder: &Path, options: &Options, detachable: bool) -> Result<Self, Error> {
        const ATTEMPTS: usize = 5;
        let binaries = Binaries::provide()?;
        let mut attempt = 1;
        loop {
            match Self::try_start(folder, &binaries, options, detachable) {
                Err(error) if error.is_port_conflict() && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn try_start(
        folder: &Path,
        binaries: &Binaries,
        options: &Options,
        detachable: bool,
    ) -> Result<Self, Error> {
        let launcher = Launcher { folder: folder.to_owned(), timeout: options.ready_timeout, detachable };
        let data = folder.join("etcd");
        match fs::remove_dir_all(&data) {
            // From an attempt that met a port conflict.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("remove", &data)(error));
            }
            _ => {}
        }

        let client_port = reserve_port()?;
        let peer_port = reserve_port()?;
        let secure_port = reserve_port()?;
        let port = port_of(&secure_port)?;
        let client_url = format!("http://127.0.0.1:{}", port_of(&client_port)?);
        let peer_url = format!("http://127.0.0.1:{}", port_of(&peer_port)?);

        // The database needs half a second; the keys are made meanwhile.
        drop((client_port, peer_port));
        let mut etcd = launcher.spawn("etcd", &binaries.etcd, &etcd_flags(&data, &client_url, &peer_url))?;
        let authority = Authority::new()?;
        let endpoint = Endpoint::new(&format!("https://127.0.0.1:{port}"), &authority.certificate());
        let pki = folder.join("pki");
        write_pki(&pki, &authority)?;
        let admin = authority.client("devcluster-admin", Some("system:masters"))?;
        write_private(
            &admin_kubeconfig(folder),
            &endpoint.kubeconfig(&Credentials::Certificate(&admin), "default"),
        )?;
        launcher.wait_ready(&mut etcd, || connects(&client_url))?;

        let apiserver_flags = apiserver_flags(&pki, &client_url, port, &options.extra_apiserver_args);
        drop(secure_port);
        let mut control_plane = Self {
            launcher,
            binaries: binaries.clone(),
            authority,
            endpoint,
            apiserver_flags,
            controller_manager: None,
            apiserver: None,
            etcd,
        };
        control_plane.launch_apiserver()?;
        if options.controller_manager {
            control_plane.launch_controller_manager(&pki, &options.extra_controller_manager_args)?;
        }
        control_plane.wait_apiserver()?;
        control_plane.wait_controller_manager()?;
        Ok(control_plane)
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Name and process id of each process that runs.
    pub(crate) fn processes(&self) -> Vec<(&'static str, u32)> {
        let services = [self.controller_manager.as_ref(), self.apiserver.as_ref(), Some(&self.etcd)];
        services.into_iter().flatten().map(|service| (service.name, service.process.pid())).collect()
    }

    pub(crate) fn stop_apiserver(&mut self) -> Result<(), Error> {
        self.apiserver.take().ok_or(Error::ApiserverStopped)?.stop(APISERVER_GRACE)
    }

    pub(crate) fn start_apiserver(&mut self) -> Result<(), Error> {
        if self.apiserver.is_some() {
            return Err(Error::ApiserverRunning);
        }
        self.launch_apiserver()?;
        let ready = self.wait_apiserver();
        if ready.is_err() {
            self.apiserver = None;
        }
        ready
    }

    pub(crate) fn signal_apiserver(&mut self, signal: Signal) -> Result<(), Error> {
        let apiserver = self.apiserver.as_mut().ok_or(Error::ApiserverStopped)?;
        apiserver.process.signal(signal).map_err(Error::process("signal", apiserver.name))
    }

    /// Stops everything, and says what could not be stopped in good order.
    pub(crate) fn stop(self) -> Result<(), Error> {
        let Self { mut controller_manager, mut apiserver, etcd, .. } = self;
        // These two may end at the same time; the database only after its client.
        for service in [&mut controller_manager, &mut apiserver].into_iter().flatten() {
            service.process.request_end().map_err(Error::process("stop", service.name))?;
        }
        let in_order =
            [(controller_manager, DROP_GRACE), (apiserver, APISERVER_GRACE), (Some(etcd), DROP_GRACE)];
        for (service, grace) in in_order {
            service.map_or(Ok(()), |service| service.stop(grace))?;
        }
        Ok(())
    }

    /// Lets the processes outlive this one.
    pub(crate) fn detach(self) -> Result<(), Error> {
        for service in [self.controller_manager, self.apiserver, Some(self.etcd)].into_iter().flatten() {
            service.process.detach().map_err(Error::process("detach", service.name))?;
        }
        Ok(())
    }

    fn launch_apiserver(&mut self) -> Result<(), Error> {
        let program = &self.binaries.kube_apiserver;
        self.apiserver = Some(self.launcher.spawn("kube-apiserver", program, &self.apiserver_flags)?);
        Ok(())
    }

    fn wait_apiserver(&mut self) -> Result<(), Error> {
        let Some(apiserver) = &mut self.apiserver else { return Ok(()) };
        // A connection first: it costs nothing, while kubectl is a process that competes with the server.
        let url = self.endpoint.url().to_owned();
        self.launcher.wait_ready(apiserver, || connects(&url))?;
        let (kubectl, folder) = (&self.binaries.kubectl, &self.launcher.folder);
        self.launcher.wait_ready(apiserver, || {
            probe(kubectl, folder, &["get", "--raw", "/readyz", "--request-timeout=2s"])
        })
    }

    fn launch_controller_manager(&mut self, pki: &Path, extra: &[String]) -> Result<(), Error> {
        // Prebuilt programs may come without it.
        let Some(program) = &self.binaries.kube_controller_manager else { return Ok(()) };
        // It gives the API server 10 s to answer and ends otherwise: too short on a machine that is busy.
        if let Some(apiserver) = &mut self.apiserver {
            let url = self.endpoint.url().to_owned();
            self.launcher.wait_ready(apiserver, || connects(&url))?;
        }
        let flags = controller_manager_flags(&self.launcher.folder, pki, extra);
        self.controller_manager = Some(self.launcher.spawn("kube-controller-manager", program, &flags)?);
        Ok(())
    }

    fn wait_controller_manager(&mut self) -> Result<(), Error> {
        let Some(controller_manager) = &mut self.controller_manager else { return Ok(()) };
        let (kubectl, folder) = (&self.binaries.kubectl, &self.launcher.folder);
        self.launcher.wait_ready(controller_manager, || {
            probe(kubectl, folder, &["get", "serviceaccount", "default", "--namespace=default"])
        })
    }
}

// === impl Launcher ===

impl Launcher {
    fn spawn(&self, name: &'static str, program: &Path, flags: &[OsString]) -> Result<Service, Error> {
        let logs = self.folder.join("logs");
        fs::create_dir_all(&logs).map_err(Error::file("create", &logs))?;
        let log = logs.join(format!("{name}.log"));
        let mut options = OpenOptions::new();
        let output: File = options.create(true).append(true).open(&log).map_err(Error::file("open", &log))?;

        let mut command = if self.detachable {
            // Closing the terminal must not end it. nohup replaces itself, so the process id stays.
            let mut command = Command::new("nohup");
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        command
            .args(flags)
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stderr(output.try_clone().map_err(Error::file("open", &log))?)
            .stdout(output);
        let process = Guarded::spawn(command).map_err(Error::process("start", name))?;
        Ok(Service { name, log, process })
    }

    /// Waits until `probe` succeeds. A process that ends meanwhile is an error.
    fn wait_ready(
        &self,
        service: &mut Service,
        mut probe: impl FnMut() -> Result<(), String>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let outcome = probe();
            // Also after a success: the answer may have come from another process on the same port.
            if let Some(status) =
                service.process.try_wait().map_err(Error::process("wait for", service.name))?
            {
                let (log, tail) = (service.log.clone(), tail(&service.log));
                return Err(Error::Ended { process: service.name, status, log, tail });
            }
            match outcome {
                Ok(()) => return Ok(()),
                Err(reason) if start.elapsed() > self.timeout => {
                    return Err(Error::NotReady {
                        process: service.name,
                        waited: self.timeout,
                        reason,
                        log: service.log.clone(),
                        tail: tail(&service.log),
                    });
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

// === impl Service ===

impl Service {
    fn stop(mut self, grace: Duration) -> Result<(), Error> {
        self.process.terminate(grace).map_err(Error::process("stop", self.name)).map(drop)
    }
}

/// The kubeconfig of the cluster's administrator.
pub(crate) fn admin_kubeconfig(folder: &Path) -> PathBuf {
    folder.join("admin.kubeconfig")
}

/// A kubectl that asks as `kubeconfig` says and leaves no traces outside of `folder`.
pub(crate) fn kubectl(program: &Path, kubeconfig: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        // Not the flag of that name: it may not come before the name of a plugin.
        .env("KUBECONFIG", kubeconfig)
        // Its cache is named by host and port: with ports used again, one cluster would see another's kinds.
        .env("KUBECACHEDIR", folder.join("kubectl-cache"))
        // The user's preferences could change what a command means.
        .env("KUBERC", "off");
    command
}

/// Writes a file that only the owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).map_err(Error::file("create a file in", folder))?;
    fs::write(file.path(), text).map_err(Error::file("write", path))?;
    file.persist(path).map_err(|error| Error::file("write", path)(error.error)).map(drop)
}

fn write_pki(folder: &Path, authority: &Authority) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    let serving = authority.server("kube-apiserver", &APISERVER_NAMES)?;
    let tokens = TokenKeys::new()?;
    for (name, text) in [
        ("ca.crt", &authority.certificate()),
        ("apiserver.crt", &serving.certificate),
        ("apiserver.key", &serving.key),
        ("service-account.key", &tokens.private),
        ("service-account.pub", &tokens.public),
    ] {
        write_private(&folder.join(name), text)?;
    }
    Ok(())
}

fn etcd_flags(data: &Path, client_url: &str, peer_url: &str) -> Vec<OsString> {
    vec![
        "--name=devcluster".into(),
        flag("--data-dir", data),
        // The data need not survive a power failure.
        "--unsafe-no-fsync".into(),
        flag("--listen-client-urls", client_url),
        flag("--advertise-client-urls", client_url),
        flag("--listen-peer-urls", peer_url),
        flag("--initial-advertise-peer-urls", peer_url),
        flag("--initial-cluster", format!("devcluster={peer_url}")),
        // It elects itself after this long, and no peer is there to be disturbed by it.
        "--heartbeat-interval=10".into(),
        "--election-timeout=100".into(),
        "--log-level=warn".into(),
    ]
}

fn apiserver_flags(pki: &Path, etcd_url: &str, port: u16, extra: &[String]) -> Vec<OsString> {
    let mut flags = vec![
        flag("--etcd-servers", etcd_url),
        "--bind-address=127.0.0.1".into(),
        flag("--secure-port", port.to_string()),
        // Without it the server looks for the machine's own address, and fails offline.
        "--advertise-address=127.0.0.1".into(),
        // An Endpoints object may not hold a loopback address.
        "--endpoint-reconciler-type=none".into(),
        flag("--cert-dir", pki),
        flag("--tls-cert-file", pki.join("apiserver.crt")),
        flag("--tls-private-key-file", pki.join("apiserver.key")),
        flag("--client-ca-file", pki.join("ca.crt")),
        flag("--service-account-key-file", pki.join("service-account.pub")),
        flag("--service-account-signing-key-file", pki.join("service-account.key")),
        flag("--service-account-issuer", ISSUER),
        flag("--service-cluster-ip-range", SERVICE_RANGE),
        "--authorization-mode=Node,RBAC".into(),
        "--allow-privileged=true".into(),
        "--profiling=false".into(),
    ];
    // Last, so that they win.
    flags.extend(extra.iter().map(OsString::from));
    flags
}

fn controller_manager_flags(folder: &Path, pki: &Path, extra: &[String]) -> Vec<OsString> {
    let mut flags = vec![
        flag("--kubeconfig", admin_kubeconfig(folder)),
        flag("--controllers", CONTROLLERS),
        "--leader-elect=false".into(),
        // It serves nothing that anybody asks for here.
        "--secure-port=0".into(),
        flag("--root-ca-file", pki.join("ca.crt")),
        flag("--service-account-private-key-file", pki.join("service-account.key")),
        // The defaults spare a large cluster: 20 requests a second make a namespace's deletion slow.
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
        "--profiling=false".into(),
    ];
    flags.extend(extra.iter().map(OsString::from));
    flags
}

fn flag(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut flag = OsString::from(name);
    flag.push("=");
    flag.push(value);
    flag
}

/// Takes a port that is free, until the listener is dropped.
///
/// Not one from the range that the kernel gives to outgoing connections (port 0 would be): while the API server
/// is stopped, a client's own connection could take the port, even connect to itself, and block the restart.
fn reserve_port() -> Result<TcpListener, Error> {
    const FIRST: u64 = 20_000;
    const COUNT: u64 = 10_000;
    // Seeded by the operating system: clusters that start at the same time look in different places.
    let start = RandomState::new().hash_one(std::process::id());
    let mut last_error = io::Error::from(io::ErrorKind::AddrInUse);
    for offset in 0..COUNT {
        let candidate = FIRST + start.wrapping_add(offset) % COUNT;
        let Ok(port) = u16::try_from(candidate) else { continue };
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(Error::Port(last_error))
}

fn port_of(listener: &TcpListener) -> Result<u16, Error> {
    listener.local_addr().map(|address| address.port()).map_err(Error::Port)
}

/// Whether something accepts connections at `url`, which names an address and a port.
fn connects(url: &str) -> Result<(), String> {
    let address = url.rsplit_once('/').map_or(url, |(_, address)| address);
    let address: SocketAddr = address.parse().map_err(|error| format!("{url}: {error}"))?;
    TcpStream::connect_timeout(&address, Duration::from_millis(500))
        .map(drop)
        .map_err(|error| format!("no connection: {error}"))
}

/// Runs kubectl as the administrator, only for its success.
fn probe(program: &Path, folder: &Path, arguments: &[&str]) -> Result<(), String> {
    let mut command = kubectl(program, &admin_kubeconfig(folder), folder);
    command.args(arguments);
    // Under guard: its cache is in the cluster's folder, and would bring that back after its removal.
    let output = Guarded::output(command).map_err(|error| format!("kubectl can't be started: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn reserved_ports_differ_and_are_not_the_kernel_s_to_give() {
        let listeners: Vec<_> = (0..20).map(|_| reserve_port().unwrap()).collect();
        let mut ports: Vec<_> = listeners.iter().map(|listener| port_of(listener).unwrap()).collect();
        assert!(ports.iter().all(|port| (20_000..30_000).contains(port)));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), listeners.len());
    }

    #[test]
    fn a_url_connects_when_somebody_listens() {
        let listener = reserve_port().unwrap();
        let url = format!("https://127.0.0.1:{}", port_of(&listener).unwrap());
        assert_eq!(connects(&url), Ok(()));
        drop(listener);
        assert!(connects(&url).is_err());
    }

    #[test]
    fn extra_flags_come_last() {
        let flags = apiserver_flags(Path::new("/p"), "http://e", 1, &["--profiling=true".to_owned()]);
        assert_eq!(flags.last().unwrap(), "--profiling=true");
        assert!(flags.contains(&"--tls-cert-file=/p/apiserver.crt".into()));
    }
}
