//! The dynamic metadata in the verifier's gRPC response, in Envoy's other filters and its access log.

use serde_json::{Value, json};

use crate::gateway::ENVOY_WITH_A_FILTER;
use crate::stage::{Shared, Stage};
use testkit::eventually;

pub async fn the_filter_and_the_log_get_the_identity(shared: &Shared) {
    let stage = Stage::start(shared, &ENVOY_WITH_A_FILTER).await;
    let (token, space) = (&shared.admin, &shared.space.name);
    let key_id = tokenward_core::token::Token::parse(&token.secret).expect("a token").key_id();
    let reply = stage.curl("/admin/").bearer(&token.secret).send();
    for (header, value) in [
        ("seen-id", &*token.id),
        ("seen-subject", &token.subject),
        ("seen-namespace", space),
        ("seen-name", "admin"),
        ("seen-key_id", key_id.as_str()),
        ("seen-scopes", token.scopes),
    ] {
        assert_eq!(reply.header(header), Some(value), "{reply:?}");
    }
    let refused = stage.curl("/admin/").bearer(&shared.orders.secret).send();
    assert_eq!((refused.status, refused.header("seen-id")), (403, None), "a denial carries no identity");

    // Envoy buffers its log.
    let expected = |line: &Value| line["subject"] == json!(token.subject) && line["path"] == "/admin/";
    let logged = eventually("a line of the log", async || {
        let log = stage.gateway.log();
        let line = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(expected);
        line.ok_or(log)
    })
    .await;
    assert_eq!((&logged["status"], &logged["key_id"]), (&json!(200), &json!(key_id.as_str())));
    assert!(!stage.gateway.log().contains(&token.secret), "the log contains a token");
}
