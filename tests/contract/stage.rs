//! What the tests share: a verifier, a caller that may ask, and a token to ask about.

use std::path::Path;

use serde_json::json;
use tokio::runtime::Runtime;

use crate::python::Python;
use testkit::{Process, Site, Space};

/// The host for `no_proxy`: clients must not use the machine's proxy for it.
pub const LOOPBACK: &str = "127.0.0.1";

/// A verifier for all namespaces, and its callers.
pub struct Stage {
    // In the order in which they are dropped.
    pub verifier: Process,
    _controller: Process,
    site: Site,
    pub runtime: Runtime,
    pub space: Space,
    pub python: Python,
    /// The token of a caller that may check tokens.
    pub caller: String,
    /// A token with the scopes `orders:read` and `orders:write`.
    pub token: String,
}

impl Stage {
    pub fn start() -> Self {
        let python = Python::provide();
        let runtime = Runtime::new().expect("a runtime");
        let set = async {
            let site = Site::start().await;
            let controller = site.controller(&["--webhook-allow-cidrs", "127.0.0.0/8"]).ready().await;
            let verifier = site.verifier(&[]).ready().await;
            let space = site.namespace("contract").await;
            let caller = space
                .active("caller", json!({"scopes": ["tokens:verify"], "audiences": ["tokenward"]}))
                .await;
            let token = space.active("orders", json!({"scopes": ["orders:read", "orders:write"]})).await;
            verifier.answers(&caller, "audience=tokenward", 200).await;
            verifier.answers(&token, "", 200).await;
            (site, controller, verifier, space, caller, token)
        };
        let (site, controller, verifier, space, caller, token) = runtime.block_on(set);
        Self { verifier, _controller: controller, site, runtime, space, python, caller, token }
    }

    /// Runs kubectl, which must succeed; returns what it printed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.site.kubectl(args)
    }

    /// Another verifier, which serves TLS.
    pub fn verifier_with_tls(&self, certificate: &Path, key: &Path) -> Process {
        self.site.verifier_with_tls(certificate, key)
    }

    /// The URL of an endpoint.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.verifier.listen)
    }
}
