//! The bare client: posts given bodies over some connections, and does nothing else. It is a process of its own, like
//! the controller.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::process::cpu;

/// Runs the client in a process; returns its CPU time, without that of its start.
pub fn run(address: SocketAddr, bodies: &Path, connections: usize) -> anyhow::Result<Duration> {
    let mut command = Command::new(std::env::current_exe()?);
    let output =
        command.arg("post").arg(address.to_string()).arg(bodies).arg(connections.to_string()).output()?;
    ensure!(output.status.success(), "the bare client: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Duration::from_nanos(String::from_utf8(output.stdout)?.trim().parse()?))
}

/// The client itself, in its own process: prints what [`run`] returns.
pub async fn main(address: SocketAddr, bodies: &Path, connections: usize) -> anyhow::Result<()> {
    let text = std::fs::read(bodies)?;
    let bodies: Arc<[Bytes]> = text.split(|byte| *byte == b'\n').map(Bytes::copy_from_slice).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let before = cpu(std::process::id())?;
    let clients = (0..connections).map(|_| tokio::spawn(post(address, bodies.clone(), next.clone())));
    for client in futures::future::join_all(clients).await {
        client??;
    }
    println!("{}", (cpu(std::process::id())? - before).as_nanos());
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
