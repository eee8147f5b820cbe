//! A connection to where the addresses were judged: a name is resolved once, every address it has is judged, and the
//! socket is opened to one of just those. No second look-up lies between, so a DNS answer that changes afterwards
//! changes nothing (DNS rebinding). No proxy is asked, whatever the environment says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use tokenward_core::outbox::destination::{AddressError, AddressPolicy};

/// What resolves a name.
pub type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// The system's resolver.
pub fn system() -> Resolve {
    Arc::new(|host, port| Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) }))
}

/// Opens connections.
pub struct Connector {
    policy: Arc<AddressPolicy>,
    tls: Arc<ClientConfig>,
    resolve: Resolve,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// No host or scheme that can be asked.
    #[error("the URL names no host that can be asked")]
    Url,
    /// The name has no address.
    #[error("the host's name can't be resolved: {0}")]
    Resolve(io::Error),
    /// One of its addresses may not be asked.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nothing listens there, or the network drops the request.
    #[error("the connection failed: {0}")]
    Connect(io::Error),
    /// TLS failed; most often the certificate.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
}

impl Connector {
    /// Connections that this policy allows.
    pub fn new(policy: Arc<AddressPolicy>, tls: Arc<ClientConfig>, resolve: Resolve) -> Self {
        Self { policy, tls, resolve }
    }

    /// Opens a stream to the host that a URL names.
    pub async fn connect(&self, uri: &Uri) -> Result<Stream, ConnectError> {
        let host = uri.host().ok_or(ConnectError::Url)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(ConnectError::Url),
        };
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let stream = open(&self.judged(&host, port).await?).await?;
        if !encrypted {
            return Ok(Stream::Plain(TokioIo::new(stream)));
        }
        let name = ServerName::try_from(host).map_err(|_| ConnectError::Url)?;
        let stream =
            TlsConnector::from(self.tls.clone()).connect(name, stream).await.map_err(ConnectError::Tls)?;
        Ok(Stream::Tls(Box::new(TokioIo::new(stream))))
    }

    /// The addresses of a host. If one of them may not be asked, none is: a name that points inside as well as outside
    /// is no honest one.
    async fn judged(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => (self.resolve)(host.to_owned(), port).await.map_err(ConnectError::Resolve)?,
        };
        for address in &addresses {
            self.policy.judge(address.ip())?;
        }
        Ok(addresses)
    }
}

/// A socket to the first address that accepts a connection.
async fn open(addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A request is one small write whose response is awaited.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(ConnectError::Connect(last))
}

/// A stream of bytes, encrypted or not.
pub enum Stream {
    /// Not.
    Plain(TokioIo<TcpStream>),
    /// Encrypted.
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
