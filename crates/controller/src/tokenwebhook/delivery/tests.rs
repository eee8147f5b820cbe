//! Real sockets on loopback: what an endpoint may do to the one who asks it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::connect::system;
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

/// Listens; for each connection, reads a request's head and hands over the socket. Answers how many there were.
async fn listen<F: Future<Output = ()> + Send>(
    answer: impl Fn(TcpStream) -> F + Send + Sync + Clone + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let _ = stream.read(&mut head).await;
                answer(stream).await;
            });
        }
    });
    (address, count)
}

async fn send(endpoint: &Endpoint) -> Outcome {
    endpoint.send(&message(), "demo", &keys()).await
}

fn cause(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted => "Accepted",
        Outcome::Gone => "Gone",
        Outcome::Failed(failure) => failure.cause,
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (inside, asked) = listen(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    })
    .await;
    let (address, _) = listen(move |mut stream: TcpStream| async move {
        let answer = format!("HTTP/1.1 307 x\r\nlocation: http://{inside}/\r\ncontent-length: 0\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    assert_eq!(cause(&send(&endpoint(address, Duration::from_secs(5))).await), "Redirect");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_byte_by_byte_ends_at_the_timeout() {
    let (address, _) = listen(async |mut stream: TcpStream| {
        for byte in b"HTTP/1.1 200 OK\r\nx-slow: ".iter().chain(std::iter::repeat(&b'a')) {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(cause(&send(&endpoint(address, Duration::from_millis(300))).await), "Timeout");
}

/// A gigabyte is on offer; what was taken of it is what sockets buffer.
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
    assert_eq!(cause(&send(&endpoint(address, Duration::from_secs(20))).await), "NoAnswer");
    let (address, _) = listen(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"SSH-2.0-hunter2\r\n").await;
    })
    .await;
    let outcome = send(&endpoint(address, Duration::from_secs(20))).await;
    assert_eq!(cause(&outcome), "NoAnswer");
    assert!(!format!("{outcome:?}").contains("hunter2"));
}

#[tokio::test]
async fn one_connection_serves_many_events() {
    let (address, connections) = listen(async |mut stream: TcpStream| {
        let mut request = vec![0; 4096];
        // The first head has been read; each answer is followed by the next request.
        while stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_ok() {
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

/// It promises to keep the connection and closes it all the same: at once, or in a moment, when it is idle here.
#[tokio::test]
async fn a_connection_that_was_closed_costs_no_event() {
    for pause in [Duration::ZERO, Duration::from_millis(30)] {
        let (address, connections) = listen(move |mut stream: TcpStream| async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            tokio::time::sleep(pause).await;
        })
        .await;
        let endpoint = endpoint(address, Duration::from_secs(20));
        for _ in 0..10 {
            assert_eq!(send(&endpoint).await, Outcome::Accepted);
            // Closed by now, and nobody has looked.
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        assert_eq!(connections.load(Ordering::SeqCst), 10);
    }
}

/// The name points to an allowed address first and to a forbidden one from then on. The connection goes where the
/// judged answer said, and the name is asked for once for each.
#[tokio::test]
async fn a_dns_answer_that_changes_changes_nothing() {
    let answer = async |mut stream: TcpStream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
    };
    let (allowed, reached) = listen(answer).await;
    let inside = TcpListener::bind(("127.0.0.2", allowed.port())).await.expect("the same port on 127.0.0.2");
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
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
    assert_eq!((asked.load(Ordering::SeqCst), reached.load(Ordering::SeqCst)), (1, 1));
    for _ in 0..3 {
        assert_eq!(cause(&send(&endpoint).await), "AddressRefused");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 1);
    let knocked = tokio::time::timeout(Duration::from_millis(200), inside.accept()).await;
    assert!(knocked.is_err(), "the forbidden address was connected to");
}

#[tokio::test]
async fn a_name_with_one_forbidden_address_is_refused_as_a_whole() {
    let resolve: Resolve = Arc::new(|_, port| {
        let addresses = [[127, 0, 0, 1], [169, 254, 169, 254]];
        Box::pin(async move { Ok(addresses.map(|address| SocketAddr::from((address, port))).into()) })
    });
    let endpoint = Endpoint::new("http://both.example/", None, Duration::from_secs(5), loopback(), resolve);
    let outcome = send(&endpoint.expect("an endpoint")).await;
    assert_eq!(cause(&outcome), "AddressRefused");
    assert!(format!("{outcome:?}").contains("--webhook-allow-cidrs"));
}

#[tokio::test]
async fn addresses_in_urls_are_judged_in_every_notation() {
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
        assert!(matches!(cause(&outcome), "AddressRefused" | "NameNotResolved"), "{url}: {outcome:?}");
    }
}

#[test]
fn what_is_no_url_is_refused_and_not_repeated() {
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
async fn nobody_there_is_told_soon() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let start = Instant::now();
    assert_eq!(cause(&send(&endpoint(address, Duration::from_secs(60))).await), "ConnectionFailed");
    assert!(start.elapsed() < Duration::from_secs(60));
}

/// An endpoint of a private authority is asked if that authority is named, and by its name only.
#[tokio::test]
async fn tls_is_checked_by_the_endpoints_own_authority() {
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
        cause(&endpoint.expect("an endpoint").send(&message(), "demo", &keys()).await)
    };
    assert_eq!(send("hooks.example", Some(&authority.pem())).await, "Accepted");
    assert_eq!(send("other.example", Some(&authority.pem())).await, "TlsFailed");
    assert_eq!(send("hooks.example", None).await, "TlsFailed", "not by the public authorities");
}
