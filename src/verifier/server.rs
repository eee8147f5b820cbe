//! The doors behind a socket: plain HTTP/1.1, on hyper itself.
//!
//! hyper's own header timeout makes a timer for each request and also ends idle connections, which gateways keep
//! on purpose. Here one timer a connection looks now and then: a request head that does not come to an end is
//! cut off, a connection that is merely idle may stay for minutes.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, EXPECT, HeaderValue};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Buf};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::doors::{Answer, Doors};

/// The largest request head. A token has 78 characters; cookies of a forwarded request are what needs room.
const MAX_HEAD: usize = 32 * 1024;
/// Read ahead on one connection.
const MAX_BUFFER: usize = 64 * 1024;
/// How long, and how much, is read on after a connection was refused.
const LINGER: Duration = Duration::from_secs(1);
const MAX_LINGER: usize = 2 * 1024 * 1024;

/// A body up to this size is read and thrown away, so that the connection can go on.
const DRAINED: u64 = 64 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// How long connections may take over things.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a request head to be complete, once its first byte or its connection is there. It is noticed within
    /// one and a half times as much.
    pub head: Duration,
    /// For a connection between two requests.
    pub idle: Duration,
    /// For what is in flight when the process ends.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { head: Duration::from_secs(10), idle: Duration::from_secs(600), drain: Duration::from_secs(10) }
    }
}

/// Serves until `stop`, then finishes what is in flight.
pub async fn serve(
    listener: TcpListener,
    doors: Arc<Doors>,
    patience: Patience,
    stop: impl Future<Output = ()>,
) {
    tokio::pin!(stop);
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // An answer is one small write: waiting for more to send only delays it.
                let _ = stream.set_nodelay(true);
                connection(stream, canonical(peer), Arc::clone(&doors), patience, &graceful);
            }
            Err(error) => {
                // Too many open files, most likely: closing connections needs a moment.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let open = graceful.count();
    if tokio::time::timeout(patience.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(open, "some requests did not end in time");
    }
}

/// An IPv4 client of a dual-stack socket has its IPv4 address.
fn canonical(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

async fn answer<B: Body + Unpin>(doors: &Doors, mut request: Request<B>, peer: IpAddr) -> Answer {
    let mut answer = doors.answer(&mut request, peer).await;
    // What was not read of a body must not be taken for the next request.
    if !request.body().is_end_stream() && !drain(request).await {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// Reads a small body to its end. False: there is more than is worth reading.
async fn drain<B: Body>(request: Request<B>) -> bool {
    // Whoever asks first whether to send it has not sent it.
    if request.headers().contains_key(EXPECT) || request.body().size_hint().lower() > DRAINED {
        return false;
    }
    let mut body = std::pin::pin!(request.into_body());
    let all = async {
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            read += frame.data_ref().map_or(0, |data| data.remaining() as u64);
            if read > DRAINED {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_TIME, all).await.unwrap_or(false)
}

fn connection(
    stream: TcpStream,
    peer: IpAddr,
    doors: Arc<Doors>,
    patience: Patience,
    graceful: &GracefulShutdown,
) {
    let progress = Arc::new(Progress::default());
    let io = TokioIo::new(Counted { stream, progress: Arc::clone(&progress), ended: false });
    // Of this connection alone: a request that counts up what all connections share would slow every core.
    let state = Arc::new((doors, Arc::clone(&progress)));
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move {
            let (doors, progress) = &*state;
            progress.begin();
            let response = answer(doors, request, peer).await;
            progress.end();
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http1::Builder::new();
    // Not pipeline_flush: with it, hyper keeps its own 400 and 431 to itself while more input lies there.
    builder.max_buf_size(MAX_BUFFER).max_header_size(MAX_HEAD).header_read_timeout(None);
    let served = graceful.watch(builder.serve_connection(io, service));
    tokio::spawn(async move {
        tokio::select! {
            // A connection that broke is its client's affair.
            _ = served => {}
            () = progress.stalled(patience) => {}
        }
    });
}

/// What a connection is at, seen from outside.
#[derive(Debug, Default)]
struct Progress {
    /// Reads that brought something.
    reads: AtomicU64,
    /// `reads` when the last request was taken up.
    taken: AtomicU64,
    answers: AtomicU64,
    busy: AtomicBool,
}

impl Progress {
    fn begin(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        self.taken.store(self.reads.load(Ordering::Relaxed), Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.busy.store(false, Ordering::Relaxed);
    }

    /// Returns when the client has had time enough.
    async fn stalled(&self, patience: Patience) {
        let tick = patience.head / 2;
        let (mut answers, mut waiting_for_head, mut idle) = (0, Duration::ZERO, Duration::ZERO);
        loop {
            tokio::time::sleep(tick).await;
            let answered = self.answers.load(Ordering::Relaxed);
            let moved = std::mem::replace(&mut answers, answered) != answered;
            // A request that is being answered has limits of its own.
            if moved || self.busy.load(Ordering::Relaxed) {
                (waiting_for_head, idle) = (Duration::ZERO, Duration::ZERO);
                continue;
            }
            idle += tick;
            // On a new connection a head is awaited from the start.
            let begun = self.reads.load(Ordering::Relaxed) != self.taken.load(Ordering::Relaxed);
            waiting_for_head = if begun || answered == 0 { waiting_for_head + tick } else { Duration::ZERO };
            if waiting_for_head > patience.head || idle >= patience.idle {
                return;
            }
        }
    }
}

/// A stream that counts what is read from it, and that closes so that its last answer arrives.
struct Counted {
    stream: TcpStream,
    progress: Arc<Progress>,
    /// The client has closed its side.
    ended: bool,
}

/// hyper drops a connection as soon as it has refused a request. If the client still sends then, the kernel
/// resets the connection, and the client never sees why it was turned away: so read on for a moment.
impl Drop for Counted {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if let (Ok(runtime), Ok(fd)) =
            (tokio::runtime::Handle::try_current(), self.stream.as_fd().try_clone_to_owned())
        {
            runtime.spawn(tokio::time::timeout(LINGER, linger(fd.into())));
        }
    }
}

async fn linger(stream: std::net::TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let (mut space, mut left) = ([0; 8192], MAX_LINGER);
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut space) {
            Ok(read @ 1..) if read < left => left -= read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.progress.reads.fetch_add(1, Ordering::Relaxed);
        } else if polled.is_ready() {
            self.ended = true;
        }
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
