//! Where a URL says what a route requires, and which parts of it are a client's.
//!
//! | URL | the operator's | the client's |
//! |---|---|---|
//! | `/auth?scope=orders:read` | all | |
//! | `/require/scope=orders:read/orders/7?page=2` | the first segment below `/require`, of a query's form | the rest |
//! | `/auth/orders/7?page=2` | | all below `/auth` |
//! | `/auth/?scope=orders:read` | maybe | maybe: as strict as `/auth`, and without an audience |
//!
//! The second is for gateways that can only prefix the client's path, as the Gateway API's external authorization does. It is
//! not below `/auth`, or a client behind a gateway that prefixes `/auth` could name requirements by a path of its own.
//! What the client wrote requires nothing. What looks as if a gateway had mixed up the two is an error: a requirement that
//! is lost would leave a route open.

use http::Uri;

use super::Requirements;
use crate::endpoints::gateway::error::GatewayError;
use crate::endpoints::routes::Route;

/// The requirements in the URL of a check.
pub(super) fn requirements(uri: &Uri) -> Result<Requirements<'_>, GatewayError> {
    let path = uri.path();
    if let Some(below) = path.strip_prefix(Route::Require.path()) {
        return Requirements::from_segment(operators_segment(below)?);
    }
    let below = path.strip_prefix(Route::ForwardAuth.path()).unwrap_or_default();
    if below.bytes().all(|byte| byte == b'/') {
        let requirements = Requirements::from_query(uri.query().unwrap_or_default())?;
        // Behind a gateway that prefixes /auth, this is a client's path, and a client would name what its token is for.
        if !below.is_empty() && requirements.audience.is_some() {
            return malformed("audience is named at /auth, without a slash, or in /require/audience=.../");
        }
        return Ok(requirements);
    }
    if contains_encoded_query(below) {
        return malformed(
            "the path contains an encoded question mark, %3F: the gateway has made the query a part of the path, and what \
             the route requires is lost",
        );
    }
    if below.split('/').take(3).any(is_like_a_requirement) {
        return malformed(
            "the path names a requirement where none is read: it is /require/scope=.../ with the client's path behind it, or \
             /auth?scope=...",
        );
    }
    Ok(Requirements::default())
}

/// The segment with the requirements, from a path below `/require`. A slash must follow it: the client's path begins with one,
/// and what does not, such as the `*` of `OPTIONS *`, would become a part of the segment.
fn operators_segment(below: &str) -> Result<&str, GatewayError> {
    match below.strip_prefix('/').and_then(|below| below.split_once('/')) {
        Some((segment, _)) if !segment.is_empty() => Ok(segment),
        _ => malformed(
            "below /require must stand what the route requires, and then the client's path: \
             /require/scope=orders:read/orders/7; a gateway that adds no path uses /auth?scope=orders:read",
        ),
    }
}

/// Whether a path contains an encoded question mark, as nginx makes of the query in `auth_request /_auth?scope=…` where
/// `proxy_pass` has a path of its own.
fn contains_encoded_query(path: &str) -> bool {
    path.as_bytes().windows(3).any(|bytes| bytes.eq_ignore_ascii_case(b"%3F"))
}

fn is_like_a_requirement(segment: &str) -> bool {
    let name = segment.split_once('=').map(|(name, _)| name);
    matches!(name, Some("scope" | "audience"))
}

fn malformed<T>(message: &'static str) -> Result<T, GatewayError> {
    Err(GatewayError::Malformed(message.into()))
}
