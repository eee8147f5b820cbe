//! The processes of one control plane: etcd, kube-apiserver and kube-controller-manager, with their flags,
//! their order and what "ready" means for each.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::etcd::Etcd;
use crate::kubeconfig::{Credentials, Endpoint};
use crate::network::Network;
use crate::pki::{Authority, TokenKeys};
use crate::process::{DROP_GRACE, Guarded, Signal};
use crate::service::{Launcher, Service, connects};
use crate::{Binaries, Error, Options};

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The host names in the API server's certificate, beside its addresses.
const APISERVER_NAMES: [&str; 6] = [
    "127.0.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
/// The controllers on which the API itself depends: namespaces are deleted with their objects, dependents with their
/// owners, and service accounts exist. Those that create pods are left out, since no node would run them.
const CONTROLLERS: &str = "garbage-collector-controller,namespace-controller,serviceaccount-controller,\
    serviceaccount-token-controller,root-ca-certificate-publisher-controller,\
    clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller,\
    resourcequota-controller,ttl-after-finished-controller";

/// The API server would serve open watches for a minute after SIGTERM. Killing it earlier loses nothing: what it has
/// acknowledged is in etcd.
const APISERVER_GRACE: Duration = Duration::from_secs(1);

/// What to start a control plane from, and where.
pub(crate) struct Plan<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) binaries: Binaries,
    pub(crate) network: Network,
    pub(crate) options: &'a Options,
    /// Whether the processes are to outlive this one.
    pub(crate) detachable: bool,
}

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
    store: Etcd,
    /// None while its data are replaced.
    etcd: Option<Service>,
}

// === impl Plan ===

impl Plan<'_> {
    pub(crate) fn launcher(&self) -> Launcher {
        let timeout = self.options.ready_timeout;
        Launcher { folder: self.folder.to_owned(), timeout, detachable: self.detachable }
    }
}

// === impl ControlPlane ===

