//! A connection of HTTP/1.1 that is driven by who waits on it.
//!
//! hyper parts a connection into a handle and the future that does its work, most often in a task of its own. Here who
//! makes a request drives that future meanwhile, so that an event changes no task and no thread. Between two requests
//! nothing polls it: whether the server has closed it is checked before the next request.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::Fuse;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};

use super::connect::Stream;

/// The largest response head, in bytes.
const HEAD_BOUND: usize = 32 * 1024;

type Body = Full<Bytes>;
type Driver = Pin<Box<Fuse<http1::Connection<Stream, Body>>>>;

/// One connection, for one request at a time.
pub struct Connection {
    sender: SendRequest<Body>,
    driver: Driver,
    used: Instant,
}

impl Connection {
    /// Speaks HTTP over a stream.
    pub async fn over(stream: Stream) -> hyper::Result<Self> {
        let (sender, driver) = http1::Builder::new().max_buf_size(HEAD_BOUND).handshake(stream).await?;
        Ok(Self { sender, driver: Box::pin(driver.fuse()), used: Instant::now() })
    }

    /// For how long it has not been used.
    pub fn idle(&self) -> Duration {
        self.used.elapsed()
    }

    /// Whether the server has left it open.
    pub fn is_open(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        self.driver.as_mut().poll(&mut nobody).is_pending() && self.sender.is_ready()
    }

    /// Makes a request and waits for the response head. A request that was not sent at all comes back in the error.
    pub async fn request(
        &mut self,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        drive(&mut self.driver, self.sender.try_send_request(request)).await
    }

    /// Reads the response body to its end, or to a bound. Returns whether another request may follow.
    pub async fn finish(&mut self, answer: Response<Incoming>, bound: usize) -> bool {
        let mut body = answer.into_body();
        let mut read = 0;
        while let Some(frame) = drive(&mut self.driver, body.frame()).await {
            let Ok(frame) = frame else { return false };
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > bound {
                return false;
            }
        }
        self.used = Instant::now();
        drive(&mut self.driver, self.sender.ready()).await.is_ok()
    }
}

/// Waits for something that comes over a connection, and has the connection work.
async fn drive<T>(driver: &mut Driver, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        // What it has to say of its end, the work is told too.
        let _ = driver.as_mut().poll(cx);
        work.as_mut().poll(cx)
    })
    .await
}
