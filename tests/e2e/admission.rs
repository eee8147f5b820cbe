//! Admission from within: the API server calls a controller's pod, through its Service and with the certificate that
//! the controller has generated and written into the caBundle.

use serde_json::json;

use crate::stage::Stage;
use testkit::eventually;

pub async fn the_api_server_asks_through_the_service(stage: &Stage) {
    let space = stage.site.namespace("admission").await;
    space.active("first", json!({"scopes": ["orders:read"]})).await;
    // By default nothing is denied while no controller answers, so only a review can deny it.
    let spec = json!({"scopes": ["orders:read"], "secret": {"name": "first"}});
    let refusal = eventually("a refusal", async || match space.try_create("second", spec.clone()).await {
        Err(message) => Ok(message),
        Ok(_) => {
            space.delete("second").await;
            Err("it was stored".to_owned())
        }
    })
    .await;
    assert!(
        refusal.contains("admission webhook \"apitokens.tokenward.dev\" denied the request"),
        "{refusal}"
    );
    assert!(refusal.contains("first"), "{refusal}");
}
