//! Kubeconfig files: one cluster, one user, one context.
//!
//! They are written as JSON, which is valid YAML, so that names need no quoting rules. The cluster's part is copied
//! as found, so that for an existing cluster one user's file can be made from another's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::Error;
use crate::pki::Pair;

/// The cluster's part of a kubeconfig: its address and certificate authority.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint(Value);

/// The user's part of a kubeconfig.
pub(crate) enum Credentials<'a> {
    Certificate(&'a Pair),
    Token(&'a str),
}

// === impl Endpoint ===

impl Endpoint {
    pub(crate) fn new(url: &str, authority: &str) -> Self {
        Self(json!({ "server": url, "certificate-authority-data": STANDARD.encode(authority) }))
    }

    /// Takes the cluster's part from a kubeconfig of one context, as printed by
    /// `kubectl config view --minify --flatten --raw -o json`.
    pub(crate) fn from_kubeconfig(text: &str) -> Result<Self, Error> {
        let config: Value =
            serde_json::from_str(text).map_err(|error| Error::Kubeconfig(error.to_string()))?;
        match config.pointer("/clusters/0/cluster") {
            Some(cluster) if cluster["server"].is_string() => Ok(Self(cluster.clone())),
            _ => Err(Error::Kubeconfig("its current context names no cluster with a server".to_owned())),
        }
    }

    pub(crate) fn url(&self) -> &str {
        self.0["server"].as_str().unwrap_or_default()
    }

    /// A complete kubeconfig for `credentials`, with `namespace` as the default namespace.
    pub(crate) fn kubeconfig(&self, credentials: &Credentials<'_>, namespace: &str) -> String {
        let user = match credentials {
            Credentials::Certificate(pair) => json!({
                "client-certificate-data": STANDARD.encode(&pair.certificate),
                "client-key-data": STANDARD.encode(&pair.key),
            }),
            Credentials::Token(token) => json!({ "token": token }),
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "devcluster", "cluster": self.0 }],
            "users": [{ "name": "devcluster", "user": user }],
            "contexts": [{
                "name": "devcluster",
                "context": { "cluster": "devcluster", "user": "devcluster", "namespace": namespace },
            }],
            "current-context": "devcluster",
        });
        format!("{config:#}\n")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn an_endpoint_is_read_back_from_its_kubeconfig() {
        let endpoint = Endpoint::new("https://127.0.0.1:1", "PEM");
        let text = endpoint.kubeconfig(&Credentials::Token("secret"), "team \"a\"");
        let again = Endpoint::from_kubeconfig(&text).unwrap();
        assert_eq!(again.url(), "https://127.0.0.1:1");
        assert_eq!(again.0["certificate-authority-data"], "UEVN");
        let config: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["contexts"][0]["context"]["namespace"], "team \"a\"");
        assert_eq!(config["users"][0]["user"]["token"], "secret");
    }

    #[test]
    fn a_kubeconfig_without_a_cluster_is_an_error() {
        assert!(matches!(Endpoint::from_kubeconfig(r#"{"clusters": null}"#), Err(Error::Kubeconfig(_))));
    }
}
