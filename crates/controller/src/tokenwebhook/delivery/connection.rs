//! An HTTP/1.1 connection that is driven by the task that makes a request.
//!
//! hyper splits a connection into a handle and a future that does the I/O, which usually runs in a task of its own.
//! Here the caller polls that future while it waits for the response, so that sending an event does not involve another
//! task or thread. Between two requests nothing polls it: whether the server has closed the connection is checked
//! before the next request.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::Fuse;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connect::Stream;

/// The largest response head, in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;

type Body = Full<Bytes>;
type Driver = Pin<Box<Fuse<http1::Connection<TokioIo<Monitored>, Body>>>>;

/// One connection, for one request at a time.
pub struct Connection {
    sender: SendRequest<Body>,
    driver: Driver,
    /// Whether anything was received since the request began.
    received: Arc<AtomicBool>,
    used: Instant,
}

/// Why a request has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The connection was closed before any of the request was sent.
    NotSent,
    /// The connection ended before the first byte of a response.
    NoResponse,
    /// What was received is not a complete HTTP response head.
    InvalidResponse,
}

impl Connection {
    /// Prepares a stream for HTTP. Nothing is sent yet.
    pub async fn over(stream: Stream) -> hyper::Result<Self> {
        let received = Arc::<AtomicBool>::default();
        let stream = TokioIo::new(Monitored { stream, received: received.clone() });
        let (sender, driver) = http1::Builder::new().max_buf_size(MAX_HEAD_BYTES).handshake(stream).await?;
        Ok(Self { sender, driver: Box::pin(driver.fuse()), received, used: Instant::now() })
    }

    /// For how long it has not been used.
    pub fn idle(&self) -> Duration {
        self.used.elapsed()
    }

    /// Whether the server has left it open, as far as the process knows by now.
    pub fn is_open(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        self.driver.as_mut().poll(&mut nobody).is_pending() && self.sender.is_ready()
    }

    /// Makes a request and waits for the response head.
    pub async fn request(&mut self, request: Request<Body>) -> Result<Response<Incoming>, RequestError> {
        self.received.store(false, Ordering::Relaxed);
        let response = drive(&mut self.driver, self.sender.try_send_request(request)).await;
        response.map_err(|mut error| match (error.take_message(), self.received.load(Ordering::Relaxed)) {
            (Some(_), _) => RequestError::NotSent,
            (None, false) => RequestError::NoResponse,
            (None, true) => RequestError::InvalidResponse,
        })
    }

    /// Reads the response body up to its end, or until more than `max_bytes` were read. Returns whether another request
    /// may follow.
    pub async fn finish(&mut self, response: Response<Incoming>, max_bytes: usize) -> bool {
        let mut body = response.into_body();
        let mut read = 0;
        while let Some(frame) = drive(&mut self.driver, body.frame()).await {
            let Ok(frame) = frame else { return false };
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > max_bytes {
                return false;
            }
        }
        self.used = Instant::now();
        drive(&mut self.driver, self.sender.ready()).await.is_ok()
    }
}

/// Awaits a future that depends on the connection, and drives the connection meanwhile.
async fn drive<T>(driver: &mut Driver, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        // If the connection ends with an error, `work` ends with it too.
        let _ = driver.as_mut().poll(cx);
        work.as_mut().poll(cx)
    })
    .await
}

/// A stream that notes when something is received. hyper reports a connection that ends before a response in the same
/// way as one that ends within it.
struct Monitored {
    stream: Stream,
    received: Arc<AtomicBool>,
}

impl AsyncRead for Monitored {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.received.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Monitored {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
