//! A plain client: it makes the writes of a [`History`](super::history::History) again, on other objects, and nothing else. It has
//! the controller's rights, and as many requests under way.

use http::Request;
use http::request::Builder;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokenward_core::crd::ApiToken;

use super::history::Write;

/// How many tokens are written at a time: as many as the controller's work queue runs.
pub const TOKENS_AT_A_TIME: usize = 64;
/// How many Events are: as many as the controller's recorder writes.
pub const EVENTS_AT_A_TIME: usize = 4;
/// The field manager of the controller's writes, but for Events.
const MANAGER: &str = "fieldManager=tokenward";

/// What a token is written by.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

/// What the response to a write is read for.
#[derive(Deserialize)]
struct Stored {
    metadata: Identity,
}

/// An ApiToken with a status that was written before.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Token<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Value,
    spec: &'a Value,
    status: &'a RawValue,
}

/// The client, for the tokens of one namespace.
pub struct Plain {
    client: Client,
    namespace: String,
    /// That of each token.
    spec: Value,
}

impl Plain {
    /// The client, with all of its connections, as the controller has them.
    pub async fn connect(client: Client, namespace: &str, spec: &Value) -> anyhow::Result<Self> {
        let tokens: Api<ApiToken> = Api::namespaced(client.clone(), namespace);
        let params = ListParams::default().limit(1);
        let lists = (0..TOKENS_AT_A_TIME + EVENTS_AT_A_TIME).map(|_| tokens.list_metadata(&params));
        futures::future::try_join_all(lists).await?;
        Ok(Self { client, namespace: namespace.to_owned(), spec: spec.clone() })
    }

    /// Makes writes again, one after the other. Returns the token as it is then.
    pub async fn repeat(&self, mut token: Identity, writes: &[Write]) -> anyhow::Result<Identity> {
        let secrets = format!("/api/v1/namespaces/{}/secrets", self.namespace);
        for write in writes {
            match write {
                Write::Status(status) => token = self.write_status(&token, status).await?,
                Write::CreateSecret(secret) => {
                    let body = self.secret(secret, &token, None)?;
                    self.send(Request::post(format!("{secrets}?{MANAGER}")), &body).await?;
                }
                Write::ReplaceSecret(secret) => {
                    // As the controller does, which has no data in its cache.
                    let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
                    let before = api.get(&token.name).await?;
                    let body = self.secret(secret, &token, before.metadata.resource_version)?;
                    self.send(Request::put(format!("{secrets}/{}?{MANAGER}", token.name)), &body).await?;
                }
            }
        }
        Ok(token)
    }

    async fn write_status(&self, token: &Identity, status: &RawValue) -> anyhow::Result<Identity> {
        let Identity { name, uid, resource_version } = token;
        let namespace = &self.namespace;
        let body = Token {
            api_version: "tokenward.dev/v1alpha1",
            kind: "ApiToken",
            metadata: json!({"name": name, "namespace": namespace, "uid": uid, "resourceVersion": resource_version}),
            spec: &self.spec,
            status,
        };
        let path = format!("/apis/tokenward.dev/v1alpha1/namespaces/{namespace}/apitokens/{name}/status");
        self.send(Request::put(format!("{path}?{MANAGER}")), &body).await
    }

    /// A Secret that was written before, as that of another token.
    fn secret(&self, secret: &RawValue, token: &Identity, version: Option<String>) -> anyhow::Result<Value> {
        let mut secret: Value = serde_json::from_str(secret.get())?;
        let metadata = &mut secret["metadata"];
        metadata["name"] = token.name.clone().into();
        metadata["namespace"] = self.namespace.clone().into();
        // With the uid of another object it would be garbage.
        metadata["ownerReferences"][0]["uid"] = token.uid.clone().into();
        metadata["resourceVersion"] = version.into();
        Ok(secret)
    }

    /// Creates an Event like one of another namespace.
    pub async fn create_event(&self, event: &RawValue, token: &Identity) -> anyhow::Result<()> {
        let mut event: Value = serde_json::from_str(event.get())?;
        event["metadata"] = json!({"name": event["metadata"]["name"], "namespace": self.namespace});
        let regarding = &mut event["regarding"];
        regarding["namespace"] = self.namespace.clone().into();
        regarding["uid"] = token.uid.clone().into();
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace);
        self.send(Request::post(path), &event).await.map(drop)
    }

    async fn send(&self, request: Builder, body: &impl Serialize) -> anyhow::Result<Identity> {
        let request = request.header("content-type", "application/json").body(serde_json::to_vec(body)?)?;
        Ok(self.client.request::<Stored>(request).await?.metadata)
    }
}
