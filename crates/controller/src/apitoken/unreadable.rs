//! Reports an ApiToken that can't be read where its users look: in its conditions.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use tracing::warn;

use super::error::Error;
use crate::context::Context;
use crate::objects::{TokenKey, params};
use crate::workqueue::Next;
use tokenward_core::crd::ApiToken;
use tokenward_core::lifecycle::describe_unreadable;
use tokenward_runtime::cluster::error::is_not_found;

/// Writes the conditions, unless they are there. `error`: why the object can't be read.
pub(crate) async fn report(key: &TokenKey, error: &str, context: &Context) -> Result<Next, Error> {
    let TokenKey { namespace, name, uid } = key;
    let kind = ApiResource::erase::<ApiToken>(&());
    let api = Api::<DynamicObject>::namespaced_with(context.client.clone(), namespace, &kind);
    let mut object = match api.get(name).await {
        Ok(object) if object.metadata.uid.as_ref() == Some(uid) => object,
        Ok(_) => return Ok(Next::OnChange),
        Err(error) if is_not_found(&error) => return Ok(Next::OnChange),
        Err(error) => return Err(Error::ReadToken(error)),
    };
    let before = object.data["status"]["conditions"].take();
    let before: Vec<Condition> = serde_json::from_value(before).unwrap_or_default();
    let generation = object.metadata.generation;
    let (conditions, phase) = describe_unreadable(&before, generation, error, Timestamp::now());
    if conditions == before {
        return Ok(Next::OnChange);
    }
    warn!(namespace, name, error, "an ApiToken can't be read, so nothing is done for it");
    context.metrics.failed("unreadable");
    if !context.may_write() {
        return Ok(Next::OnChange);
    }
    if !object.data["status"].is_object() {
        object.data["status"] = json!({});
    }
    object.data["status"]["conditions"] = json!(conditions);
    object.data["status"]["phase"] = json!(phase);
    object.data["status"]["observedGeneration"] = generation.map_or(Value::Null, Value::from);
    api.replace_status(name, &params(), &object).await.map_err(Error::WriteStatus)?;
    context.metrics.status_writes.inc();
    Ok(Next::OnChange)
}
