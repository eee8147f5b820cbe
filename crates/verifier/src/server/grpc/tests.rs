//! Gateways, probes and hostile clients over a real socket.

use std::net::SocketAddr;
use std::time::Instant;

use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{self, HttpRequest};
use envoy_types::pb::envoy::service::auth::v3::{
    AttributeContext, authorization_client::AuthorizationClient,
};
use envoy_types::pb::google::rpc;
use http::uri::PathAndQuery;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Health;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use super::*;
use crate::endpoints::TrustedProxies;
use crate::endpoints::fixture::{Fixture, bearer};
use crate::metrics::Metrics;
use tokenward_runtime::telemetry::probes::Part;
use tokenward_runtime::tls::Clients;
use tokenward_runtime::tls::files::{Certificates, Files};

/// The preface of a client's connection (RFC 9113 section 3.4), with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Kinds and flags of frames (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

struct Server {
    address: SocketAddr,
    ready: Part,
    stop: CancellationToken,
    task: JoinHandle<()>,
    open: Gauge,
    failed: Counter,
    connections: Connections,
}

async fn start(head: Duration, keep_alive: Duration) -> Server {
    start_with(None, head, keep_alive).await
}

async fn start_with(tls: Option<TlsAcceptor>, head: Duration, keep_alive: Duration) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let timeouts = Timeouts { header_read: head, keep_alive, shutdown_grace: Duration::from_secs(5) };
    let (stop, readiness) = (CancellationToken::new(), Readiness::default());
    let ready = readiness.part("test");
    let metrics = Metrics::register(&mut Registry::default());
    let fixture = ExtAuthz::new(Fixture::behind(&[]).snapshot.clone(), TrustedProxies::default(), &metrics);
    let (open, failed) = (metrics.connections.open.clone(), fixture.failed_calls());
    let server = super::Server::new(fixture, readiness, tls, timeouts, metrics.connections);
    let connections = server.connections.clone();
    let task = tokio::spawn(server.serve(listener, stop.clone()));
    Server { address, ready, stop, task, open, failed, connections }
}

impl Server {
    async fn channel(&self) -> Channel {
        Endpoint::new(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// Whether token 1 is allowed, on a new connection.
    async fn works(&self) -> bool {
        check(&self.channel().await, good()).await == Ok(0)
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }
}

fn good() -> CheckRequest {
    let authorization = String::from_utf8(bearer(1)).unwrap();
    let headers = [("authorization".to_owned(), authorization)].into();
    let http = Some(HttpRequest { headers, ..Default::default() });
    let request = Some(attribute_context::Request { http, ..Default::default() });
    CheckRequest { attributes: Some(AttributeContext { request, ..Default::default() }) }
}

/// The code in the response, or that of the call if it failed.
async fn check(channel: &Channel, request: CheckRequest) -> Result<i32, Code> {
    let response = AuthorizationClient::new(channel.clone()).check(request).await;
    response.map(|response| response.into_inner().status.unwrap().code).map_err(|status| status.code())
}

async fn health(channel: &Channel, service: &str) -> Result<Health, Code> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let response = HealthClient::new(channel.clone()).check(request).await;
    response.map(|response| response.into_inner().status()).map_err(|status| status.code())
}

/// Reads until the server closes; returns the bytes, and how long it took.
async fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, Duration) {
    let (start, mut read) = (Instant::now(), Vec::new());
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut read)).await.expect("the server closes");
    (read, start.elapsed())
}

/// A frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The complete frames: their kinds and payloads.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, next)) = rest.split_at_checked(length) else { break };
        frames.push((*kind, payload));
        bytes = next;
    }
    frames
}

/// Whether there is a GOAWAY with this error code.
fn has_goaway(read: &[u8], code: u8) -> bool {
    frames(read).iter().any(|(kind, payload)| *kind == GOAWAY && payload.get(7) == Some(&code))
}

#[tokio::test]
async fn health_follows_readiness() {
    let server = start(LONG, LONG).await;
    let channel = server.channel().await;
    let mut watch = HealthClient::new(channel.clone());
    let mut watch = watch.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    for (ready, expected) in
        [(false, Health::NotServing), (true, Health::Serving), (false, Health::NotServing)]
    {
        server.ready.set(ready);
        while watch.message().await.unwrap().unwrap().status() != expected {}
        for service in ["", SERVICE_NAME] {
            while health(&channel, service).await.unwrap() != expected {}
        }
    }
    assert_eq!(health(&channel, "nobody").await, Err(Code::NotFound));
}

