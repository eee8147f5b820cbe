//! What anybody on the network can send to a verifier: hostile tokens, requests and connections.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokenward_core::token::format;
use tokenward_core::token::format::{KeyId, Prefix};
use tokenward_core::token::{Plaintext, Token};
use tokio::task::spawn_blocking;

use crate::Shared;
use testkit::{TIMEOUT, client};

/// By then a response must have arrived: far more than it takes, and less than the verifier's own time-outs.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

pub async fn hostile_tokens_are_rejected(shared: &Shared) {
    let space = shared.site.namespace("hostile").await;
    let good = space.active("t", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&good, "scope=a:b", 200).await;

    let key_id = Token::parse(&good).expect("a token").key_id();
    let unknown = made("tw", KeyId::from_bytes([0xAB; 16]));
    // With valid checksums, and in the second a known key id.
    let forged = [unknown, made("tw", key_id), made("tok_live", key_id)];
    for token in forged.iter().map(Plaintext::expose) {
        assert!(Token::parse(token).is_some(), "it must not be rejected for its form");
        assert_eq!(shared.verifier.check(token, "").await, 401);
    }
    let longer = [&good, "0"].concat();
    for token in ["", "tw_", "null", "undefined", "../../etc/passwd", "' OR 1=1 --", &good[1..], &longer] {
        assert_eq!(shared.verifier.check(token, "").await, 401, "{token}");
    }
    for at in 0..good.len() {
        let other = if good.as_bytes()[at] == b'x' { "y" } else { "x" };
        let mut changed = good.clone();
        changed.replace_range(at..=at, other);
        assert_eq!(shared.verifier.check(&changed, "").await, 401, "character {at} is not covered");
    }
    for header in ["Authorization: Bearer ", "X-API-Key: "] {
        let request =
            [b"GET /auth HTTP/1.1\r\n", header.as_bytes(), b"\xff\xfe\x80\r\n", CLOSING_HEAD_END].concat();
        assert_eq!(exchange(shared, request).await.status(), Some(401));
        let huge =
            [b"GET /auth HTTP/1.1\r\n", header.as_bytes(), &[b'x'; 1 << 20], b"\r\n", CLOSING_HEAD_END]
                .concat();
        assert!(matches!(exchange(shared, huge).await.status(), Some(431) | None));
    }
    copies_of_a_status_grant_nothing(shared, &good).await;
}

/// A user who may write statuses copies that of token `t`, to use its secret for other scopes.
async fn copies_of_a_status_grant_nothing(shared: &Shared, good: &str) {
    let (space, thieves) = (shared.site.namespace("copied").await, shared.site.namespace("thief").await);
    let owned = space.active("t", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&owned, "", 200).await;
    thieves.active("t", json!({"scopes": ["a:b", "payments:*"]})).await;
    let status = space.get("t").await.status.expect("a status");
    let versions = serde_json::to_value(&status.versions).expect("JSON");
    let mut widened = versions.clone();
    widened[0]["scopes"] = json!(["a:b", "payments:*"]);
    // Repeatedly: the controller undoes it.
    for round in 0..10 {
        let copy = if round % 2 == 0 { &versions } else { &widened };
        thieves.patch_status("t", json!({"status": {"versions": copy}})).await;
        assert_eq!(shared.verifier.check(&owned, "scope=payments:read").await, 403);
        let answer = shared.verifier.ask(&owned, "scope=a:b").await;
        assert_eq!(answer.status(), 200, "a copy shadows the token");
        assert_eq!(answer.headers()["x-tokenward-subject"], format!("{}/t", space.name).as_str());
    }
    space.delete("t").await;
    shared.verifier.answers(&owned, "", 401).await;
    for _ in 0..10 {
        thieves.patch_status("t", json!({"status": {"versions": versions}})).await;
        assert_eq!(shared.verifier.check(&owned, "").await, 401, "a copy outlives the token");
    }
    assert_eq!(shared.verifier.check(good, "").await, 200, "nobody else is harmed");
}

