//! The socket below HTTP and TLS: it counts what is read, and closes so that the last answer arrives.

use std::io::{ErrorKind, Result};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connections::Place;
use super::progress::{Progress, Signal};

/// How long, and how much, is read on after a connection was refused.
const LINGER: Duration = Duration::from_secs(1);
const MAX_LINGER: usize = 2 * 1024 * 1024;

/// An accepted connection.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    progress: Arc<Progress>,
    /// The client has closed its side.
    ended: bool,
    /// Taken when the socket is dropped.
    place: Option<Place>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, place: Place, progress: Arc<Progress>) -> Self {
        Self { stream, progress, ended: false, place: Some(place) }
    }

    /// Its first byte, which stays there to be read. `None`: the client has closed before.
    pub(super) async fn first_byte(&self) -> Result<Option<u8>> {
        let mut byte = [0];
        Ok((self.stream.peek(&mut byte).await? == 1).then_some(byte[0]))
    }
}

/// hyper drops a connection as soon as it has refused a request. If the client still sends then, the kernel
/// resets the connection, and the client never sees why it was turned away: so read on for a moment, on the same
/// place among the open connections. A connection that was asked to close gets no more time.
impl Drop for Socket {
    fn drop(&mut self) {
        if self.ended || self.progress.is_told(Signal::Close) {
            return;
        }
        if let (Ok(runtime), Ok(fd)) =
            (tokio::runtime::Handle::try_current(), self.stream.as_fd().try_clone_to_owned())
        {
            let (progress, place) = (self.progress.clone(), self.place.take());
            runtime.spawn(async move {
                let _place = place;
                progress.is_mine().await;
                let read_on = tokio::time::timeout(LINGER, linger(fd.into()));
                progress.unless(Signal::Close, read_on).await
            });
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
