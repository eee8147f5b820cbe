//! Hostile and odd clients over a real socket.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::endpoints::fixture::{known_endpoints, plaintext};
use tokenward_runtime::listen::listen;

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
    connections: Connections,
}

async fn start(head: Duration) -> Running {
    start_with(head, 1000).await
}

async fn start_with(head: Duration, max_connections: usize) -> Running {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let timeouts =
        Timeouts { header_read: head, keep_alive: head * 10, shutdown_grace: Duration::from_secs(5) };
    let stop = CancellationToken::new();
    let server =
        Server::new(known_endpoints(), None, timeouts, max_connections, ConnectionMetrics::default());
    let connections = server.connections.clone();
    let task = tokio::spawn(server.serve(listener, stop.clone().cancelled_owned()));
    Running { address, stop, task, connections }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads until the server closes.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // The server may close before all is sent.
        let _ = stream.write_all(bytes).await;
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response).await;
        String::from_utf8_lossy(&response).into_owned()
    }
}

/// Reads one response without a body.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn good(extra: &str) -> String {
    format!(
        "POST /auth HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {}\r\n{extra}\r\n",
        plaintext(1).expose()
    )
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn bodies_are_ignored_and_the_connection_stays_open() {
    let server = start(LONG).await;
    let mut stream = server.connect().await;
    let chunked = good("Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n";
    let sized = good("Content-Length: 60000\r\n") + &"x".repeat(60_000);
    for request in [good(""), chunked, sized, good("")] {
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("connection: close"), "{head}");
    }
}

/// Whose requests wait for a turn. The last request decides, so that a valid token buys no more than what it is used for.
#[tokio::test]
async fn a_client_is_known_by_a_valid_token_and_by_nothing_else() {
    let server = start(LONG).await;
    let mut stream = server.connect().await;
    let junk = "GET /auth HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer junk\r\n\r\n";
    let none = "GET /auth HTTP/1.1\r\nHost: t\r\n\r\n";
    let public = "HEAD /openapi.json HTTP/1.1\r\nHost: t\r\n\r\n";
    let caller = "POST /v1/verify HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n";
    let other = "HEAD /other HTTP/1.1\r\nHost: t\r\n\r\n";
    for request in [junk, none, public, caller, other] {
        for (request, strangers) in [(good("").as_str(), 0), (request, 1)] {
            stream.write_all(request.as_bytes()).await.unwrap();
            let head = read_head(&mut stream).await;
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length =
                length.filter(|_| !request.starts_with("HEAD")).map_or(0, |text| text.parse().unwrap());
            stream.read_exact(&mut vec![0; length]).await.unwrap();
            assert_eq!(server.connections.strangers(), strangers, "{request}");
        }
    }
}

#[tokio::test]
async fn a_large_body_is_not_read() {
    let server = start(LONG).await;
    for extra in ["Content-Length: 10000000\r\n", "Content-Length: 5\r\nExpect: 100-continue\r\n"] {
        let response = server.exchange(good(extra).as_bytes()).await;
        assert!(
            response.starts_with("HTTP/1.1 200 ") && response.contains("connection: close"),
            "{response}"
        );
    }
    let endless = good("Transfer-Encoding: chunked\r\n") + &format!("100000\r\n{}", "x".repeat(200_000));
    let response = server.exchange(endless.as_bytes()).await;
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
}

#[tokio::test]
async fn malformed_heads_get_an_error() {
    let server = start(LONG).await;
    let huge = "x".repeat(1_000_000);
    for (request, status) in [
        (format!("GET /auth HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {huge}\r\n\r\n"), "431"),
        (
            format!("GET /auth HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {}\r\n\r\n", &huge[..40_000]),
            "431",
        ),
        (format!("GET /auth HTTP/1.1\r\nHost: t\r\n{}\r\n", "A: b\r\n".repeat(200)), "431"),
        (
            "GET /auth HTTP/1.1\r\nConnection: close\r\nAuthorization: Bearer \u{ff}\u{fe}\r\n\r\n".into(),
            "401",
        ),
        (
            "GET /auth HTTP/1.1\r\nConnection: close\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n".into(),
            "400",
        ),
        ("GET /auth?scope=%00 HTTP/1.1\r\nConnection: close\r\n\r\n".into(), "400"),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".into(), "400"),
        ("GET /auth HTTP/9.9\r\n\r\n".into(), "400"),
        ("CONNECT auth:443 HTTP/1.1\r\nConnection: close\r\n\r\n".into(), "404"),
    ] {
        let response = server.exchange(request.as_bytes()).await;
        let expected = format!("HTTP/1.1 {status} ");
        assert!(response.starts_with(&expected), "{status}: {response} to {request:.60}");
    }
}

#[tokio::test]
async fn an_incomplete_head_times_out_and_an_idle_connection_does_not() {
    let head = Duration::from_millis(200);
    let server = start(head).await;
    let (mut slow, mut silent, mut idle) =
        (server.connect().await, server.connect().await, server.connect().await);
    idle.write_all(good("").as_bytes()).await.unwrap();
    assert!(read_head(&mut idle).await.starts_with("HTTP/1.1 200 "));
    let trickle = async {
        slow.write_all(b"GET /auth HTTP/1.1\r\n").await.unwrap();
        let mut sent = 0;
        while slow.write_all(b"A: b\r\n").await.is_ok() && sent < 50 {
            tokio::time::sleep(head / 4).await;
            sent += 1;
        }
        sent
    };
    assert!(tokio::time::timeout(head * 10, trickle).await.unwrap() < 50);
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap(), 0);
    idle.write_all(good("").as_bytes()).await.unwrap();
    assert!(read_head(&mut idle).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_new_connection_is_served_at_the_maximum() {
    let server = start_with(LONG, 20).await;
    let mut active = server.connect().await;
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut slow = server.connect().await;
        slow.write_all(b"GET /auth HTTP/1.1\r\nA: ").await.unwrap();
        let mut new = server.connect().await;
        for stream in [&mut active, &mut new] {
            stream.write_all(good("").as_bytes()).await.unwrap();
            assert!(read_head(stream).await.starts_with("HTTP/1.1 200 "));
        }
        open.push(slow);
        open.push(new);
    }
    // The oldest are closed, whether idle or in the middle of a head.
    for old in &mut open[..100] {
        let closed = tokio::time::timeout(LONG / 4, old.read(&mut [0; 16])).await.unwrap();
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    }
}

#[tokio::test]
async fn shutdown_finishes_what_is_in_flight_and_closes_the_rest() {
    let server = start(LONG).await;
    let (mut busy, mut idle) = (server.connect().await, server.connect().await);
    idle.write_all(good("").as_bytes()).await.unwrap();
    read_head(&mut idle).await;
    busy.write_all((good("Content-Length: 5\r\n") + "he").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop.cancel();
    assert_eq!(idle.read(&mut [0; 16]).await.unwrap(), 0);
    assert!(TcpStream::connect(server.address).await.is_err());
    busy.write_all(b"llo").await.unwrap();
    assert!(read_head(&mut busy).await.starts_with("HTTP/1.1 200 "));
    tokio::time::timeout(Duration::from_secs(3), server.task).await.unwrap().unwrap();
}