pub async fn hostile_requests_are_rejected(shared: &Shared) {
    let space = shared.site.namespace("requests").await;
    let good = space.active("t", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&good, "", 200).await;
    let token = format!("Authorization: Bearer {good}\r\n");

    // These take as long as the verifier's time-outs, so they run beside the rest.
    let listen = shared.verifier.listen;
    let slow: Vec<_> = (0..5).map(|_| spawn_blocking(move || drip(listen))).collect();
    let idle = spawn_blocking(move || (0..500).map(|_| half_open(listen)).collect::<Vec<_>>());
    let idle = idle.await.expect("connections");
    assert_eq!(shared.verifier.check(&good, "").await, 200, "beside {} idle connections", idle.len());

    every_method_is_answered(shared, &good).await;
    bad_heads_are_rejected(shared, &token).await;
    bodies_do_not_matter(shared, &token).await;
    drop(idle);
    for slow in slow {
        let took = slow.await.expect("a slow client");
        assert!(took < TIMEOUT, "a slow client keeps its connection");
    }
    assert_eq!(shared.verifier.check(&good, "").await, 200);
    assert!(!shared.verifier.log().contains("panicked"), "{}", shared.verifier.log());
}

async fn every_method_is_answered(shared: &Shared, good: &str) {
    let url = format!("http://{}/auth", shared.verifier.listen);
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
        let ask = || client().request(method.parse().expect("a method"), &url);
        let with = ask().bearer_auth(good).send().await.expect("an answer");
        assert_eq!(with.status(), 200, "{method}");
        assert!(with.headers().contains_key("x-tokenward-id"), "{method}");
        let without = ask().send().await.expect("an answer");
        assert_eq!(without.status(), 401, "{method}");
        assert!(without.headers().contains_key("www-authenticate"), "{method}");
    }
}

/// Well-formed, each would be allowed by its token.
async fn bad_heads_are_rejected(shared: &Shared, token: &str) {
    let twice = format!("GET /auth HTTP/1.1\r\n{token}{token}");
    assert_eq!(exchange(shared, [twice.as_bytes(), CLOSING_HEAD_END].concat()).await.status(), Some(400));

    let headers = |extra: &str| format!("GET /auth HTTP/1.1\r\n{extra}\r\n{token}");
    let malformed = [
        "\0".repeat(64),
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!("GET\r\n{token}"),
        format!("GET /auth\r\n{token}"),
        format!("GET /auth HTTP/9.9\r\n{token}"),
        format!("GET /au th HTTP/1.1\r\n{token}"),
        format!("G\u{e9}T /auth HTTP/1.1\r\n{token}"),
        headers("no colon"),
        headers("Name : space before the colon"),
        headers(": no name"),
        headers("X-Control: a\x01b"),
        headers("X-Folded: a\r\n b"),
        headers("Content-Length: -1"),
        headers("Content-Length: 99999999999999999999999"),
        headers("Content-Length: 1\r\nContent-Length: 2"),
        headers("Transfer-Encoding: gzip"),
    ];
    for request in malformed {
        let answer = exchange(shared, [request.as_bytes(), CLOSING_HEAD_END].concat()).await;
        assert!(matches!(answer.status(), Some(400) | None), "{request:?}: {answer:?}");
    }
    let long = [
        format!("GET /auth?scope={} HTTP/1.1\r\n{token}", "a".repeat(100_000)),
        headers(&format!("X-Long: {}", "a".repeat(40_000))),
        headers(&vec!["X-Many: a"; 1_000].join("\r\n")),
    ];
    for request in long {
        let answer = exchange(shared, [request.as_bytes(), CLOSING_HEAD_END].concat()).await;
        assert!(matches!(answer.status(), Some(414 | 431) | None), "{}…: {answer:?}", &request[..60]);
    }
    // One response each, in order: a token in one request must not count for the next.
    let pipelined = format!("GET /auth HTTP/1.1\r\n{token}\r\nGET /auth HTTP/1.1\r\n");
    let answer = exchange(shared, [pipelined.as_bytes(), CLOSING_HEAD_END].concat()).await;
    assert_eq!(answer.statuses(), [200, 401], "{answer:?}");
}

