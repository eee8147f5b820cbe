//! Which addresses a cluster has. Pure: `node::sandbox` makes interfaces and routes.
//!
//! Without a node everything is on loopback. With one, each cluster has a /16 of its own, for pods, Services, and a
//! link between this machine and the node. The API server listens on the near end of that link, where only this
//! machine and the node reach it.

use std::net::Ipv4Addr;

/// The addresses of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// A control plane without a node: clients only need to reach the API server.
    Loopback,
    /// The N of `10.N.0.0/16`, the cluster's network.
    Node(u8),
}

impl Network {
    /// The address that the API server listens on; with a node, this machine's on the link.
    pub(crate) fn apiserver(self) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST,
            Self::Node(n) => Ipv4Addr::new(10, n, 255, 1),
        }
    }

    /// The range of Services' addresses. Without a node nothing routes it, but the API server requires one.
    pub(crate) fn services(self) -> String {
        match self {
            Self::Loopback => "10.96.0.0/16".to_owned(),
            Self::Node(n) => format!("10.{n}.128.0/18"),
        }
    }

    /// The Service `kubernetes`, by which pods reach the API server: the first address of the range.
    pub(crate) fn kubernetes_service(self) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::new(10, 96, 0, 1),
            Self::Node(n) => Ipv4Addr::new(10, n, 128, 1),
        }
    }
}

/// The addresses that only a cluster with a node has. The number is the second byte of its /16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeNetwork(pub(crate) u8);

impl NodeNetwork {
    /// All addresses that are reached through the node.
    pub(crate) fn all(self) -> String {
        format!("10.{}.0.0/16", self.0)
    }

    /// The addresses of pods: more than the 110 pods that a kubelet runs by default.
    pub(crate) fn pods(self) -> String {
        format!("10.{}.0.0/24", self.0)
    }

    /// The node's own address: the far end of the link.
    pub(crate) fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.0, 255, 2)
    }

    /// The near end of the link.
    pub(crate) fn host(self) -> Ipv4Addr {
        Network::from(self).apiserver()
    }

    /// The DNS Service of pods.
    pub(crate) fn dns_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.0, 128, 10)
    }
}

impl From<NodeNetwork> for Network {
    fn from(network: NodeNetwork) -> Self {
        Self::Node(network.0)
    }
}
