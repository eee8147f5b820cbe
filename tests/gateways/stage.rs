//! What checks share: a cluster with tokens, and for each gateway a verifier, a relay and an upstream.

use futures::future::join_all;
use serde_json::json;
use tokenward_core::crd::ApiToken;

use crate::curl::{Curl, Reply};
use crate::gateway::{Gateway, Running};
use crate::relay::Relay;
use crate::upstream::Upstream;
use testkit::{Process, Site, Space, eventually};

/// A cluster with a controller and some tokens.
pub struct Shared {
    pub space: Space,
    /// Allowed at the route `/orders/`.
    pub orders: Token,
    /// Allowed at `/orders/` and `/admin/`.
    pub admin: Token,
    /// Allowed at `/orders/`, from 127.0.0.2 only.
    pub placed: Token,
    _controller: Process,
    // Last, so that it is dropped after what uses it.
    site: Site,
}

/// A token with its identity.
pub struct Token {
    pub secret: String,
    pub id: String,
    pub subject: String,
    pub scopes: &'static str,
}

/// A gateway between curl and an upstream, with its verifier.
pub struct Stage {
    pub gateway: Running,
    pub kind: &'static Gateway,
    pub relay: Relay,
    pub upstream: Upstream,
    pub verifier: Process,
}

impl Shared {
    pub async fn start() -> Self {
        let site = Site::start().await;
        let controller = site.controller(&[]).ready().await;
        let space = site.namespace("shop").await;
        let specs = [
            ("orders", "orders:read", json!({"scopes": ["orders:read"]})),
            ("admin", "orders:read admin:write", json!({"scopes": ["orders:read", "admin:write"]})),
            (
                "placed",
                "orders:read",
                json!({"scopes": ["orders:read"], "constraints": {"cidrs": ["127.0.0.2/32"]}}),
            ),
        ];
        let tokens = join_all(specs.map(async |(name, scopes, spec)| {
            let secret = space.active(name, spec).await;
            Token {
                secret,
                id: id(&space.get(name).await),
                subject: format!("{}/{name}", space.name),
                scopes,
            }
        }))
        .await;
        let [orders, admin, placed] = tokens.try_into().unwrap_or_else(|_| panic!("three tokens"));
        Self { space, orders, admin, placed, _controller: controller, site }
    }
}

fn id(token: &ApiToken) -> String {
    token.status.as_ref().and_then(|status| status.token_id.clone()).expect("a token id")
}

impl Stage {
    pub async fn start(shared: &Shared, kind: &'static Gateway) -> Self {
        let verifier = shared.site.verifier(&["--trusted-proxies", "127.0.0.1/32"]).ready().await;
        let (relay, upstream) = (Relay::open((kind.endpoint)(&verifier)).await, Upstream::open().await);
        let gateway = kind.start(relay.address, upstream.address);
        let mut stage = Self { gateway, kind, relay, upstream, verifier };
        eventually(kind.name, async || {
            assert!(stage.gateway.runs(), "{} has ended: {}", kind.name, stage.gateway.log());
            // Some listen before they have loaded their routes.
            match stage.curl("/orders/").bearer(&shared.orders.secret).send() {
                Reply { status: 200, .. } => Ok(()),
                reply => Err(format!("{reply:?}; {}", stage.gateway.log())),
            }
        })
        .await;
        stage
    }

    /// Builds a request to the gateway.
    pub fn curl(&self, path: &str) -> Curl {
        Curl::new(&format!("http://{}{path}", self.gateway.address))
    }
}
