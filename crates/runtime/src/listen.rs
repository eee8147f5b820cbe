//! Listening sockets, for IPv4 and IPv6 by one address.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::warn;

/// How many connections may wait to be accepted. With the usual 128 a burst overflows the queue, and each client that
/// is dropped waits a second for its next try. The system's own limit (`net.core.somaxconn`) applies, too.
const BACKLOG: u32 = 4096;
/// The pause after a failure to accept a connection, most likely for lack of file descriptors: without it, the loop would
/// use a whole core until one is free.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Listens on the address of a command-line flag, which the error names.
pub fn listen_on(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    listen(address)
        .with_context(|| format!("{flag}: cannot bind to {address}; choose another address or port"))
}

/// Listens on an address. `[::]` stands for all addresses, IPv4 too: the address of an IPv4 client is
/// `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2). Where the machine has no IPv6 it stands for all that there are, so that a
/// manifest is right for every cluster.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let is_all = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match bind(address) {
        Err(error) if is_all && !is_final(&error) => bind((Ipv4Addr::UNSPECIFIED, address.port()).into()),
        bound => bound,
    }
}

/// The next connection and its peer's address, which is IPv4 for an IPv4 client of a socket for both.
///
/// All that is ready on other connections has its turn first. Otherwise a flood of new connections would be accepted by the
/// hundred in between, and each answer would wait for as many first steps.
pub async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    yield_now().await;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // A response is one small write, which Nagle's algorithm would only delay.
                let _ = stream.set_nodelay(true);
                return (stream, peer.ip().to_canonical());
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        // The default is a setting of the system.
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
        socket
    };
    // A restart must not wait for connections of the process before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether IPv4 would fail for the same reason.
fn is_final(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn all_addresses_include_those_of_ipv4() {
        let listener = listen("[::]:0".parse().expect("an address")).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("a connection by IPv4");
        let taken = listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).expect_err("the port is taken");
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn one_address_includes_no_other() {
        let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        assert!(TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2), port)).await.is_err());
    }
}
