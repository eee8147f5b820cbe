//! A relay between a gateway and its verifier, which forwards bytes, and counts connections and bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Ends, with its connections, when it is dropped.
pub struct Relay {
    pub address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

/// Counts of what the gateway has done so far, and whether the relay hangs.
#[derive(Default)]
struct State {
    connections: AtomicU64,
    bytes: AtomicU64,
    hangs: AtomicBool,
}

impl Relay {
    /// Starts one in front of `target`.
    pub async fn open(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::<State>::default();
        let counted = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counted.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(pass(stream, target, counted.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, state, task }
    }

    /// How many connections the gateway has opened.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// How many bytes it has sent to the verifier.
    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(Ordering::Relaxed)
    }

    /// From now on, accepts connections and forwards nothing.
    pub fn hang(&self) {
        self.state.hangs.store(true, Ordering::Relaxed);
    }

    /// Refuses connections from now on, and breaks open ones.
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

async fn pass(gateway: TcpStream, target: SocketAddr, state: Arc<State>) -> std::io::Result<()> {
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
            state.bytes.fetch_add(read as u64, Ordering::Relaxed);
            if state.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            to_verifier.write_all(&buffer[..read]).await?;
        }
    };
    let answered = async {
        copy(&mut from_verifier, &mut to_gateway).await?;
        to_gateway.shutdown().await
    };
    tokio::try_join!(asked, answered).map(drop)
}
