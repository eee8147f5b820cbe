//! A fake API server on loopback with what a verifier reads: pages of ApiTokens, the pepper's Secret, and watches
//! without events. It feeds the real decoding path with more objects than fit into etcd on a small machine.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Bytes, Frame};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokenward_core::token::Peppers;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::tokens;

/// A fake API server with a number of ApiTokens. It ends when it is dropped.
pub struct Api {
    kubeconfig: PathBuf,
    _runtime: Runtime,
}

impl Api {
    pub fn start(tokens: u64, folder: &Path) -> anyhow::Result<Self> {
        let peppers = Arc::new(Peppers::from_data(&tokens::pepper())?);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(serve(listener, tokens, peppers));
        let kubeconfig = folder.join(format!("kubeconfig-{tokens}"));
        write_kubeconfig(&kubeconfig, address)?;
        Ok(Self { kubeconfig, _runtime: runtime })
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

fn write_kubeconfig(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench", "namespace": "tokenward"}}],
    });
    std::fs::write(path, config.to_string()).with_context(|| format!("{} can't be written", path.display()))
}

async fn serve(listener: TcpListener, tokens: u64, peppers: Arc<Peppers>) {
    while let Ok((stream, _)) = listener.accept().await {
        let peppers = Arc::clone(&peppers);
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let answer =
                answer(request.uri().path(), request.uri().query().unwrap_or_default(), tokens, &peppers);
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn answer(path: &str, query: &str, tokens: u64, peppers: &Peppers) -> Response<BoxBody<Bytes, Infallible>> {
    let parameter = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let body = match path.rsplit('/').next() {
        Some("apitokens" | "secrets") if parameter("watch") == Some("true") => Silent.boxed(),
        Some("apitokens") => {
            let from = parameter("continue").and_then(|text| text.parse().ok()).unwrap_or(0);
            let limit = parameter("limit").and_then(|text| text.parse().ok()).unwrap_or(tokens);
            Full::from(page(from, limit, tokens, peppers)).boxed()
        }
        Some("secrets") => Full::from(pepper()).boxed(),
        _ => {
            let mut missing = Response::new(Empty::new().boxed());
            *missing.status_mut() = http::StatusCode::NOT_FOUND;
            return missing;
        }
    };
    Response::new(body)
}

fn page(from: u64, limit: u64, tokens: u64, peppers: &Peppers) -> String {
    let to = tokens.min(from + limit);
    let items: Vec<_> = (from..to).map(|n| tokens::object(n, peppers)).collect();
    let next = if to < tokens { format!(r#","continue":"{to}""#) } else { String::new() };
    format!(
        r#"{{"apiVersion":"tokenward.dev/v1alpha1","kind":"ApiTokenList","metadata":{{"resourceVersion":"{tokens}"{next}}},"items":[{}]}}"#,
        items.join(",")
    )
}

fn pepper() -> String {
    let data: serde_json::Map<_, _> =
        tokens::pepper().into_iter().map(|(key, value)| (key, STANDARD.encode(value).into())).collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "SecretList", "metadata": {"resourceVersion": "1"},
        "items": [{
            "metadata": {"name": "tokenward-pepper", "namespace": "tokenward", "resourceVersion": "1", "uid": "1"},
            "data": data,
        }],
    })
    .to_string()
}

/// A body that sends nothing and never ends.
struct Silent;

impl Body for Silent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }
}
