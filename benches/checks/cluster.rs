//! A real control plane with tokens, but no controller: the benchmark writes their hashes itself.

use std::path::Path;

use anyhow::{Context, ensure};
use devcluster::{Cluster, Options};
use futures::{StreamExt, TryStreamExt, stream};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::Value;
use tokenward_core::crd::{ApiToken, ApiTokenStatus};
use tokenward_core::lifecycle::authenticate;
use tokenward_core::token::Peppers;

use super::tokens;

/// How many requests are in flight while tokens are created.
const CONCURRENT_REQUESTS: usize = 16;

/// Starts a control plane on which our CRDs, rights and the pepper are installed.
pub fn start(apiserver_flags: Vec<String>) -> anyhow::Result<Cluster> {
    let cluster = Cluster::start(Options { extra_apiserver_args: apiserver_flags, ..Default::default() })?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["crds", "deploy/namespace.yaml", "deploy/rbac.yaml"] {
        kubectl(&cluster, &["apply", "--server-side", "-f", &root.join(file).display().to_string()])?;
    }
    kubectl(&cluster, &["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])?;
    Ok(cluster)
}

fn kubectl(cluster: &Cluster, args: &[&str]) -> anyhow::Result<()> {
    let output = cluster.kubectl().args(args).output()?;
    ensure!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A client with all rights.
pub async fn client(cluster: &Cluster) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Creates the pepper, and the first `count` tokens with their statuses.
pub async fn fill(client: &Client, count: u64) -> anyhow::Result<()> {
    let peppers = Peppers::from_data(&tokens::pepper())?;
    create(client, "/api/v1/namespaces/tokenward/secrets", pepper()).await?;
    let namespaces: std::collections::BTreeSet<_> = (0..count).map(tokens::namespace).collect();
    for name in namespaces {
        let namespace =
            serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        create(client, "/api/v1/namespaces", namespace).await?;
    }
    let made = stream::iter(0..count).map(|n| {
        let (object, peppers) =
            (serde_json::from_str(&tokens::object(n, tokens::no_labels, &peppers)), &peppers);
        async move {
            make(client, object?, peppers).await?;
            if n % 1000 == 999 {
                eprintln!("{} of {count} tokens are created", n + 1);
            }
            Ok(())
        }
    });
    made.buffer_unordered(CONCURRENT_REQUESTS).try_collect().await
}

/// Creates a token, then records its status, as the controller would have: signed for the uid that the API server chose.
async fn make(client: &Client, mut object: Value, peppers: &Peppers) -> anyhow::Result<()> {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).context("no metadata")?;
    metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
    let path = format!("/apis/tokenward.dev/v1alpha1/namespaces/{namespace}/apitokens");
    let mut token: ApiToken = serde_json::from_value(create(client, &path, object.clone()).await?)?;
    let mut status: ApiTokenStatus = serde_json::from_value(object["status"].take())?;
    authenticate(&mut status, &token.metadata, peppers);
    token.status = Some(status);
    let tokens: Api<ApiToken> = Api::namespaced(client.clone(), &namespace);
    tokens.replace_status(&name, &Default::default(), &token).await?;
    Ok(())
}

/// Returns the object as it is stored.
async fn create(client: &Client, path: &str, object: Value) -> anyhow::Result<Value> {
    let request = http::Request::post(path).header("content-type", "application/json");
    Ok(client.request(request.body(object.to_string().into_bytes())?).await?)
}

fn pepper() -> Value {
    let data = tokens::pepper().into_iter().map(|(key, value)| {
        let value = k8s_openapi::ByteString(value);
        (key, serde_json::to_value(value).unwrap_or_default())
    });
    let data: serde_json::Map<_, _> = data.collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tokenward-pepper"}, "data": data,
    })
}
