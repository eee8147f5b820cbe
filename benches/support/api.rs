//! A fake API server on loopback with what a verifier reads: pages of ApiTokens, the pepper's Secret, and watches, of which
//! that of ClusterTokenLocks has events. It feeds the real decoding path with more objects than fit into etcd on a small
//! machine.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::stream;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokenward_core::token::Peppers;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::broadcast;

use super::tokens::{self, Labels};

/// How often each watch has a bookmark, without which verifiers would take it for dead and list all again.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);
/// An API server sends one so long before a watch times out.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
const GROUP: &str = "tokenward.dev/v1alpha1";
/// Before the first lock is created.
const FIRST_LOCK: Timestamp = Timestamp::constant(1_793_577_600, 0);

/// A fake API server with a number of ApiTokens. It ends when it is dropped.
pub struct Api {
    address: SocketAddr,
    kubeconfig: PathBuf,
    state: Arc<State>,
    _runtime: Runtime,
}

struct State {
    tokens: u64,
    labels: Labels,
    peppers: Peppers,
    locks: Mutex<Locks>,
    lock_events: broadcast::Sender<Bytes>,
}

/// The ClusterTokenLocks.
struct Locks {
    /// By name.
    objects: BTreeMap<String, Value>,
    /// The last resourceVersion that was given.
    version: u64,
}

