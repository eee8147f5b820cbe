//! The config files of the node's programs, as text. Pure.

use std::path::Path;

use serde_json::json;

use crate::network::NodeNetwork;

/// The image of the process that keeps a pod's namespaces alive. It is loaded, never pulled.
pub(crate) const PAUSE_IMAGE: &str = "devcluster.invalid/pause:1";
/// Where containerd listens, as seen on the node.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// The cluster's DNS domain.
const DOMAIN: &str = "cluster.local";

/// containerd's config. The native snapshotter copies, and so works on any file system.
pub(crate) fn containerd(plugins: &Path, cni_configs: &Path) -> String {
    format!(
        "version = 3
[grpc]
address = '{CONTAINERD_SOCKET}'
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{PAUSE_IMAGE}'
[plugins.'io.containerd.cri.v1.runtime']
# Not every machine lets root lower it.
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{}']
conf_dir = '{}'
",
        plugins.display(),
        cni_configs.display()
    )
}

/// How pods get an address: a link to the node for each, and routes. With a bridge, replies between two pods would
/// bypass the node, where the translation of a Service's address is undone.
pub(crate) fn cni(network: NodeNetwork) -> String {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{ "subnet": network.pods() }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    json!({
        "cniVersion": "1.0.0",
        "name": "devcluster",
        "plugins": [{ "type": "ptp", "ipMasq": false, "ipam": ipam }],
    })
    .to_string()
}

/// The kubelet's config. Other settings are the defaults, above all how long a volume takes to follow its Secret.
pub(crate) fn kubelet(network: NodeNetwork, pki: &Path, cgroup: &str) -> String {
    let full = json!({ "memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%",
        "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%" });
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.node(),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": pki.join("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": pki.join("kubelet.crt"),
        "tlsPrivateKeyFile": pki.join("kubelet.key"),
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "clusterDNS": [network.dns_service()],
        "clusterDomain": DOMAIN,
        // No resolver for names outside of the cluster.
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        // Leave iptables alone: kube-proxy uses nftables, with tables of its own.
        "makeIPTablesUtilChains": false,
        // Don't evict pods because a developer's disk is nearly full.
        "evictionHard": full,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    })
    .to_string()
}

/// CoreDNS's config: it resolves the cluster's names and no others.
pub(crate) fn corefile(network: NodeNetwork, kubeconfig: &Path) -> String {
    format!(
        "{DOMAIN}:53 in-addr.arpa:53 {{
    bind {}
    errors
    ready 127.0.0.1:8181
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {}
        pods insecure
    }}
    cache 5
}}
",
        network.node(),
        kubeconfig.display()
    )
}

/// The Service of CoreDNS, with an EndpointSlice by hand, as CoreDNS is no pod here; and its RBAC.
pub(crate) fn dns_objects(network: NodeNetwork) -> String {
    let metadata = json!({ "name": "kube-dns", "namespace": "kube-system" });
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")];
    let ports = ports.map(|(name, protocol)| json!({ "name": name, "protocol": protocol, "port": 53 }));
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": { "clusterIP": network.dns_service(), "ports": ports },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": { "kubernetes.io/service-name": "kube-dns" },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [network.node()] }],
        "ports": ports,
    });
    let name = json!({ "name": "system:coredns" });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": name,
        "rules": [
            { "apiGroups": [""], "resources": ["services", "namespaces"], "verbs": ["list", "watch"] },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": name,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns" },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns" }],
    });
    json!({ "apiVersion": "v1", "kind": "List", "items": [service, slice, role, binding] }).to_string()
}
