//! The API server calls the admission webhook in a controller's pod, through its Service, and verifies the certificate
//! that the controller has issued by the caBundle that it has written.

use serde_json::json;

use crate::stage::Stage;
use testkit::eventually;

pub async fn the_api_server_calls_the_webhook_through_the_service(stage: &Stage) {
    let space = stage.site.namespace("admission").await;
    space.active("first", json!({"scopes": ["orders:read"]})).await;
    // By default objects are admitted while no controller responds, so a denial shows that it was reviewed.
    let spec = json!({"scopes": ["orders:read"], "secret": {"name": "first"}});
    let denial = eventually("a denial", async || match space.try_create("second", spec.clone()).await {
        Err(message) => Ok(message),
        Ok(_) => {
            space.delete("second").await;
            Err("it was stored".to_owned())
        }
    })
    .await;
    assert!(denial.contains("admission webhook \"apitokens.tokenward.dev\" denied the request"), "{denial}");
    assert!(denial.contains("first"), "{denial}");
}