impl Api {
    pub fn start(tokens: u64, labels: Labels, folder: &Path) -> anyhow::Result<Self> {
        let state = Arc::new(State {
            tokens,
            labels,
            peppers: Peppers::from_data(&tokens::pepper())?,
            // Something else has happened since the last token was made, as always in a cluster.
            locks: Mutex::new(Locks { objects: BTreeMap::new(), version: tokens + 1 }),
            lock_events: broadcast::channel(1024).0,
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        runtime.spawn(serve(listener, state.clone()));
        let kubeconfig = folder.join(format!("kubeconfig-{}", address.port()));
        write_kubeconfig(&kubeconfig, address)?;
        Ok(Self { address, kubeconfig, state, _runtime: runtime })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// How many ApiTokens it has.
    pub fn tokens(&self) -> u64 {
        self.state.tokens
    }

    /// How many watches of ClusterTokenLocks there are.
    pub fn lock_watches(&self) -> usize {
        self.state.lock_events.receiver_count()
    }

    /// Creates a ClusterTokenLock that suspends: younger than every token, and than every lock before. Returns when it was
    /// about to be sent.
    pub fn create_lock(&self, name: &str, matches: &Value) -> Instant {
        let mut locks = self.state.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.version += 1;
        let age = i64::try_from(locks.version - self.state.tokens).unwrap_or(i64::MAX);
        let created = FIRST_LOCK.saturating_add(SignedDuration::from_secs(age)).unwrap_or(FIRST_LOCK);
        let object = json!({
            "apiVersion": GROUP, "kind": "ClusterTokenLock",
            "metadata": {
                "name": name, "uid": format!("uid-of-{name}"), "generation": 1,
                "resourceVersion": locks.version.to_string(),
                "creationTimestamp": created.to_string(),
            },
            "spec": {"match": matches, "action": "Suspend"},
        });
        locks.objects.insert(name.to_owned(), object.clone());
        self.send("ADDED", &object)
    }

    /// Deletes one.
    pub fn delete_lock(&self, name: &str) {
        let mut locks = self.state.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.version += 1;
        if let Some(mut object) = locks.objects.remove(name) {
            object["metadata"]["resourceVersion"] = locks.version.to_string().into();
            self.send("DELETED", &object);
        }
    }

    fn send(&self, type_: &str, object: &Value) -> Instant {
        let line = format!("{}\n", json!({"type": type_, "object": object}));
        let sent = Instant::now();
        // It fails only where nobody watches.
        let _ = self.state.lock_events.send(line.into());
        sent
    }
}

fn write_kubeconfig(path: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench", "namespace": "tokenward"}}],
    });
    std::fs::write(path, config.to_string()).with_context(|| format!("{} can't be written", path.display()))
}

async fn serve(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        // An event is sent at once.
        let _ = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let answer = answer(request.uri().path(), request.uri().query().unwrap_or_default(), &state);
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

type ResponseBody = UnsyncBoxBody<Bytes, Infallible>;

fn answer(path: &str, query: &str, state: &Arc<State>) -> Response<ResponseBody> {
    let parameter = |name: &str| query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    let is_watch = parameter("watch") == Some("true");
    let body = match path.rsplit('/').next() {
        Some("apitokens") if is_watch => {
            let end = parameter("timeoutSeconds").and_then(|text| text.parse().ok()).map(Duration::from_secs);
            let interval = end.map_or(BOOKMARK_INTERVAL, |end| end.saturating_sub(BOOKMARK_BEFORE_END));
            watch(GROUP, "ApiToken", None, interval.min(BOOKMARK_INTERVAL), state)
        }
        Some("tokenlocks") if is_watch => watch(GROUP, "TokenLock", None, BOOKMARK_INTERVAL, state),
        Some("secrets") if is_watch => watch("v1", "Secret", None, BOOKMARK_INTERVAL, state),
        Some("clustertokenlocks") if is_watch => {
            let events = state.lock_events.subscribe();
            watch(GROUP, "ClusterTokenLock", Some(events), BOOKMARK_INTERVAL, state)
        }
        // A verifier that goes on from a checkpoint asks how far the API server is.
        Some("apitokens") if parameter("fieldSelector").is_some() => {
            let locks = state.locks.lock().unwrap_or_else(PoisonError::into_inner);
            full(list("ApiTokenList", locks.version, &[]).to_string())
        }
        Some("apitokens") => {
            let from = parameter("continue").and_then(|text| text.parse().ok()).unwrap_or(0);
            let limit = parameter("limit").and_then(|text| text.parse().ok()).unwrap_or(state.tokens);
            full(page(from, limit, state))
        }
        Some("tokenlocks") => full(list("TokenLockList", state.tokens, &[]).to_string()),
        Some("clustertokenlocks") => {
            let locks = state.locks.lock().unwrap_or_else(PoisonError::into_inner);
            let items: Vec<_> = locks.objects.values().cloned().collect();
            full(list("ClusterTokenLockList", locks.version, &items).to_string())
        }
        Some("secrets") => full(pepper()),
        _ => {
            let mut missing = Response::new(Empty::new().boxed_unsync());
            *missing.status_mut() = http::StatusCode::NOT_FOUND;
            return missing;
        }
    };
    Response::new(body)
}

fn full(text: String) -> ResponseBody {
    Full::from(text).boxed_unsync()
}

fn list(kind: &str, version: u64, items: &[Value]) -> Value {
    json!({"apiVersion": GROUP, "kind": kind, "metadata": {"resourceVersion": version.to_string()}, "items": items})
}

/// A watch that ends with its connection: bookmarks, and the events of a channel.
fn watch(
    api_version: &'static str,
    kind: &'static str,
    events: Option<broadcast::Receiver<Bytes>>,
    bookmark_interval: Duration,
    state: &Arc<State>,
) -> ResponseBody {
    let next = move |(mut events, state): (Option<broadcast::Receiver<Bytes>>, Arc<State>)| async move {
        let event = async {
            match &mut events {
                Some(events) => events.recv().await.ok(),
                None => std::future::pending().await,
            }
        };
        let line = tokio::select! {
            // Whoever misses events is told by the end.
            event = event => event?,
            () = tokio::time::sleep(bookmark_interval) => {
                let version = state.locks.lock().unwrap_or_else(PoisonError::into_inner).version;
                let metadata = json!({"resourceVersion": version.to_string()});
                let object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
                format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
            }
        };
        Some((Ok(Frame::data(line)), (events, state)))
    };
    StreamBody::new(stream::unfold((events, Arc::clone(state)), next)).boxed_unsync()
}

fn page(from: u64, limit: u64, state: &State) -> String {
    let tokens = state.tokens;
    let to = tokens.min(from + limit);
    let items: Vec<_> = (from..to).map(|n| tokens::object(n, state.labels, &state.peppers)).collect();
    let next = if to < tokens { format!(r#","continue":"{to}""#) } else { String::new() };
    format!(
        r#"{{"apiVersion":"{GROUP}","kind":"ApiTokenList","metadata":{{"resourceVersion":"{tokens}"{next}}},"items":[{}]}}"#,
        items.join(",")
    )
}

fn pepper() -> String {
    let data: serde_json::Map<_, _> =
        tokens::pepper().into_iter().map(|(key, value)| (key, STANDARD.encode(value).into())).collect();
    json!({
        "apiVersion": "v1", "kind": "SecretList", "metadata": {"resourceVersion": "1"},
        "items": [{
            "metadata": {"name": "tokenward-pepper", "namespace": "tokenward", "resourceVersion": "1", "uid": "1"},
            "data": data,
        }],
    })
    .to_string()
}
