//! One question to one verifier.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use tokenward_core::proof::{MAC_HEADER, PATH, Watermark};
use tokenward_core::token::{Peppers, statement};

/// For connection and answer together.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The longest answer: a verifier may watch many namespaces.
const MAX_BYTES: usize = 256 * 1024;

/// Why nothing is known of a verifier.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no process listens")]
    Refused,
    #[error("no answer within {TIMEOUT:?}")]
    TimedOut,
    #[error("it can't be reached: {0}")]
    Unreachable(io::Error),
    #[error("no HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("{0}")]
    Status(http::StatusCode),
    #[error("the answer is too long, or ends early")]
    Body,
    #[error("the answer is by nobody who has the pepper")]
    NotAuthentic,
    #[error("the answer can't be parsed: {0}")]
    Json(#[from] serde_json::Error),
}

/// Asks how far a verifier has come. An answer is authentic, and to this question.
pub(super) async fn ask(address: SocketAddr, peppers: &Peppers) -> Result<Watermark, Error> {
    timeout(TIMEOUT, request(address, peppers)).await.unwrap_or(Err(Error::TimedOut))
}

async fn request(address: SocketAddr, peppers: &Peppers) -> Result<Watermark, Error> {
    let stream = TcpStream::connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Error::Refused,
        _ => Error::Unreachable(error),
    })?;
    let (mut sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
    let nonce = format!("{:032x}", rand::random::<u128>());
    let request = Request::get(format!("{PATH}?nonce={nonce}"))
        .header(http::header::HOST, address.to_string())
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let Ok(request) = request else { return Err(Error::Body) };
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            return Err(Error::Status(head.status));
        }
        let body = Limited::new(body, MAX_BYTES).collect().await.map_err(|_| Error::Body)?.to_bytes();
        let mac = head.headers.get(MAC_HEADER).and_then(|mac| mac.to_str().ok()).unwrap_or_default();
        if !statement::verify(peppers, &nonce, &body, mac) {
            return Err(Error::NotAuthentic);
        }
        Ok(serde_json::from_slice(&body)?)
    };
    tokio::select! {
        answer = answer => answer,
        // It ends once the response is read, too.
        ended = async { connection.await?; std::future::pending().await } => ended,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn peppers(byte: u8) -> Peppers {
        Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers")
    }

    /// Asks a server that answers with what `answer` makes of the nonce.
    async fn asked(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Result<Watermark, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.expect("a request");
            let head = String::from_utf8_lossy(&head[..read]).into_owned();
            let nonce = head.split("nonce=").nth(1).and_then(|rest| rest.split(' ').next()).expect("a nonce");
            let _ = stream.write_all(&answer(nonce)).await;
            // What follows is for a client that waits.
            let _ = stream.read(&mut [0]).await;
        });
        let result = ask(address, &peppers(1)).await;
        server.abort();
        result
    }

    fn response(body: &str, mac: &str) -> Vec<u8> {
        let length = body.len();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{MAC_HEADER}: {mac}\r\n\r\n{body}")
            .into_bytes()
    }

    #[tokio::test]
    async fn only_who_has_the_pepper_answers_and_only_this_question() {
        let body = serde_json::to_string(&Watermark::default()).expect("JSON");
        let signed = |by: u8, nonce: &str, body: &str| {
            statement::sign(&peppers(by), nonce, body.as_bytes()).expect("a MAC")
        };
        let honest = body.clone();
        let answer = asked(move |nonce| response(&honest, &signed(1, nonce, &honest))).await;
        assert_eq!(answer.expect("an answer"), Watermark::default());
        let forged = body.clone();
        let answer = asked(move |nonce| response(&forged, &signed(2, nonce, &forged))).await;
        assert!(matches!(answer, Err(Error::NotAuthentic)), "{answer:?}");
        let replayed = body.clone();
        let answer = asked(move |_| response(&replayed, &signed(1, "earlier", &replayed))).await;
        assert!(matches!(answer, Err(Error::NotAuthentic)), "{answer:?}");
        let answer = asked(move |_| response(&body, "")).await;
        assert!(matches!(answer, Err(Error::NotAuthentic)), "{answer:?}");
    }

    #[tokio::test]
    async fn garbage_floods_and_silence_are_no_answer() {
        let answer = asked(|_| b"garbage\r\n\r\n".to_vec()).await;
        assert!(matches!(answer, Err(Error::Http(_))), "{answer:?}");
        let answer =
            asked(|_| b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
        assert!(matches!(answer, Err(Error::Status(_))), "{answer:?}");
        let flood = "x".repeat(2 * MAX_BYTES);
        let answer = asked(move |_| response(&flood, "mac")).await;
        assert!(matches!(answer, Err(Error::Body)), "{answer:?}");
        let garbled =
            asked(|nonce| response("{}", &statement::sign(&peppers(1), nonce, b"{}").expect("a MAC")));
        assert!(matches!(garbled.await, Err(Error::Json(_))));
        let answer = asked(|_| Vec::new()).await;
        assert!(matches!(answer, Err(Error::TimedOut)), "{answer:?}");
        let closed =
            TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
        let answer = ask(closed, &peppers(1)).await;
        assert!(matches!(answer, Err(Error::Refused)), "{answer:?}");
    }
}
