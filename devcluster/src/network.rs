//! Which addresses a cluster has. Pure: who makes interfaces and routes is `node::sandbox`.
//!
//! Without a node everything is on loopback. With one, the cluster has a /16 of its own, so that several don't
//! meet: pods, Services, and a link between this machine and the node, whose near end the API server listens
//! on. Both sides reach it there, and nobody else.

use std::net::Ipv4Addr;

/// The addresses of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// Only a control plane: nothing has to reach anything but the API server.
    Loopback,
    /// `10.N.0.0/16`.
    Node(u8),
}

impl Network {
    /// What the API server listens on, and what the host is called by on the link.
    pub(crate) fn apiserver(self) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::LOCALHOST,
            Self::Node(n) => Ipv4Addr::new(10, n, 255, 1),
        }
    }

    /// The range that Kubernetes gives to Services. Nothing routes it without a node, but the API server wants one.
    pub(crate) fn services(self) -> String {
        match self {
            Self::Loopback => "10.96.0.0/16".to_owned(),
            Self::Node(n) => format!("10.{n}.128.0/18"),
        }
    }

    /// The Service `kubernetes`: the first address of the range, by which pods ask the API server.
    pub(crate) fn kubernetes_service(self) -> Ipv4Addr {
        match self {
            Self::Loopback => Ipv4Addr::new(10, 96, 0, 1),
            Self::Node(n) => Ipv4Addr::new(10, n, 128, 1),
        }
    }
}

/// The rest of the addresses, which only a cluster with a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeNetwork(pub(crate) u8);

impl NodeNetwork {
    /// Everything that is reached through the node.
    pub(crate) fn all(self) -> String {
        format!("10.{}.0.0/16", self.0)
    }

    /// The addresses of pods: as many as a kubelet runs by default, and more.
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

    /// The Service that pods ask for names.
    pub(crate) fn dns_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.0, 128, 10)
    }
}

impl From<NodeNetwork> for Network {
    fn from(network: NodeNetwork) -> Self {
        Self::Node(network.0)
    }
}