impl ControlPlane {
    pub(crate) fn start(plan: &Plan<'_>) -> Result<Self, Error> {
        const ATTEMPTS: usize = 5;
        let mut attempt = 1;
        loop {
            match Self::try_start(plan) {
                Err(error) if error.is_port_conflict() && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    fn try_start(plan: &Plan<'_>) -> Result<Self, Error> {
        let Plan { folder, binaries, network, options, .. } = plan;
        let launcher = plan.launcher();
        let data = folder.join("etcd");
        match fs::remove_dir_all(&data) {
            // Left by an attempt that met a port conflict.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("remove", &data)(error));
            }
            _ => {}
        }

        let client_port = reserve_port(Ipv4Addr::LOCALHOST)?;
        let peer_port = reserve_port(Ipv4Addr::LOCALHOST)?;
        let secure_port = reserve_port(network.apiserver())?;
        let port = port_of(&secure_port)?;
        let store = Etcd::new(&data, port_of(&client_port)?, port_of(&peer_port)?);

        // etcd takes half a second to start; the keys are made meanwhile.
        drop((client_port, peer_port));
        let mut etcd = launcher.spawn("etcd", &binaries.etcd, &store.flags())?;
        let authority = Authority::new()?;
        let url = format!("https://{}:{port}", network.apiserver());
        let endpoint = Endpoint::new(&url, &authority.certificate());
        let pki = folder.join("pki");
        write_pki(&pki, &authority, *network)?;
        let admin = authority.client("devcluster-admin", Some("system:masters"))?;
        write_private(
            &admin_kubeconfig(folder),
            &endpoint.kubeconfig(&Credentials::Certificate(&admin), "default"),
        )?;
        launcher.wait_ready(&mut etcd, || connects(&store.client_url))?;

        let apiserver_flags =
            apiserver_flags(&pki, &store.client_url, port, *network, &options.extra_apiserver_args);
        drop(secure_port);
        let mut control_plane = Self {
            launcher,
            binaries: binaries.clone(),
            authority,
            endpoint,
            apiserver_flags,
            controller_manager: None,
            apiserver: None,
            store,
            etcd: Some(etcd),
        };
        control_plane.start_apiserver()?;
        if options.controller_manager {
            // Started last: it exits unless the API server is healthy within 10 s, too short on a busy machine.
            let flags = controller_manager_flags(folder, &pki, *network, options);
            control_plane.start_controller_manager(&flags)?;
        }
        Ok(control_plane)
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn launcher(&self) -> &Launcher {
        &self.launcher
    }

    pub(crate) fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Name and process id of each process that runs.
    pub(crate) fn processes(&self) -> Vec<(&'static str, u32)> {
        let services = [self.controller_manager.as_ref(), self.apiserver.as_ref(), self.etcd.as_ref()];
        services.into_iter().flatten().map(|service| (service.name, service.process.pid())).collect()
    }

    pub(crate) fn stop_apiserver(&mut self) -> Result<(), Error> {
        self.apiserver.take().ok_or(Error::ApiserverStopped)?.stop(APISERVER_GRACE)
    }

    pub(crate) fn start_apiserver(&mut self) -> Result<(), Error> {
        if self.apiserver.is_some() {
            return Err(Error::ApiserverRunning);
        }
        let program = &self.binaries.kube_apiserver;
        self.apiserver = Some(self.launcher.spawn("kube-apiserver", program, &self.apiserver_flags)?);
        let ready = self.wait_apiserver();
        if ready.is_err() {
            self.apiserver = None;
        }
        ready
    }

    /// Writes a snapshot of etcd.
    pub(crate) fn save_etcd(&self, snapshot: &Path) -> Result<(), Error> {
        self.store.save(snapshot)
    }

    /// Stops the API server and etcd, restores a snapshot, and starts both again.
    pub(crate) fn restore_etcd(&mut self, snapshot: &Path) -> Result<(), Error> {
        self.stop_apiserver()?;
        if let Some(etcd) = self.etcd.take() {
            etcd.stop(DROP_GRACE)?;
        }
        self.store.restore(snapshot)?;
        let etcd = self.launcher.spawn("etcd", &self.binaries.etcd, &self.store.flags())?;
        let (etcd, url) = (self.etcd.insert(etcd), &self.store.client_url);
        self.launcher.wait_ready(etcd, || connects(url))?;
        self.start_apiserver()
    }

    pub(crate) fn signal_apiserver(&mut self, signal: Signal) -> Result<(), Error> {
        let apiserver = self.apiserver.as_mut().ok_or(Error::ApiserverStopped)?;
        apiserver.process.signal(signal).map_err(Error::process("signal", apiserver.name))
    }

    /// Stops everything in order; returns the first error.
    pub(crate) fn stop(self) -> Result<(), Error> {
        let Self { mut controller_manager, mut apiserver, etcd, .. } = self;
        // These two may end at the same time; etcd only after its client.
        for service in [&mut controller_manager, &mut apiserver].into_iter().flatten() {
            service.process.request_end().map_err(Error::process("stop", service.name))?;
        }
        let in_order = [(controller_manager, DROP_GRACE), (apiserver, APISERVER_GRACE), (etcd, DROP_GRACE)];
        for (service, grace) in in_order {
            service.map_or(Ok(()), |service| service.stop(grace))?;
        }
        Ok(())
    }

    /// Lets the processes outlive this one.
    pub(crate) fn detach(self) -> Result<(), Error> {
        for service in [self.controller_manager, self.apiserver, self.etcd].into_iter().flatten() {
            service.process.detach().map_err(Error::process("detach", service.name))?;
        }
        Ok(())
    }

    fn wait_apiserver(&mut self) -> Result<(), Error> {
        let Some(apiserver) = &mut self.apiserver else { return Ok(()) };
        // A connection first, which is cheap: each kubectl is a process that competes with the server for CPU.
        let url = self.endpoint.url().to_owned();
        self.launcher.wait_ready(apiserver, || connects(&url))?;
        let (kubectl, folder) = (&self.binaries.kubectl, &self.launcher.folder);
        self.launcher.wait_ready(apiserver, || {
            probe(kubectl, folder, &["get", "--raw", "/readyz", "--request-timeout=2s"])
        })
    }

    fn start_controller_manager(&mut self, flags: &[OsString]) -> Result<(), Error> {
        // A folder of prebuilt programs may lack it.
        let Some(program) = &self.binaries.kube_controller_manager else { return Ok(()) };
        let service = self.launcher.spawn("kube-controller-manager", program, flags)?;
        let controller_manager = self.controller_manager.insert(service);
        let (kubectl, folder) = (&self.binaries.kubectl, &self.launcher.folder);
        self.launcher.wait_ready(controller_manager, || {
            probe(kubectl, folder, &["get", "serviceaccount", "default", "--namespace=default"])
        })
    }
}

/// The kubeconfig of the cluster's administrator.
pub(crate) fn admin_kubeconfig(folder: &Path) -> PathBuf {
    folder.join("admin.kubeconfig")
}

/// A kubectl command that uses `kubeconfig` and writes nothing outside of `folder`.
pub(crate) fn kubectl(program: &Path, kubeconfig: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        // Not by the flag --kubeconfig, which may not come before the name of a plugin.
        .env("KUBECONFIG", kubeconfig)
        // Its cache is keyed by host and port: when a port is used again, one cluster would see another's kinds.
        .env("KUBECACHEDIR", folder.join("kubectl-cache"))
        // The user's preferences (kuberc) could change what a command means.
        .env("KUBERC", "off");
    command
}

/// Writes a file that only the owner may read, atomically.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder).map_err(Error::file("create a file in", folder))?;
    fs::write(file.path(), text).map_err(Error::file("write", path))?;
    file.persist(path).map_err(|error| Error::file("write", path)(error.error)).map(drop)
}

fn write_pki(folder: &Path, authority: &Authority, network: Network) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    let addresses = [network.apiserver().to_string(), network.kubernetes_service().to_string()];
    let names = APISERVER_NAMES.into_iter().chain(addresses.iter().map(String::as_str));
    let serving = authority.server("kube-apiserver", &names.collect::<Vec<_>>())?;
    // With this one it connects to kubelets, for logs and exec.
    let to_kubelets = authority.client("kube-apiserver-kubelet-client", Some("system:masters"))?;
    let tokens = TokenKeys::new()?;
    for (name, text) in [
        ("ca.crt", &authority.certificate()),
        ("apiserver.crt", &serving.certificate),
        ("apiserver.key", &serving.key),
        ("kubelet-client.crt", &to_kubelets.certificate),
        ("kubelet-client.key", &to_kubelets.key),
        ("service-account.key", &tokens.private),
        ("service-account.pub", &tokens.public),
    ] {
        write_private(&folder.join(name), text)?;
    }
    Ok(())
}

fn apiserver_flags(
    pki: &Path,
    etcd_url: &str,
    port: u16,
    network: Network,
    extra: &[String],
) -> Vec<OsString> {
    let address = network.apiserver().to_string();
    let mut flags = vec![
        flag("--etcd-servers", etcd_url),
        flag("--bind-address", &address),
        flag("--secure-port", port.to_string()),
        // Otherwise the server detects the machine's own address, which fails offline.
        flag("--advertise-address", &address),
        flag("--cert-dir", pki),
        flag("--tls-cert-file", pki.join("apiserver.crt")),
        flag("--tls-private-key-file", pki.join("apiserver.key")),
        flag("--client-ca-file", pki.join("ca.crt")),
        flag("--service-account-key-file", pki.join("service-account.pub")),
        flag("--service-account-signing-key-file", pki.join("service-account.key")),
        flag("--service-account-issuer", ISSUER),
        flag("--service-cluster-ip-range", network.services()),
        "--authorization-mode=Node,RBAC".into(),
        "--allow-privileged=true".into(),
        "--profiling=false".into(),
    ];
    flags.extend(match network {
        // An Endpoints object may not contain a loopback address.
        Network::Loopback => vec!["--endpoint-reconciler-type=none".into()],
        Network::Node(_) => vec![
            "--enable-admission-plugins=NodeRestriction".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
            flag("--kubelet-certificate-authority", pki.join("ca.crt")),
            flag("--kubelet-client-certificate", pki.join("kubelet-client.crt")),
            flag("--kubelet-client-key", pki.join("kubelet-client.key")),
        ],
    });
    // Last, so that they override.
    flags.extend(extra.iter().map(OsString::from));
    flags
}

fn controller_manager_flags(folder: &Path, pki: &Path, network: Network, options: &Options) -> Vec<OsString> {
    let controllers = match network {
        Network::Loopback => CONTROLLERS,
        Network::Node(_) => "*",
    };
    let mut flags = vec![
        flag("--kubeconfig", admin_kubeconfig(folder)),
        flag("--controllers", controllers),
        "--leader-elect=false".into(),
        // Nobody needs its health checks or metrics here.
        "--secure-port=0".into(),
        flag("--root-ca-file", pki.join("ca.crt")),
        flag("--service-account-private-key-file", pki.join("service-account.key")),
        // With the default of 20 requests a second, meant for large clusters, deleting a namespace is slow.
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
        "--profiling=false".into(),
    ];
    flags.extend(options.extra_controller_manager_args.iter().map(OsString::from));
    flags
}

pub(crate) fn flag(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut flag = OsString::from(name);
    flag.push("=");
    flag.push(value);
    flag
}

/// Reserves a free port until the listener is dropped.
///
/// Outside of the kernel's ephemeral range (port 0 would be inside): while the API server is stopped, a client's
/// outgoing connection could take the port, even connect to itself, and block the restart.
fn reserve_port(address: Ipv4Addr) -> Result<TcpListener, Error> {
    const FIRST: u64 = 20_000;
    const COUNT: u64 = 10_000;
    // Randomly seeded, so that clusters that start at the same time try different ports.
    let start = RandomState::new().hash_one(std::process::id());
    let mut last_error = io::Error::from(io::ErrorKind::AddrInUse);
    for offset in 0..COUNT {
        let candidate = FIRST + start.wrapping_add(offset) % COUNT;
        let Ok(port) = u16::try_from(candidate) else { continue };
        match TcpListener::bind((address, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last_error = error,
        }
    }
    Err(Error::Port(last_error))
}

fn port_of(listener: &TcpListener) -> Result<u16, Error> {
    listener.local_addr().map(|address| address.port()).map_err(Error::Port)
}

/// Runs kubectl as the administrator; returns whether it succeeded.
pub(crate) fn probe(program: &Path, folder: &Path, arguments: &[&str]) -> Result<(), String> {
    let mut command = kubectl(program, &admin_kubeconfig(folder), folder);
    command.args(arguments);
    // Guarded: otherwise it could write its cache into the cluster's folder after that was removed.
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
    fn reserved_ports_differ_and_are_outside_the_ephemeral_range() {
        let listeners: Vec<_> = (0..20).map(|_| reserve_port(Ipv4Addr::LOCALHOST).unwrap()).collect();
        let mut ports: Vec<_> = listeners.iter().map(|listener| port_of(listener).unwrap()).collect();
        assert!(ports.iter().all(|port| (20_000..30_000).contains(port)));
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), listeners.len());
    }

    #[test]
    fn a_url_connects_when_somebody_listens() {
        let listener = reserve_port(Ipv4Addr::LOCALHOST).unwrap();
        let url = format!("https://127.0.0.1:{}", port_of(&listener).unwrap());
        assert_eq!(connects(&url), Ok(()));
        drop(listener);
        assert!(connects(&url).is_err());
    }

    #[test]
    fn extra_flags_come_last() {
        let flags = apiserver_flags(
            Path::new("/p"),
            "http://e",
            1,
            Network::Loopback,
            &["--profiling=true".to_owned()],
        );
        assert_eq!(flags.last().unwrap(), "--profiling=true");
        assert!(flags.contains(&"--tls-cert-file=/p/apiserver.crt".into()));
    }
}
