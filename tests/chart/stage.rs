//! A cluster on which Helm has installed the chart, and our processes as its Deployments describe them.

use std::path::Path;

use devcluster::Options;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::helm::{arguments, chart, helm, variables};
use testkit::{Process, Site, free_port};

/// The default controllers of test clusters, and those that create pods of Deployments.
const CONTROLLERS: &str = "--controllers=garbage-collector-controller,namespace-controller,\
    serviceaccount-controller,serviceaccount-token-controller,root-ca-certificate-publisher-controller,\
    clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller,\
    deployment-controller,replicaset-controller";

/// Starts a bare cluster. One at a time: several at once slow each other down until their start times out.
pub async fn cluster(options: Options) -> Site {
    static STARTING: Mutex<()> = Mutex::const_new(());
    let _alone = STARTING.lock().await;
    Site::bare(options).await
}

pub struct Stage {
    pub site: Site,
    pub controller: Process,
    pub verifier: Process,
}

impl Stage {
    /// Installs the chart with its defaults, by the commands of README, and starts the processes.
    pub async fn start() -> Self {
        let options =
            Options { extra_controller_manager_args: vec![CONTROLLERS.to_owned()], ..Options::default() };
        let site = cluster(options).await;
        site.kubectl(&["create", "namespace", "tokenward"]);
        site.kubectl(&["label", "namespace", "tokenward", "pod-security.kubernetes.io/enforce=restricted"]);
        let installed =
            helm(site.cluster.kubeconfig(), &["install", "tokenward", &chart(), "-n", "tokenward"]);
        assert!(installed.contains("BACK UP THE PEPPER"), "{installed}");
        site.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]);
        let controller = Self::start_role(&site, "controller").ready().await;
        let verifier = Self::start_role(&site, "verifier").ready().await;
        Self { site, controller, verifier }
    }

    /// Starts a role as its Deployment says, with the rights of its service account, on ports of its own.
    pub fn start_role(site: &Site, role: &str) -> Process {
        start(&deployment(site, role), role, &site.rights_of(&format!("tokenward-{role}")))
    }

    /// Runs Helm against this cluster, with all rights.
    pub fn helm(&self, args: &[&str]) -> String {
        helm(self.site.cluster.kubeconfig(), args)
    }
}

/// A Deployment of the chart, as it is stored.
pub fn deployment(site: &Site, role: &str) -> Value {
    let name = format!("tokenward-{role}");
    let stored = site.kubectl(&["get", "deployment", &name, "-n", "tokenward", "-o", "json"]);
    serde_json::from_str(&stored).expect("JSON")
}

/// Starts a role as a Deployment says, with these rights, on ports of its own.
pub fn start(deployment: &Value, role: &str, account: &Path) -> Process {
    let arguments = without_ports(arguments(deployment));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut variables = variables(deployment);
    for (_, value) in variables.iter_mut().filter(|(name, _)| name.ends_with("_LISTEN")) {
        *value = free_port().to_string();
    }
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Process::start(role, account, ports(role), &arguments, &variables)
}

/// The flags that name a port of a role.
fn ports(role: &str) -> &'static [&'static str] {
    if role == "verifier" {
        &["--telemetry-listen", "--listen", "--grpc-listen"]
    } else {
        &["--telemetry-listen"]
    }
}

/// A role's arguments without its name and the ports, for which a test uses free ones.
fn without_ports(arguments: Vec<String>) -> Vec<String> {
    let listens = |argument: &String| argument.split('=').next().is_some_and(|flag| flag.ends_with("listen"));
    arguments.into_iter().skip(1).filter(|argument| !listens(argument)).collect()
}
