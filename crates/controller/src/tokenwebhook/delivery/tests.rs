//! Real sockets on loopback: what an endpoint may do to its client.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::resolve::system;
use super::*;

fn message() -> Message {
    let time = Timestamp::UNIX_EPOCH;
    Message {
        id: "evt_1".into(),
        type_: "token.revoked".to_owned(),
        time,
        since: time,
        token_id: Some("tok_1".to_owned()),
        name: Some("t".to_owned()),
        version: Some(1),
        reason: None,
        scopes: None,
    }
}

fn keys() -> SigningKeys {
    SigningKeys::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a key")
}

fn loopback() -> Arc<AddressPolicy> {
    Arc::new(AddressPolicy { allow: vec!["127.0.0.0/8".parse().expect("a network")], ..Default::default() })
}

fn endpoint(address: SocketAddr, timeout: Duration) -> Endpoint {
    Endpoint::new(&format!("http://{address}/hook"), None, timeout, loopback(), system())
        .expect("an endpoint")
}

/// Listens; of each connection, reads a request's head and passes the socket on. Returns the address and a count of the
/// connections.
async fn listen<F: Future<Output = ()> + Send>(
    respond: impl Fn(TcpStream) -> F + Send + Sync + Clone + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let respond = respond.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let _ = stream.read(&mut head).await;
                respond(stream).await;
            });
        }
    });
    (address, count)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// The requests that a server has read: the number of the connection, and `webhook-id`.
type Requests = Arc<Mutex<Vec<(usize, String)>>>;

/// A server that follows a script: for each connection, the texts that it writes, each after it has read a whole request.
/// It closes the connection after the last one.
async fn scripted(script: Vec<Vec<&'static str>>) -> (SocketAddr, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let requests = Requests::default();
    let seen = requests.clone();
    tokio::spawn(async move {
        for (connection, responses) in script.into_iter().enumerate() {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            for response in responses {
                let Some(id) = read_request(&mut stream).await else { break };
                lock(&seen).push((connection, id));
                let _ = stream.write_all(response.as_bytes()).await;
            }
        }
    });
    (address, requests)
}

/// Reads one request to the end of its body. Returns its `webhook-id`, or nothing if the client closes the connection.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        if let Some(id) = id_of_complete(&String::from_utf8_lossy(&bytes)) {
            return Some(id);
        }
        if !matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {
            return None;
        }
    }
}

fn id_of_complete(request: &str) -> Option<String> {
    let (head, body) = request.split_once("\r\n\r\n")?;
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let length: usize = header("content-length").and_then(|length| length.parse().ok()).expect("a length");
    (body.len() == length).then(|| header("webhook-id").expect("an id").to_owned())
}

async fn send(endpoint: &Endpoint) -> Outcome {
    send_id(endpoint, "evt_1").await
}

async fn send_id(endpoint: &Endpoint, id: &str) -> Outcome {
    endpoint.send(&Message { id: id.into(), ..message() }, "demo", &keys()).await
}