#[tokio::test]
async fn other_calls_get_a_grpc_error_and_the_connection_stays_open() {
    let server = start(LONG, LONG).await;
    let channel = server.channel().await;
    let unary = async |path: &'static str, message: rpc::Status| {
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.unwrap();
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<rpc::Status, rpc::Status>::default();
        client.unary(tonic::Request::new(message), path, codec).await.expect_err("an error").code()
    };
    // A number where a message should be.
    let number = rpc::Status { code: 1, ..Default::default() };
    assert_eq!(unary(CHECK_PATH, number.clone()).await, Code::Internal);
    assert_eq!(
        unary("/envoy.service.auth.v3.Authorization/Other", number.clone()).await,
        Code::Unimplemented
    );
    assert_eq!(unary("/envoy.service.auth.v2.Authorization/Check", number).await, Code::Unimplemented);
    let large = rpc::Status { message: "x".repeat(MAX_MESSAGE_BYTES), ..Default::default() };
    assert_eq!(unary(CHECK_PATH, large).await, Code::OutOfRange);
    assert_eq!(server.failed.get(), 2);
    // An empty message is a check without an HTTP request.
    assert_eq!(check(&channel, CheckRequest::default()).await, Ok(Code::InvalidArgument.into()));
    assert_eq!(check(&channel, good()).await, Ok(0));
}

#[tokio::test]
async fn headers_of_a_large_request_fit() {
    let server = start(LONG, LONG).await;
    let mut request = good();
    let http = request.attributes.as_mut().and_then(|a| a.request.as_mut()?.http.as_mut()).unwrap();
    // Envoy's largest head, all of it path, which it sends as a header too.
    http.path = "x".repeat(60 * 1024);
    http.headers.insert(":path".to_owned(), http.path.clone());
    assert_eq!(check(&server.channel().await, request).await, Ok(0));
}

/// As with `with_request_body`.
#[tokio::test]
async fn the_clients_body_does_not_matter() {
    let server = start(LONG, LONG).await;
    let channel = server.channel().await;
    for size in [100, 129 * 1024, 20 << 20] {
        let mut request = good();
        let http = request.attributes.as_mut().and_then(|a| a.request.as_mut()?.http.as_mut()).unwrap();
        http.body = "x".repeat(size);
        assert_eq!(check(&channel, request.clone()).await, Ok(0), "{size}");
        let http = request.attributes.as_mut().and_then(|a| a.request.as_mut()?.http.as_mut()).unwrap();
        (http.raw_body, http.body) = (vec![0xff; size], String::new());
        http.headers.remove("authorization");
        assert_eq!(check(&channel, request).await, Ok(Code::Unauthenticated.into()), "{size}");
    }
    assert_eq!(server.failed.get(), 0);
}

