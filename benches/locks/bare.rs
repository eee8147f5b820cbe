//! The bare watch: a plain client that reads each line of a watch, and does nothing else.

use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::Instant;

use anyhow::{Context, ensure};
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Watches ClusterTokenLocks in a thread of its own until the API server ends. Sends each line with when it was read.
pub fn watch(api: SocketAddr, read: Sender<(String, Instant)>) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(follow(api, &read))
    });
}

async fn follow(api: SocketAddr, read: &Sender<(String, Instant)>) -> anyhow::Result<()> {
    let stream = TcpStream::connect(api).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/apis/tokenward.dev/v1alpha1/clustertokenlocks?watch=true")
        .header("host", api.to_string())
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    ensure!(answer.status().is_success(), "{}", answer.status());
    let (mut body, mut line) = (answer.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let text = String::from_utf8(std::mem::take(&mut line)).context("a line that is no text")?;
                read.send((text, Instant::now()))?;
            }
        }
    }
    Ok(())
}