fn code(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted => "Accepted",
        Outcome::Gone => "Gone",
        Outcome::Failed(failure) => failure.reason.code,
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (inside, connections) = listen(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    let (address, _) = listen(move |mut stream: TcpStream| async move {
        let response = format!("HTTP/1.1 307 x\r\nlocation: http://{inside}/\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.write_all(response.as_bytes()).await;
    })
    .await;
    assert_eq!(code(&send(&endpoint(address, Duration::from_secs(5))).await), "Redirect");
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_response_byte_by_byte_ends_at_the_timeout() {
    let (address, _) = listen(async |mut stream: TcpStream| {
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain(std::iter::repeat(&b'a')) {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(code(&send(&endpoint(address, Duration::from_millis(300))).await), "Timeout");
}

/// The server offers a gigabyte; no more of it leaves the server than sockets buffer.
#[tokio::test]
async fn a_huge_body_is_not_read() {
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    let (address, _) = listen(move |mut stream: TcpStream| {
        let counted = counted.clone();
        async move {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";
            let chunk = vec![b'x'; 64 * 1024];
            if stream.write_all(head).await.is_err() {
                return;
            }
            while stream.write_all(&chunk).await.is_ok() {
                counted.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    assert_eq!(send(&endpoint(address, Duration::from_secs(20))).await, Outcome::Accepted);
    assert!(taken.load(Ordering::SeqCst) < 64 * 1024 * 1024, "{}", taken.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_huge_head_and_nonsense_are_failures() {
    let (address, _) = listen(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'a'; 4096]).await.is_ok() {}
    })
    .await;
    assert_eq!(code(&send(&endpoint(address, Duration::from_secs(20))).await), "NoResponse");
    let (address, _) = listen(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"SSH-2.0-hunter2\r\n").await;
    })
    .await;
    let outcome = send(&endpoint(address, Duration::from_secs(20))).await;
    assert_eq!(code(&outcome), "NoResponse");
    assert!(!format!("{outcome:?}").contains("hunter2"));
}

#[tokio::test]
async fn one_connection_serves_many_events() {
    let (address, connections) = listen(async |mut stream: TcpStream| {
        let mut request = vec![0; 4096];
        // The first head has been read; each response is followed by the next request.
        while stream.write_all(OK.as_bytes()).await.is_ok() {
            if !matches!(stream.read(&mut request).await, Ok(1..)) {
                return;
            }
        }
    })
    .await;
    let endpoint = endpoint(address, Duration::from_secs(20));
    for _ in 0..20 {
        assert_eq!(send(&endpoint).await, Outcome::Accepted);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// The server does not announce that it closes the connection, and does so: at once, or in a moment, when it is idle.
#[tokio::test]
async fn a_connection_that_was_closed_costs_no_event() {
    for pause in [Duration::ZERO, Duration::from_millis(30)] {
        let (address, connections) = listen(move |mut stream: TcpStream| async move {
            let _ = stream.write_all(OK.as_bytes()).await;
            tokio::time::sleep(pause).await;
        })
        .await;
        let endpoint = endpoint(address, Duration::from_secs(20));
        for _ in 0..10 {
            assert_eq!(send(&endpoint).await, Outcome::Accepted);
            // Closed by now, but nothing has polled the connection since.
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        assert_eq!(connections.load(Ordering::SeqCst), 10);
    }
}

/// The server reads a request on a reused connection, and closes it without a byte of a response, as one does whose idle
/// timeout ends just then. The event is sent once more, with the same id, over a new connection.
#[tokio::test]
async fn a_request_without_response_on_a_reused_connection_is_sent_once_more() {
    let (address, requests) = scripted(vec![vec![OK, ""], vec![OK]]).await;
    let endpoint = endpoint(address, Duration::from_secs(20));
    for id in ["evt_1", "evt_2"] {
        assert_eq!(send_id(&endpoint, id).await, Outcome::Accepted);
    }
    let expected = [(0, "evt_1"), (0, "evt_2"), (1, "evt_2")].map(|(n, id)| (n, id.to_owned()));
    assert_eq!(*lock(&requests), expected);
}

/// It is sent once more, not until it works.
#[tokio::test]
async fn a_request_without_response_on_a_new_connection_is_not_sent_again() {
    let (address, requests) = scripted(vec![vec![OK, ""], vec![""], vec![OK]]).await;
    let endpoint = endpoint(address, Duration::from_secs(20));
    assert_eq!(send_id(&endpoint, "evt_1").await, Outcome::Accepted);
    assert_eq!(code(&send_id(&endpoint, "evt_2").await), "NoResponse");
    let expected = [(0, "evt_1"), (0, "evt_2"), (1, "evt_2")].map(|(n, id)| (n, id.to_owned()));
    assert_eq!(*lock(&requests), expected);
}

/// A server that has begun to respond has received the event, so this is a failed attempt.
#[tokio::test]
async fn a_request_with_an_incomplete_response_is_not_sent_again() {
    for part in ["H", "HTTP/1.1 200 OK\r\ncontent-le", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let (address, requests) = scripted(vec![vec![OK, part], vec![OK]]).await;
        let endpoint = endpoint(address, Duration::from_secs(20));
        assert_eq!(send_id(&endpoint, "evt_1").await, Outcome::Accepted);
        assert_eq!(code(&send_id(&endpoint, "evt_2").await), "NoResponse", "{part}");
        assert_eq!(send_id(&endpoint, "evt_3").await, Outcome::Accepted);
        let expected = [(0, "evt_1"), (0, "evt_2"), (1, "evt_3")].map(|(n, id)| (n, id.to_owned()));
        assert_eq!(*lock(&requests), expected, "{part}");
    }
}

/// Whether or not this side has noticed it by then, the server reads the next event once, on a new connection.
#[tokio::test]
async fn a_connection_closed_after_the_response_is_not_used_again() {
    for pause in [Duration::ZERO, Duration::from_millis(50)] {
        let (address, requests) = scripted(vec![vec![OK], vec![OK]]).await;
        let endpoint = endpoint(address, Duration::from_secs(20));
        assert_eq!(send_id(&endpoint, "evt_1").await, Outcome::Accepted);
        tokio::time::sleep(pause).await;
        assert_eq!(send_id(&endpoint, "evt_2").await, Outcome::Accepted);
        assert_eq!(*lock(&requests), [(0, "evt_1".to_owned()), (1, "evt_2".to_owned())]);
    }
}

/// The name resolves to an allowed address first and to a forbidden one from then on. The connection goes to the address
/// that was checked, and the name is resolved once for each connection.
#[tokio::test]
async fn a_name_that_resolves_differently_later_has_no_effect() {
    let respond = async |mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    };
    let (allowed, reached) = listen(respond).await;
    let inside = TcpListener::bind(("127.0.0.2", allowed.port())).await.expect("the same port on 127.0.0.2");
    let resolved = Arc::new(AtomicUsize::new(0));
    let counted = resolved.clone();
    let resolve: Resolve = Arc::new(move |_, port| {
        let nth = counted.fetch_add(1, Ordering::SeqCst);
        let address = if nth == 0 { [127, 0, 0, 1] } else { [127, 0, 0, 2] };
        Box::pin(async move { Ok(vec![SocketAddr::from((address, port))]) })
    });
    let policy =
        AddressPolicy { allow: vec!["127.0.0.1/32".parse().expect("a network")], ..Default::default() };
    let url = format!("http://rebinding.example:{}/", allowed.port());
    let endpoint =
        Endpoint::new(&url, None, Duration::from_secs(5), Arc::new(policy), resolve).expect("an endpoint");
    assert_eq!(send(&endpoint).await, Outcome::Accepted);
    assert_eq!((resolved.load(Ordering::SeqCst), reached.load(Ordering::SeqCst)), (1, 1));
    for _ in 0..3 {
        assert_eq!(code(&send(&endpoint).await), "AddressNotAllowed");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 1);
    let knocked = tokio::time::timeout(Duration::from_millis(200), inside.accept()).await;
    assert!(knocked.is_err(), "the forbidden address was connected to");
}

#[tokio::test]
async fn no_address_of_a_name_is_used_if_one_is_forbidden() {
    let resolve: Resolve = Arc::new(|_, port| {
        let addresses = [[127, 0, 0, 1], [169, 254, 169, 254]];
        Box::pin(async move { Ok(addresses.map(|address| SocketAddr::from((address, port))).into()) })
    });
    let endpoint = Endpoint::new("http://both.example/", None, Duration::from_secs(5), loopback(), resolve);
    let outcome = send(&endpoint.expect("an endpoint")).await;
    assert_eq!(code(&outcome), "AddressNotAllowed");
    assert!(format!("{outcome:?}").contains("--webhook-allow-cidrs"));
}

#[tokio::test]
async fn addresses_in_urls_are_checked_in_every_notation() {
    let policy = Arc::new(AddressPolicy::default());
    let urls = [
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/",
        "http://10.0.0.1/",
        "http://localhost/",
        "http://0/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
    ];
    for url in urls {
        let endpoint = Endpoint::new(url, None, Duration::from_secs(5), policy.clone(), system()).expect(url);
        let outcome = send(&endpoint).await;
        assert!(matches!(code(&outcome), "AddressNotAllowed" | "NameNotResolved"), "{url}: {outcome:?}");
    }
}

/// Conditions and Events are for more people than the Secret with the URL.
#[tokio::test]
async fn a_failure_tells_nothing_of_a_secret_url() {
    let (plain, _) = listen(|mut stream| async move { _ = stream.write_all(b"not TLS").await }).await;
    let resolve: Resolve = Arc::new(|host, port| {
        Box::pin(async move {
            match host.strip_prefix("ip-").map(str::parse::<IpAddr>) {
                Some(Ok(address)) => Ok(vec![SocketAddr::from((address, port))]),
                _ => Err(std::io::Error::other(format!("{host} is unknown"))),
            }
        })
    });
    for (url, expected) in [
        ("https://secret-host/".to_owned(), "NameNotResolved"),
        ("https://10.20.30.40/".to_owned(), "AddressNotAllowed"),
        ("https://ip-169.254.169.254/".to_owned(), "AddressNotAllowed"),
        (format!("https://127.0.0.1:{}/", plain.port()), "TlsFailed"),
        ("http://127.0.0.1:1/".to_owned(), "ConnectionFailed"),
    ] {
        let made = Endpoint::new(&url, None, Duration::from_secs(5), loopback(), resolve.clone());
        let outcome = send(&made.expect("an endpoint").with_secret_url()).await;
        assert_eq!(code(&outcome), expected, "{url}");
        let text = format!("{outcome:?}");
        for part in ["secret-host", "10.20.30.40", "169.254", "127.0.0.1", "private", "link-local"] {
            assert!(!text.replace("allow-private", "").contains(part), "{url}: {text}");
        }
    }
}

#[test]
fn an_invalid_url_is_rejected_and_not_repeated() {
    for url in [
        "",
        "hunter2",
        "/hunter2",
        "ftp://hunter2/",
        "http://user:hunter2@host/",
        "http://",
        "https:///x",
        "http://a b/",
    ] {
        let made = Endpoint::new(url, None, Duration::from_secs(5), loopback(), system());
        let error = made.expect_err(url);
        assert_eq!(error, EndpointError::Url, "{url}");
        assert!(!error.to_string().contains("hunter2"));
    }
    let made = Endpoint::new("https://host/", Some("hunter2"), Duration::from_secs(5), loopback(), system());
    assert_eq!(made.expect_err("no certificate"), EndpointError::CaBundle);
}

#[tokio::test]
async fn a_closed_port_is_reported_before_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let start = Instant::now();
    assert_eq!(code(&send(&endpoint(address, Duration::from_secs(60))).await), "ConnectionFailed");
    assert!(start.elapsed() < Duration::from_secs(60));
}

/// With a CA bundle, the certificate is verified against that alone, and against the name in the URL.
#[tokio::test]
async fn the_certificate_is_verified_against_the_ca_bundle() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut authority = CertificateParams::new(vec![]).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["hooks.example".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &authority).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        )
        .expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = vec![0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 204 x\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let resolve: Resolve =
        Arc::new(|_, port| Box::pin(async move { Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]) }));
    let send = async |host: &str, ca: Option<&str>| {
        let url = format!("https://{host}:{port}/");
        let endpoint = Endpoint::new(&url, ca, Duration::from_secs(10), loopback(), resolve.clone());
        code(&endpoint.expect("an endpoint").send(&message(), "demo", &keys()).await)
    };
    assert_eq!(send("hooks.example", Some(&authority.pem())).await, "Accepted");
    assert_eq!(send("other.example", Some(&authority.pem())).await, "TlsFailed");
    assert_eq!(send("hooks.example", None).await, "TlsFailed", "not by the public authorities");
}