#[tokio::test]
async fn connections_are_counted_while_they_are_open() {
    let server = start(LONG, LONG).await;
    let (one, other) = (server.channel().await, server.channel().await);
    for channel in [&one, &other] {
        assert_eq!(check(channel, good()).await, Ok(0));
    }
    assert_eq!(server.open.get(), 2);
    drop((one, other));
    tokio::time::timeout(LONG, async {
        while server.open.get() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_connection_without_a_call_is_closed() {
    let server = start(SHORT, LONG).await;
    // Nothing, half a preface, all of it, and another protocol.
    for sent in [&b""[..], &PREFACE[..10], PREFACE, b"GET /auth HTTP/1.1\r\nHost: t\r\n\r\n"] {
        let mut stream = server.connect().await;
        stream.write_all(sent).await.unwrap();
        let (_, took) = read_to_end(&mut stream).await;
        assert!(took < LONG / 2, "{sent:?} after {took:?}");
    }
    assert!(server.works().await);
}

#[tokio::test]
async fn with_a_certificate_only_tls_is_served() {
    let folder = tempfile::TempDir::new().unwrap();
    let files = Files { certificate: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(&files.certificate, certificate.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    let certificates = Certificates::load(files.clone(), Gauge::default()).unwrap();
    let server =
        start_with(Some(certificates.acceptor(&[b"h2"], &Clients::anybody()).unwrap()), SHORT * 10, LONG)
            .await;

    let port = server.address.port();
    let mut curl = std::process::Command::new("curl");
    curl.args([
        "-q",
        "--silent",
        "--http2",
        "--data",
        "",
        "--write-out",
        "%{http_version} %header{grpc-status}",
    ]);
    curl.arg("--cacert").arg(&files.certificate);
    curl.args([
        "--resolve",
        &format!("localhost:{port}:127.0.0.1"),
        &format!("https://localhost:{port}/no/such"),
    ]);
    let output = tokio::task::spawn_blocking(move || curl.output()).await.unwrap();
    let output = output.expect("curl, which this test needs: install it");
    // UNIMPLEMENTED, by HTTP/2.
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2 12", "{output:?}");

    let mut plain = server.connect().await;
    plain.write_all(PREFACE).await.unwrap();
    let (read, _) = read_to_end(&mut plain).await;
    assert!(frames(&read).is_empty() && !has_goaway(&read, 0), "{read:?}");
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_closed_with_a_goaway() {
    let server = start(SHORT, SHORT).await;
    let mut stream = server.connect().await;
    // POST /, which fails, but is a call.
    stream
        .write_all(&[PREFACE, &frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x83\x86\x84")].concat())
        .await
        .unwrap();
    let (read, took) = read_to_end(&mut stream).await;
    assert!(took >= SHORT * 2, "the first call is waited for, then the next: {took:?}");
    assert!(has_goaway(&read, 0), "{read:?}");
}

/// Whose calls wait for a turn.
#[tokio::test]
async fn a_client_is_known_by_a_valid_token_and_by_nothing_else() {
    let server = start(LONG, LONG).await;
    let channel = server.channel().await;
    for _ in 0..2 {
        assert_eq!(check(&channel, CheckRequest::default()).await, Ok(Code::InvalidArgument as i32));
        assert_eq!(server.connections.strangers(), 1);
        assert!(health(&channel, "").await.is_ok());
        assert_eq!(server.connections.strangers(), 1);
        assert_eq!(check(&channel, good()).await, Ok(0));
        assert_eq!(server.connections.strangers(), 0);
    }
}

#[tokio::test]
async fn a_flood_of_resets_ends_its_connection_and_no_other() {
    let server = start(LONG, LONG).await;
    let channel = server.channel().await;
    let mut flood = PREFACE.to_vec();
    for stream in (1..4_000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS, stream, b"\x83\x86\x84"));
        flood.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let mut stream = server.connect().await;
    // The server may close before all is sent.
    let _ = stream.write_all(&flood).await;
    let (read, _) = read_to_end(&mut stream).await;
    const ENHANCE_YOUR_CALM: u8 = 11;
    assert!(has_goaway(&read, ENHANCE_YOUR_CALM), "{read:?}");
    assert_eq!(check(&channel, good()).await, Ok(0));
}

/// Connections that do nothing lock nobody out, whether they have made a call or not.
#[tokio::test]
async fn a_new_connection_displaces_the_quietest() {
    let server = start(LONG, LONG).await;
    let (mut called, mut silent) = (Vec::new(), Vec::new());
    for _ in 0..MAX_CONNECTIONS / 2 + 10 {
        let channel = server.channel().await;
        assert_eq!(check(&channel, good()).await, Ok(0));
        called.push(channel);
        silent.push(server.connect().await);
        assert!(server.open.get() <= i64::try_from(MAX_CONNECTIONS).unwrap() + 5, "{}", server.open.get());
    }
    assert!(server.works().await);
}

#[tokio::test]
async fn an_incomplete_message_times_out() {
    let server = start(SHORT, LONG).await;
    let mut stream = server.connect().await;
    let path =
        [&b"\x83\x86\x44"[..], &[u8::try_from(CHECK_PATH.len()).unwrap()], CHECK_PATH.as_bytes()].concat();
    let begun = frame(DATA, 0, 1, b"\0\0\0\0\x40half");
    stream.write_all(&[PREFACE, &frame(HEADERS, END_HEADERS, 1, &path), &begun].concat()).await.unwrap();
    let mut read = Vec::new();
    let responded = async {
        while !frames(&read).iter().any(|(kind, _)| *kind == HEADERS) {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "the connection stays open");
        }
    };
    tokio::time::timeout(LONG / 2, responded).await.expect("a response");
    assert!(server.works().await);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_idle_gateways() {
    let server = start(LONG, LONG).await;
    let (channel, silent) = (server.channel().await, server.connect().await);
    assert_eq!(check(&channel, good()).await, Ok(0));
    let start = Instant::now();
    server.stop.cancel();
    tokio::time::timeout(LONG, server.task).await.expect("the server stops").unwrap();
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    drop(silent);
}