/// A body is not asked for, not waited for, and not parsed as the next request.
async fn bodies_do_not_matter(shared: &Shared, token: &str) {
    const SIZE: usize = 1 << 20;
    let head = |framing: &str| format!("POST /auth HTTP/1.1\r\n{token}{framing}\r\n\r\n").into_bytes();
    let sized = head(&format!("Content-Length: {SIZE}"));
    let never_sent = exchange(shared, sized.clone()).await;
    assert_eq!(never_sent.statuses(), [200], "{never_sent:?}");

    // The body looks like requests without a token.
    let next = [b"GET /auth HTTP/1.1\r\n", token.as_bytes(), CLOSING_HEAD_END].concat();
    let body = b"GET /auth HTTP/1.1\r\nHost: x\r\n\r\n".repeat(SIZE / 31 + 1);
    let chunk = [format!("{SIZE:x}\r\n").as_bytes(), &body[..SIZE], b"\r\n0\r\n\r\n"].concat();
    let bodies = [[&sized, &body[..SIZE]].concat(), [head("Transfer-Encoding: chunked"), chunk].concat()];
    for request in bodies {
        let answer = exchange(shared, [request, next.clone()].concat()).await;
        assert!(matches!(answer.statuses()[..], [200] | [200, 200]), "{answer:?}");
    }
}

