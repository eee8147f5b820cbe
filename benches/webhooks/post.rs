//! The bare client: posts given bodies over 16 connections, and does nothing else. A process of its own, as the
//! controller is.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// As many as an endpoint's events are under way at once.
const CONNECTIONS: usize = 16;

/// Runs it.
pub fn run(address: SocketAddr, bodies: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    let status = command.arg("post").arg(address.to_string()).arg(bodies).status()?;
    ensure!(status.success(), "the bare client: {status}");
    Ok(())
}

/// Is it.
pub async fn main(address: SocketAddr, bodies: &Path) -> anyhow::Result<()> {
    let text = std::fs::read(bodies)?;
    let bodies: Arc<[Bytes]> = text.split(|byte| *byte == b'\n').map(Bytes::copy_from_slice).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let clients = (0..CONNECTIONS).map(|_| tokio::spawn(post(address, bodies.clone(), next.clone())));
    for client in futures::future::join_all(clients).await {
        client??;
    }
    Ok(())
}

async fn post(address: SocketAddr, bodies: Arc<[Bytes]>, next: Arc<AtomicUsize>) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let Some(body) = bodies.get(n) else { return Ok(()) };
        let request = Request::post("/")
            .header("host", address.to_string())
            .header("content-type", "application/json")
            .header("webhook-id", n.to_string())
            .body(Full::new(body.clone()))?;
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        ensure!(answer.status().is_success(), "{}", answer.status());
        answer.into_body().collect().await?;
    }
}
