//! What stands between a gateway and its verifier: passes bytes on, and counts connections and bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A relay. It ends, and its connections with it, when it is dropped.
pub struct Relay {
    pub address: SocketAddr,
    count: Arc<Count>,
    task: JoinHandle<()>,
}

/// What the gateway has done so far.
#[derive(Default)]
struct Count {
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl Relay {
    /// Opens one in front of `target`.
    pub async fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let count = Arc::<Count>::default();
        let counted = count.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(pass(stream, target, counted.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, count, task }
    }

    /// How many connections the gateway has opened.
    pub fn connections(&self) -> u64 {
        self.count.connections.load(Ordering::Relaxed)
    }

    /// How many bytes it has sent to the verifier.
    pub fn bytes(&self) -> u64 {
        self.count.bytes.load(Ordering::Relaxed)
    }

    /// Refuses connections from now on, and breaks those that there are.
    pub async fn close(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(gateway: TcpStream, target: SocketAddr, count: Arc<Count>) -> std::io::Result<()> {
    let verifier = TcpStream::connect(target).await?;
    for stream in [&gateway, &verifier] {
        stream.set_nodelay(true)?;
    }
    let (mut from_gateway, mut to_gateway) = gateway.into_split();
    let (mut from_verifier, mut to_verifier) = verifier.into_split();
    let asked = async {
        let mut buffer = [0; 16 << 10];
        loop {
            let read = from_gateway.read(&mut buffer).await?;
            if read == 0 {
                return to_verifier.shutdown().await;
            }
            count.bytes.fetch_add(read as u64, Ordering::Relaxed);
            to_verifier.write_all(&buffer[..read]).await?;
        }
    };
    let answered = async {
        copy(&mut from_verifier, &mut to_gateway).await?;
        to_gateway.shutdown().await
    };
    tokio::try_join!(asked, answered).map(drop)
}
