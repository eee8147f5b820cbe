//! A receiver on loopback: it logs every request, and responds as a test configures it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use testkit::eventually;

/// A request that was received.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub path: String,
    pub id: String,
    pub signatures: Vec<String>,
    pub timestamp: String,
    pub body: Vec<u8>,
    /// The status of the response; 0 for none.
    pub status: u16,
}

impl Delivery {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub fn type_(&self) -> String {
        self.json()["type"].as_str().expect("a type").to_owned()
    }

    pub fn token(&self) -> String {
        self.json()["data"]["name"].as_str().unwrap_or_default().to_owned()
    }

    /// Its expected signature under a key, by the Standard Webhooks specification.
    pub fn sign(&self, key: &str) -> String {
        let key = STANDARD.decode(key.strip_prefix("whsec_").expect("a key")).expect("base64");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("a key");
        mac.update(format!("{}.{}.", self.id, self.timestamp).as_bytes());
        mac.update(&self.body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// How to respond to a request.
#[derive(Clone, Debug)]
pub enum Answer {
    Status(u16),
    With(u16, &'static str, String),
    /// No response, for as long as the sender waits.
    Hang,
}

type Behaviour = Arc<dyn Fn(&Delivery, usize) -> Answer + Send + Sync>;

/// The receiver. It has the same port when it is reopened after [`Receiver::close`].
pub struct Receiver {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Delivery>>>,
    behaviour: Arc<Mutex<Behaviour>>,
    server: Mutex<JoinSet<()>>,
}

impl Receiver {
    /// Starts one that accepts everything.
    pub async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let receiver = Self {
            address: listener.local_addr().expect("an address"),
            log: Arc::default(),
            behaviour: Arc::new(Mutex::new(Arc::new(|_, _| Answer::Status(204)))),
            server: Mutex::default(),
        };
        receiver.serve(listener);
        receiver
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Sets how to respond from now on, by the request and how many came before it.
    pub fn behave(&self, behaviour: impl Fn(&Delivery, usize) -> Answer + Send + Sync + 'static) {
        *self.behaviour.lock().expect("a lock") = Arc::new(behaviour);
    }

    /// Responds to every request with this status.
    pub fn answer(&self, status: u16) {
        self.behave(move |_, _| Answer::Status(status));
    }

    /// Refuses connections from now on, and breaks open ones.
    pub async fn close(&self) {
        let mut server = std::mem::take(&mut *self.server.lock().expect("a lock"));
        server.shutdown().await;
    }

    /// Listens again, at the same address.
    pub async fn reopen(&self) {
        let listener = eventually("the port again", async || {
            TcpListener::bind(self.address).await.map_err(|error| error.to_string())
        })
        .await;
        self.serve(listener);
    }

    pub fn log(&self) -> Vec<Delivery> {
        self.log.lock().expect("a lock").clone()
    }

    /// The requests that were accepted, with 2xx.
    pub fn accepted(&self) -> Vec<Delivery> {
        self.log().into_iter().filter(|delivery| (200..300).contains(&delivery.status)).collect()
    }

    /// The types of the events of a token that were accepted, in the order of their first acceptance.
    pub fn received(&self, token: &str) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let of_token = self.accepted().into_iter().filter(|delivery| delivery.token() == token);
        of_token
            .filter(|delivery| seen.insert(delivery.id.clone()))
            .map(|delivery| delivery.type_())
            .collect()
    }

    /// Waits until exactly these events of a token were accepted, in this order.
    pub async fn until_received(&self, token: &str, types: &[&str]) {
        eventually(&format!("{types:?} of {token}"), async || {
            let received = self.received(token);
            if received == types { Ok(()) } else { Err(format!("{received:?}")) }
        })
        .await;
    }

    /// Waits until the log meets a condition.
    pub async fn until(&self, what: &str, wanted: impl Fn(&[Delivery]) -> bool) {
        eventually(what, async || {
            let log = self.log();
            let shown = || log.iter().map(|d| (d.token(), d.type_(), d.status)).collect::<Vec<_>>();
            if wanted(&log) { Ok(()) } else { Err(format!("{:?}", shown())) }
        })
        .await;
    }

    fn serve(&self, listener: TcpListener) {
        let (log, behaviour) = (self.log.clone(), self.behaviour.clone());
        self.server.lock().expect("a lock").spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(connection(stream, log.clone(), behaviour.clone()));
            }
        });
    }
}

async fn connection(stream: TcpStream, log: Arc<Mutex<Vec<Delivery>>>, behaviour: Arc<Mutex<Behaviour>>) {
    let service = service_fn(move |request| receive(request, log.clone(), behaviour.clone()));
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn receive(
    request: Request<Incoming>,
    log: Arc<Mutex<Vec<Delivery>>>,
    behaviour: Arc<Mutex<Behaviour>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let text = |headers: &HeaderMap, name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).expect("a header").to_owned()
    };
    let mut delivery = Delivery {
        path: head.uri.path().to_owned(),
        id: text(&head.headers, "webhook-id"),
        signatures: text(&head.headers, "webhook-signature").split(' ').map(str::to_owned).collect(),
        timestamp: text(&head.headers, "webhook-timestamp"),
        body: body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default(),
        status: 0,
    };
    let count = log.lock().expect("a lock").len();
    let behaviour = behaviour.lock().expect("a lock").clone();
    let (status, header) = match behaviour(&delivery, count) {
        Answer::Status(status) => (status, None),
        Answer::With(status, name, value) => (status, Some((name, value))),
        Answer::Hang => {
            log.lock().expect("a lock").push(delivery);
            return std::future::pending().await;
        }
    };
    delivery.status = status;
    log.lock().expect("a lock").push(delivery);
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    if let Some((name, value)) = header {
        answer.headers_mut().insert(name, value.parse().expect("a value"));
    }
    Ok(answer)
}
