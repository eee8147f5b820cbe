//! Simulated verifiers, which do nothing but confirm: they answer `/watermark`, under the pepper, with how far the benchmark's
//! own watch has come.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokenward_core::proof::{MAC_HEADER, PATH, Position, Watermark};
use tokenward_core::token::{Peppers, statement};
use tokio::net::TcpListener;

/// Starts so many, each at an address of its own. `known` is the resourceVersion up to which they know everything.
pub async fn start(count: usize, client: Client, known: &Arc<AtomicU64>) -> anyhow::Result<Vec<SocketAddr>> {
    let secret = Api::<Secret>::namespaced(client, "tokenward").get("tokenward-pepper").await?;
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
    let peppers = Arc::new(Peppers::from_data(&data)?);
    let mut addresses = Vec::new();
    for _ in 0..count {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        addresses.push(listener.local_addr()?);
        tokio::spawn(serve(listener, peppers.clone(), known.clone()));
    }
    Ok(addresses)
}

async fn serve(listener: TcpListener, peppers: Arc<Peppers>, known: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (peppers, known) = (peppers.clone(), known.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer(&request, &peppers, known.load(Ordering::Relaxed)).unwrap_or_else(|_| {
                let mut bad = Response::new(Full::default());
                *bad.status_mut() = StatusCode::BAD_REQUEST;
                bad
            });
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn answer(
    request: &Request<Incoming>,
    peppers: &Peppers,
    known: u64,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let query = request.uri().query().filter(|_| request.uri().path() == PATH);
    let nonce = query.and_then(|query| query.strip_prefix("nonce=")).context("no question")?;
    let all = vec![Position { namespace: None, resource_version: known }];
    let watermark =
        Watermark { tokens: all.clone(), locks: all, cluster_locks: Some(known), ..Default::default() };
    let body = serde_json::to_string(&watermark)?;
    let mac = statement::sign(peppers, nonce, body.as_bytes()).context("no MAC")?;
    Ok(Response::builder().header(MAC_HEADER, mac).body(Full::from(body))?)
}
