//! The bare HTTP server: hyper on tokio, as the verifier uses them, reads the same header and sends the same bytes,
//! without a check. What a check costs beyond it is ours.

use std::convert::Infallible;
use std::net::SocketAddr;

use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Serves until it is killed.
pub fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // Spawned, so that connections are accepted by the worker, not by another thread that would have to be woken.
    let accept = runtime.spawn(async move {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
            let mut builder = http1::Builder::new();
            builder.keep_alive(true).pipeline_flush(true);
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    runtime.block_on(accept)?
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let bearer = request.headers().get(AUTHORIZATION);
    if bearer.is_some_and(|value| value.as_bytes().starts_with(b"Bearer tw_")) { allowed() } else { denied() }
}

fn allowed() -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    let headers = answer.headers_mut();
    for (name, value) in [
        ("x-tokenward-id", "tok_00000000000000000000a1"),
        ("x-tokenward-subject", "team-000/service-0000000"),
        ("x-tokenward-scopes", "orders-0:read orders-0:write audit:read"),
    ] {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn denied() -> Response<Full<Bytes>> {
    let body = r#"{"error":"invalid_token","message":"the token is not valid"}"#;
    let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *answer.status_mut() = StatusCode::UNAUTHORIZED;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let challenge = HeaderValue::from_static(r#"Bearer realm="tokenward", error="invalid_token""#);
    headers.insert(WWW_AUTHENTICATE, challenge);
    answer
}
