//! The socket below HTTP and TLS. It counts reads, and closes in a way that lets the last response arrive.

use std::io::{ErrorKind, Result};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::yield_now;

use super::connections::Slot;
use super::progress::{Progress, Signal};
use tokenward_runtime::turns::Turns;

/// For how long, and how many bytes, a socket is still read after hyper has dropped it. A second is some round trips, in
/// which the client reads the response and stops; the bytes are what a fast client may have in flight by then.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_LINGER_BYTES: usize = 2 * 1024 * 1024;

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    progress: Arc<Progress>,
    turns: Turns,
    /// The client has closed its side.
    ended: bool,
    /// `None` once the socket is dropped and still read.
    slot: Option<Slot>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, slot: Slot, progress: Arc<Progress>, turns: Turns) -> Self {
        Self { stream, progress, turns, ended: false, slot: Some(slot) }
    }

    /// The first byte, which remains to be read. `None`: the client has closed the connection.
    pub(super) async fn first_byte(&self) -> Result<Option<u8>> {
        let mut byte = [0];
        Ok((self.stream.peek(&mut byte).await? == 1).then_some(byte[0]))
    }
}

/// hyper drops a connection as soon as it has rejected a request. If the client is still sending, the kernel then resets
/// the connection, and the client never sees the response. So the socket is read for a moment longer, and still counts as
/// an open connection. One that was signalled to close gets no more time.
impl Drop for Socket {
    fn drop(&mut self) {
        if self.ended || self.progress.has_received(Signal::Close) {
            return;
        }
        if let (Ok(runtime), Ok(fd)) =
            (tokio::runtime::Handle::try_current(), self.stream.as_fd().try_clone_to_owned())
        {
            let (progress, turns, slot) = (self.progress.clone(), self.turns.clone(), self.slot.take());
            runtime.spawn(async move {
                let _slot = slot;
                progress.register_task().await;
                let lingering = tokio::time::timeout(LINGER_TIMEOUT, linger(fd.into()));
                progress.run_until(Signal::Close, turns.take(|| true, lingering)).await
            });
        }
    }
}

async fn linger(stream: std::net::TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let (mut buffer, mut left) = ([0; 8192], MAX_LINGER_BYTES);
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer) {
            // One read in a turn.
            Ok(read @ 1..) if read < left => {
                left -= read;
                yield_now().await;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.progress.read();
        } else if polled.is_ready() {
            self.ended = true;
        }
        polled
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