pub async fn the_challenge_follows_the_rfc(shared: &Shared) {
    let space = shared.site.namespace("challenge").await;
    let good = space.active("t", json!({"scopes": ["a:b"]})).await;
    let constraints = json!({"cidrs": ["192.0.2.0/24"]});
    let elsewhere = space.active("e", json!({"scopes": ["a:b"], "constraints": constraints})).await;
    shared.verifier.answers(&good, "", 200).await;
    shared.verifier.answers(&elsewhere, "", 403).await;
    let url = |query: &str| format!("http://{}/auth?{query}", shared.verifier.listen);
    let invalid = r#"Bearer realm="tokenward", error="invalid_token""#;
    let malformed = r#"Bearer realm="tokenward", error="invalid_request""#;
    let lacking = r#"Bearer realm="tokenward", error="insufficient_scope", scope="a:c x:y""#;
    let table = [
        ("", None, 401, "no_token", Some(r#"Bearer realm="tokenward""#)),
        ("", Some("junk"), 401, "invalid_token", Some(invalid)),
        ("scope=a:c+x:y", Some(&*good), 403, "insufficient_scope", Some(lacking)),
        ("scope=a:c&scope=x:y", Some(&*good), 403, "insufficient_scope", Some(lacking)),
        ("scope=nonsense", Some(&*good), 400, "invalid_request", Some(malformed)),
        // No challenge, since the token is not at fault.
        ("", Some(&*elsewhere), 403, "ip_not_allowed", None),
    ];
    for (query, token, status, error, challenge) in table {
        let request = client().get(url(query));
        let request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
        let answer = request.send().await.expect("an answer");
        let text = |name| answer.headers().get(name).map(|v| v.to_str().expect("text").to_owned());
        assert_eq!(answer.status(), status, "{error}");
        assert_eq!(text("www-authenticate").as_deref(), challenge, "{error}");
        assert_eq!(text("cache-control").as_deref(), Some("no-store"), "{error}");
        assert_eq!(text("content-type").as_deref(), Some("application/json"), "{error}");
        let body: Value = serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON");
        assert_eq!(body["error"], error);
    }
    let allowed = shared.verifier.ask(&good, "scope=a:b").await;
    assert_eq!(allowed.headers()["cache-control"], "no-store");
    assert!(!allowed.headers().contains_key("www-authenticate"));
}

pub async fn public_responses_do_not_distinguish_revoked_from_unknown(shared: &Shared) {
    let space = shared.site.namespace("alike").await;
    let minute_ago = Timestamp::now() - SignedDuration::from_secs(60);
    let ends = [
        ("revoked", json!({"spec": {"revoked": true, "revocationReason": "KeyCompromise"}})),
        ("expired", json!({"spec": {"expiresAt": minute_ago}})),
        ("suspended", json!({"spec": {"suspend": true}})),
        ("retired", json!({"spec": {"rotation": {"overlap": "0s", "trigger": "now"}}})),
    ];
    let mut tokens = Vec::new();
    for (name, end) in ends {
        let token = space.active(name, json!({"scopes": ["a:b"]})).await;
        shared.verifier.answers(&token, "", 200).await;
        space.patch(name, end).await;
        tokens.push((name, token));
    }
    let token = space.active("deleted", json!({"scopes": ["a:b"]})).await;
    shared.verifier.answers(&token, "", 200).await;
    space.delete("deleted").await;
    tokens.push(("deleted", token));

    let unknown = made("tw", KeyId::from_bytes([0xCD; 16]));
    // Nor may the route's required scopes make a difference.
    for query in ["", "scope=a:b", "scope=x:y", "audience=z"] {
        let answer = async |token: &str| {
            let request = format!("GET /auth?{query} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n");
            exchange(shared, [request.as_bytes(), CLOSING_HEAD_END].concat()).await.dateless()
        };
        let expected = answer(unknown.expose()).await;
        assert!(expected.starts_with("HTTP/1.1 401 "), "{expected}");
        assert_eq!(answer("junk").await, expected);
        for (name, token) in &tokens {
            shared.verifier.answers(token, query, 401).await;
            assert_eq!(answer(token).await, expected, "{name} {query}");
        }
    }
}

fn made(prefix: &str, key_id: KeyId) -> Plaintext {
    format::make(&Prefix::new(prefix).expect("a prefix"), key_id, &[7; 32])
}

/// The end of a head that asks to close the connection, so that the response ends.
const CLOSING_HEAD_END: &[u8] = b"Host: verifier\r\nConnection: close\r\n\r\n";

/// All bytes that came back on a connection.
#[derive(Debug)]
struct Answer(String);

impl Answer {
    /// The status of the first response. `None`: the connection was closed without one.
    fn status(&self) -> Option<u16> {
        self.statuses().first().copied()
    }

    fn statuses(&self) -> Vec<u16> {
        let lines = self.0.match_indices("HTTP/1.1 ").map(|(at, line)| &self.0[at + line.len()..]);
        lines.map(|rest| rest[..3].parse().expect("a status")).collect()
    }

    /// All but the `Date` header.
    fn dateless(&self) -> String {
        let lines = self.0.lines().filter(|line| !line.to_ascii_lowercase().starts_with("date:"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Sends raw bytes; returns what comes back until the connection is closed, or nothing more comes. Fails without
/// either a response or a close within [`RESPONSE_TIMEOUT`].
async fn exchange(shared: &Shared, request: Vec<u8>) -> Answer {
    let listen = shared.verifier.listen;
    let exchange = move || {
        let mut stream = connect(listen);
        let mut writer = stream.try_clone().expect("a second handle");
        // In a thread: the response, and the close, may come before all is sent.
        let writing = std::thread::spawn(move || drop(writer.write_all(&request)));
        let (start, mut answer, mut buffer) = (Instant::now(), Vec::new(), [0; 4096]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    answer.extend_from_slice(&buffer[..count]);
                    // Once there is a response, it does not matter that the close waits for a body.
                    stream.set_read_timeout(Some(RESPONSE_TIMEOUT / 10)).expect("a timeout");
                }
                Err(error) if is_timeout(&error) && !answer.is_empty() => break,
                Err(error) => {
                    assert!(
                        !is_timeout(&error),
                        "neither a response nor a close within {:?}",
                        start.elapsed()
                    );
                    break;
                }
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
        writing.join().expect("a writer");
        Answer(String::from_utf8(answer).expect("answers are text"))
    };
    spawn_blocking(exchange).await.expect("an exchange")
}

fn connect(listen: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(listen).expect("a connection");
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT)).expect("a timeout");
    stream.set_write_timeout(Some(RESPONSE_TIMEOUT)).expect("a timeout");
    stream
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A connection with an incomplete head.
fn half_open(listen: SocketAddr) -> TcpStream {
    let mut stream = connect(listen);
    stream.write_all(b"GET /auth HTTP/1.1\r\nX-Slow: ").expect("a write");
    stream
}

/// Sends a head byte by byte until the verifier closes, at most for [`TIMEOUT`]; returns how long that took.
fn drip(listen: SocketAddr) -> Duration {
    let start = Instant::now();
    let mut stream = half_open(listen);
    stream.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    while start.elapsed() < TIMEOUT && stream.write_all(b"x").is_ok() {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(_) => break,
        }
    }
    start.elapsed()
}
