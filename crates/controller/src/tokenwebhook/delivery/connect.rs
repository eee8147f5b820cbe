//! Opens a connection to an address that the policy allows.
//!
//! A name is resolved once, all of its addresses are checked, and the socket is opened to one of exactly those. There is
//! no second resolution in between, so a DNS record that changes afterwards has no effect (DNS rebinding). No proxy is
//! used, whatever the environment says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::resolve::Resolve;
use tokenward_core::outbox::destination::{AddressError, AddressPolicy};

pub struct Connector {
    policy: Arc<AddressPolicy>,
    tls: Arc<ClientConfig>,
    resolve: Resolve,
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("the URL names no host that can be asked")]
    Url,
    #[error("the host's name can't be resolved: {0}")]
    Resolve(io::Error),
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nothing listens there, or the network drops the request.
    #[error("the connection failed: {0}")]
    Connect(io::Error),
    /// Most often the certificate is the reason.
    #[error("TLS failed: {0}")]
    Tls(io::Error),
}

impl ConnectError {
    /// The error without what it tells of the host: its addresses, and the names in its certificate.
    pub fn redacted(&self) -> &'static str {
        match self {
            Self::Url => "the URL names no host that can be asked",
            Self::Resolve(_) => "the host's name can't be resolved",
            Self::Address(_) => {
                "the host has an address to which webhooks are not sent; see --webhook-allow-private and \
                 --webhook-allow-cidrs"
            }
            Self::Connect(_) => "the connection failed",
            Self::Tls(_) => "TLS failed; most often the certificate is the reason",
        }
    }
}

impl Connector {
    pub fn new(policy: Arc<AddressPolicy>, tls: Arc<ClientConfig>, resolve: Resolve) -> Self {
        Self { policy, tls, resolve }
    }

    /// Opens a stream to the host of a URL.
    pub async fn connect(&self, uri: &Uri) -> Result<Stream, ConnectError> {
        let host = uri.host().ok_or(ConnectError::Url)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(ConnectError::Url),
        };
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let stream = open(&self.allowed_addresses(&host, port).await?).await?;
        if !encrypted {
            return Ok(Stream::Plain(stream));
        }
        let name = ServerName::try_from(host).map_err(|_| ConnectError::Url)?;
        let stream =
            TlsConnector::from(self.tls.clone()).connect(name, stream).await.map_err(ConnectError::Tls)?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    /// The addresses of a host. If one of them is not allowed, none is used: an honest name does not point to both
    /// internal and public addresses.
    async fn allowed_addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => (self.resolve)(host.to_owned(), port).await.map_err(ConnectError::Resolve)?,
        };
        for address in &addresses {
            self.policy.check(address.ip())?;
        }
        Ok(addresses)
    }
}

/// Opens a socket to the first address that accepts a connection.
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

/// A byte stream, encrypted or not.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
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
