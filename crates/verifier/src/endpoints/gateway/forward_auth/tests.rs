//! Every header of `/auth`, and every reason of a denial.

use std::sync::Arc;

use http::Request;
use http_body_util::Full;
use proptest::prelude::*;

use super::*;
use crate::endpoints::fixture::{Fixture, Headers, PEER, bearer, plaintext, spec};
use tokenward_core::crd::{ApiTokenSpec, Constraints};
use tokenward_core::token::format;
use tokenward_core::token::format::{KeyId, Prefix};

/// The status for token 1 at `/auth` with this query.
fn status(fixture: &Fixture, query: &str) -> u16 {
    fixture.get(&format!("/auth?{query}"), &[("authorization", &bearer(1))]).status
}

#[test]
fn a_valid_token_is_identified_in_headers() {
    let fixture = Fixture::new();
    let response = fixture.get("/auth?scope=orders:read", &[("authorization", &bearer(1))]);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("x-tokenward-id"), Some("tok_1"));
    assert_eq!(response.header("x-tokenward-subject"), Some("team/token-1"));
    assert_eq!(response.header("x-tokenward-scopes"), Some("orders:* audit:read"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("www-authenticate"), None);
    assert!(response.body.is_empty());
}

#[test]
fn every_method_is_a_check() {
    let fixture = Fixture::new();
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PURGE"] {
        let request = Request::builder().method(method).uri("/auth");
        let with_token = request.header("authorization", bearer(1)).body(Full::default()).expect("a request");
        assert_eq!(fixture.send(with_token, PEER).status, 200, "{method}");
        let without =
            Request::builder().method(method).uri("/auth").body(Full::default()).expect("a request");
        assert_eq!(fixture.send(without, PEER).status, 401, "{method}");
    }
}

#[test]
fn tokens_are_read_from_their_headers() {
    let fixture = Fixture::new();
    fixture.with(2, spec());
    let (good, other) = (plaintext(1), plaintext(2));
    let key = good.expose().as_bytes();
    let scheme = |scheme: &str| [scheme.as_bytes(), key].concat();
    let basic = |credentials: &str| {
        use base64::Engine;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials)).into_bytes()
    };
    let table: &[(&str, Headers<'_>, u16, &str)] = &[
        ("nothing", &[], 401, "no_token"),
        ("another header", &[("cookie", key), ("proxy-authorization", &bearer(1))], 401, "no_token"),
        ("bearer", &[("authorization", &bearer(1))], 200, ""),
        ("API key", &[("x-api-key", key)], 200, ""),
        ("lower-case scheme", &[("authorization", &scheme("bearer "))], 200, ""),
        ("upper-case scheme", &[("authorization", &scheme("BEARER "))], 200, ""),
        ("several spaces", &[("authorization", &scheme("Bearer   "))], 200, ""),
        ("a tab instead of the space", &[("authorization", &scheme("Bearer\t"))], 401, "no_token"),
        ("a tab after the space", &[("authorization", &scheme("Bearer \t"))], 401, "invalid_token"),
        ("spaces around an API key", &[("x-api-key", &scheme("  "))], 200, ""),
        ("no space", &[("authorization", &scheme("Bearer"))], 401, "no_token"),
        ("no scheme", &[("authorization", key)], 401, "no_token"),
        ("Basic", &[("authorization", b"Basic dTpw")], 401, "no_token"),
        ("empty Authorization", &[("authorization", b"")], 401, "no_token"),
        ("empty bearer", &[("authorization", b"Bearer")], 401, "invalid_token"),
        ("blank bearer", &[("authorization", b"Bearer  ")], 401, "invalid_token"),
        ("empty API key", &[("x-api-key", b"")], 401, "invalid_token"),
        ("two words", &[("authorization", &[&bearer(1)[..], b" x"].concat())], 401, "invalid_token"),
        ("junk", &[("authorization", b"Bearer junk")], 401, "invalid_token"),
        ("not UTF-8", &[("authorization", b"Bearer \xff\xfe")], 401, "invalid_token"),
        ("API key that is not UTF-8", &[("x-api-key", b"\xff")], 401, "invalid_token"),
        ("Basic beside an API key", &[("authorization", b"Basic dTpw"), ("x-api-key", key)], 200, ""),
        (
            "another scheme that is not UTF-8, beside an API key",
            &[("authorization", b"Digest username=\"J\xf6rg\""), ("x-api-key", key)],
            200,
            "",
        ),
        ("another scheme that is not UTF-8", &[("authorization", b"Digest \xf6")], 401, "no_token"),
        ("the same twice", &[("authorization", &bearer(1)), ("x-api-key", key)], 200, ""),
        (
            "two that differ",
            &[("authorization", &bearer(1)), ("x-api-key", other.expose().as_bytes())],
            400,
            "invalid_request",
        ),
        (
            "the service's own JWT beside an API key",
            &[("authorization", b"Bearer e30.e30.c2ln"), ("x-api-key", key)],
            200,
            "",
        ),
        (
            "the service's own API key beside a token",
            &[("authorization", &bearer(1)), ("x-api-key", b"theirs")],
            200,
            "",
        ),
        ("an empty one beside an API key", &[("authorization", b"Bearer"), ("x-api-key", key)], 200, ""),
        (
            "one that is not UTF-8 beside an API key",
            &[("authorization", b"Bearer \xff"), ("x-api-key", key)],
            200,
            "",
        ),
        (
            "two that are not ours",
            &[("authorization", b"Bearer e30.e30.c2ln"), ("x-api-key", b"theirs")],
            401,
            "invalid_token",
        ),
        ("the password of Basic", &[("authorization", &basic(&["any:", good.expose()].concat()))], 200, ""),
        ("a password without a user", &[("authorization", &basic(&[":", good.expose()].concat()))], 200, ""),
        (
            "the user name of Basic",
            &[("authorization", &basic(&[good.expose(), ":"].concat()))],
            401,
            "no_token",
        ),
        (
            "a password that differs from the API key",
            &[("authorization", &basic(&["any:", other.expose()].concat())), ("x-api-key", key)],
            400,
            "invalid_request",
        ),
        (
            "two Authorization headers",
            &[("authorization", &bearer(1)), ("authorization", &bearer(1))],
            400,
            "invalid_request",
        ),
        (
            "Basic and Bearer",
            &[("authorization", b"Basic dTpw"), ("authorization", &bearer(1))],
            400,
            "invalid_request",
        ),
        ("two API keys", &[("x-api-key", key), ("x-api-key", key)], 400, "invalid_request"),
    ];
    for (what, headers, status, error) in table {
        let response = fixture.get("/auth", headers);
        assert_eq!(response.status, *status, "{what}");
        if *status != 200 {
            assert_eq!(response.error(), *error, "{what}");
        }
    }
}

#[test]
fn a_token_in_the_query_is_ignored() {
    let fixture = Fixture::new();
    let uri = format!("/auth/orders?access_token={}", plaintext(1).expose());
    assert_eq!(fixture.get(&uri, &[]).error(), "no_token");
}

#[test]
fn a_requirement_is_not_lost_in_the_path() {
    let fixture = Fixture::new();
    for (uri, status) in [
        ("/auth/", 200),
        ("/auth/?scope=orders:read", 200),
        ("/auth/?scope=audit:write", 403),
        ("/auth//?scope=audit:write", 403),
        ("/auth/%3Fscope=admin:write", 400),
        ("/auth/x/%3fscope=admin:write", 400),
        ("/auth/scope=admin:write/x", 400),
        ("/auth/require/scope=admin:write/x", 400),
        ("/auth/required/audience=billing", 400),
        ("/auth/orders?page=2", 200),
        ("/auth/orders%2F7", 200),
        ("/auth/orders/7/scope=mine", 200),
    ] {
        assert_eq!(fixture.get(uri, &[("authorization", &bearer(1))]).status, status, "{uri}");
    }
}

#[test]
fn requirements_in_the_path_are_closed_against_the_client() {
    let fixture = Fixture::new();
    fixture.with(2, ApiTokenSpec { audiences: Some(vec!["billing".to_owned()]), ..spec() });
    let table: &[(u8, &str, u16)] = &[
        (1, "/require/scope=orders:read/", 200),
        (1, "/require/scope=orders:read/orders/7?page=2", 200),
        (1, "/require/scope=orders:read&scope=audit:read/x", 200),
        (1, "/require/scope=orders:read+audit:read/x", 200),
        (1, "/require/scope=orders%3Aread//x", 200),
        (1, "/require/scope=audit:write/", 403),
        (1, "/require/scope=audit:write/x", 403),
        (1, "/require/scope=orders:read&scope=audit:write/x", 403),
        // Whatever a client puts behind it neither adds a requirement nor takes one away.
        (1, "/require/scope=orders:read/?scope=openid", 200),
        (1, "/require/scope=orders:read/x?scope=&scope=a&audience=a&audience=b", 200),
        (1, "/require/scope=orders:read/scope=audit:write/x", 200),
        (1, "/require/scope=orders:read/require/scope=audit:write/", 200),
        (1, "/require/scope=orders:read/%3Fscope=audit:write", 200),
        (1, "/require/scope=audit:write/../scope=orders:read/x?scope=orders:read", 403),
        (1, "/require/scope=audit:write/%2e%2e/auth", 403),
        (2, "/require/audience=billing/x", 200),
        (2, "/require/scope=orders:read&audience=billing/x?audience=search", 200),
        (2, "/require/audience=search/x?audience=billing", 401),
        (2, "/require/scope=orders:read/audience=billing/", 401),
        // What is not a requirement is an error.
        (1, "/require", 400),
        (1, "/require/", 400),
        (1, "/require//x", 400),
        (1, "/require?scope=orders:read", 400),
        (1, "/require/scope=orders:read", 400),
        (1, "/require/scope=orders:read?page=2", 400),
        (1, "/require/scope=orders:read*", 400),
        (1, "/require/orders:read/x", 400),
        (1, "/require/scopes=orders:read/x", 400),
        (1, "/require/%73cope=audit:write/x", 403),
        // Encoded as a whole.
        (1, "/require/scope%3Dorders%3Aread/x", 200),
        (1, "/require/scope%3Daudit:write/x", 403),
        (1, "/require/scope%3Dorders%3Aread%26scope%3Daudit%3Awrite/x", 403),
        (2, "/require/scope%3Dorders:read%26audience%3Dbilling/x", 200),
        (2, "/require/audience%3Dsearch/x", 401),
        (1, "/require/%26/x", 400),
        (1, "/require/&/x", 400),
        (1, "/require/&&/x?scope=orders:read", 400),
        (1, "/require/scope%253Dorders:read/x", 400),
        (1, "/require/scope%3D/x", 400),
        (1, "/require/scope=/x", 400),
        (1, "/require/audience=a&audience=b/x", 400),
        (1, "/require/audience=/x", 400),
    ];
    for (number, uri, status) in table {
        assert_eq!(fixture.get(uri, &[("authorization", &bearer(*number))]).status, *status, "{uri}");
    }
    let missing = fixture.get("/require/scope=orders:read", &[("authorization", &bearer(1))]);
    let message = String::from_utf8_lossy(&missing.body);
    assert!(message.contains("/require/scope=orders:read/orders/7"), "{message}");
}

#[test]
fn scopes_of_a_route() {
    let fixture = Fixture::new();
    let many = |count: usize| vec!["scope=orders:read"; count].join("&");
    let in_one = |count: usize| format!("scope={}", vec!["orders:read"; count].join("+"));
    let long = format!("scope=orders:{}", "a".repeat(129));
    let table: &[(&str, u16)] = &[
        ("", 200),
        ("&&", 200),
        ("scope=orders:read", 200),
        ("scope=orders:read&scope=audit:read", 200),
        ("scope=orders:read+audit:read", 200),
        ("scope=orders:read%20audit:read", 200),
        ("scope=%20orders:read%09", 200),
        ("scope=orders%3Aread", 200),
        ("s%63ope=orders:read", 200),
        ("scope=orders:*", 200),
        ("scope=audit:write", 403),
        ("scope=audit:*", 403),
        ("scope=orders:read&scope=audit:write", 403),
        ("scope=orders:read+audit:write", 403),
        ("scope=audit:write&scope=orders:read", 403),
        ("scope=", 400),
        ("scope", 400),
        ("scope=%20", 400),
        ("scope=orders", 400),
        ("scope=*", 400),
        ("scope=orders:read&scope=", 400),
        ("scope=orders:read,audit:read", 400),
        ("scope=orders:%22read", 400),
        ("scope=orders:%0d%0aread", 400),
        ("scope=orders:%ff", 400),
        ("scope=orders:%00", 400),
        (&long, 400),
        (&many(64), 200),
        (&many(65), 400),
        (&in_one(64), 200),
        (&in_one(65), 400),
        // An operator's mistake must not leave a route open.
        ("scopes=audit:write", 400),
        ("Scope=audit:write", 400),
        ("scope[]=audit:write", 400),
        ("aud=x", 400),
        ("=", 400),
    ];
    for (query, expected) in table {
        assert_eq!(status(&fixture, query), *expected, "{query}");
    }
}

#[test]
fn audience_of_a_route() {
    let fixture = Fixture::new();
    fixture.with(2, ApiTokenSpec { audiences: Some(vec!["billing".to_owned()]), ..spec() });
    let status = |number, query: &str| {
        fixture.get(&format!("/auth?{query}"), &[("authorization", &bearer(number))]).status
    };
    assert_eq!(status(1, "audience=search"), 200);
    assert_eq!(status(2, "audience=billing"), 200);
    assert_eq!(status(2, "audience=bill%69ng"), 200);
    assert_eq!(status(2, "audience=search"), 401);
    assert_eq!(status(2, "audience="), 400);
    assert_eq!(status(1, "audience="), 400, "a template whose variable is lost must not open a route");
    assert_eq!(status(2, ""), 401, "nobody says for which service it is presented");
    assert_eq!(status(2, "audience=Billing"), 401);
    assert_eq!(status(2, "audience=billing&audience=billing"), 400);
    assert_eq!(status(2, "audience=billing&audience=search"), 400);
}

#[test]
fn below_auth_the_query_may_contain_a_clients_parameters() {
    let fixture = Fixture::new();
    let status = |uri: &str| fixture.get(uri, &[("authorization", &bearer(1))]).status;
    assert_eq!(status("/auth?page=2"), 400);
    assert_eq!(status("/auth/?page=2"), 400);
    assert_eq!(status("/auth/?scopes=audit:write"), 400);
    assert_eq!(status("/auth/?scope=orders:read"), 200);
    assert_eq!(status("/auth/orders/7?page=2&sort=up"), 200);
    // What a client writes there requires nothing: not a scope, and it can't say for which service its token is.
    assert_eq!(status("/auth/orders?page=2&scope=audit:write"), 200);
    assert_eq!(status("/auth/orders?scope=openid"), 200);
    assert_eq!(status("/auth//x/../%2e%2e/?%%%=&;"), 200);
    assert_eq!(status("http://verifier.tokenward.svc/auth?page=2"), 400);
    assert_eq!(status("http://verifier.tokenward.svc/auth/orders?page=2"), 200);
    fixture.with(2, ApiTokenSpec { audiences: Some(vec!["billing".to_owned()]), ..spec() });
    let bound = |uri: &str| fixture.get(uri, &[("authorization", &bearer(2))]).status;
    assert_eq!(bound("/auth?audience=billing"), 200);
    for below in
        ["/auth/?audience=billing", "/auth//?audience=billing", "/auth/?scope=orders:read&audience=billing"]
    {
        assert_eq!(bound(below), 400, "{below}");
    }
    assert_eq!(bound("/auth/orders?audience=billing"), 401);
    assert_eq!(bound("/auth/orders"), 401);
    assert_eq!(status("/auth/orders?audience=a&audience=b"), 200);
}

#[test]
fn other_paths_are_not_found() {
    let fixture = Fixture::new();
    for uri in ["/", "/authx", "/Auth", "/auth;x", "//auth", "/v1/auth", "/%61uth", "*", "example.com:443"] {
        let response = fixture.get(uri, &[("authorization", &bearer(1))]);
        assert_eq!(response.status, 404, "{uri}");
        assert_eq!(response.header("x-tokenward-id"), None);
        assert_eq!(response.header("cache-control"), Some("no-store"), "a 404 may be cached otherwise");
    }
}

#[test]
fn no_token_is_unknown_before_list_and_pepper_are_read() {
    let fixture = Fixture::unready(&[]);
    let not_ready = |fixture: &Fixture| {
        for token in [&bearer(1)[..], b"Bearer junk"] {
            let response = fixture.get("/auth", &[("authorization", token)]);
            assert_eq!((response.status, &*response.error()), (503, "not_ready"));
            assert_eq!(response.header("retry-after"), Some("1"));
            assert_eq!(response.header("cache-control"), Some("no-store"));
            assert_eq!(response.header("www-authenticate"), None);
        }
    };
    not_ready(&fixture);
    fixture.with(1, spec());
    not_ready(&fixture);
    fixture.snapshot.set_tokens_listed(true);
    fixture.snapshot.set_locks_listed(true);
    not_ready(&fixture);
    fixture.snapshot.peppers.store(Some(Arc::new(fixture.peppers.clone())));
    assert_eq!(status(&fixture, ""), 200);
    let no_list = Fixture::unready(&[]);
    no_list.with(1, spec());
    no_list.snapshot.peppers.store(Some(Arc::new(no_list.peppers.clone())));
    not_ready(&no_list);
}

#[test]
fn clients_that_send_a_password_only_if_asked_are_asked() {
    let fixture = Fixture::new();
    let basic = Some(r#"Basic realm="tokenward""#);
    for (uri, headers, status, challenge) in [
        ("/auth?challenge=Basic", &[][..], 401, basic),
        ("/auth?challenge=basic&scope=orders:read", &[], 401, basic),
        ("/require/scope=orders:read&challenge=Basic/x", &[], 401, basic),
        ("/auth?challenge=Basic", &[("authorization", &b"Bearer junk"[..])], 401, basic),
        ("/auth?challenge=Basic&scope=audit:write", &[("authorization", &bearer(1)[..])], 403, None),
        ("/auth?challenge=Bearer", &[], 401, Some(r#"Bearer realm="tokenward""#)),
        ("/auth?challenge=Basic", &[("authorization", &bearer(1)[..])], 200, None),
    ] {
        let response = fixture.get(uri, headers);
        assert_eq!((response.status, response.header("www-authenticate")), (status, challenge), "{uri}");
    }
    for uri in [
        "/auth?challenge=",
        "/auth?challenge=Digest",
        "/auth?challenge=Basic&challenge=Basic",
        "/require/challenge=Basic/x",
    ] {
        assert_eq!(fixture.get(uri, &[("authorization", &bearer(1))]).status, 400, "{uri}");
    }
}

#[test]
fn challenges_follow_rfc_6750() {
    let fixture = Fixture::new();
    let challenge = |uri: &str, headers: &[(&str, &[u8])]| {
        let response = fixture.get(uri, headers);
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert_eq!(response.header("content-type"), Some("application/json"));
        response.header("www-authenticate").map(str::to_owned)
    };
    // Section 3.1: no error code where no authentication information was presented.
    assert_eq!(challenge("/auth", &[]).as_deref(), Some(r#"Bearer realm="tokenward""#));
    assert_eq!(
        challenge("/auth", &[("authorization", b"Bearer x")]).as_deref(),
        Some(r#"Bearer realm="tokenward", error="invalid_token""#)
    );
    assert_eq!(
        challenge("/auth?audience=a&audience=b", &[("authorization", &bearer(1))]).as_deref(),
        Some(r#"Bearer realm="tokenward", error="invalid_request""#)
    );
    assert_eq!(
        challenge("/auth?scope=audit:write&scope=orders:read", &[("authorization", &bearer(1))]).as_deref(),
        Some(r#"Bearer realm="tokenward", error="insufficient_scope", scope="audit:write orders:read""#)
    );
}

#[test]
fn every_invalid_token_gets_the_same_response() {
    let fixture = Fixture::new();
    let past = "2026-01-02T00:00:00Z".parse().expect("an instant");
    fixture.with(2, ApiTokenSpec { revoked: Some(true), ..spec() });
    fixture.with(3, ApiTokenSpec { expires_at: Some(past), ..spec() });
    fixture.with(4, ApiTokenSpec { suspend: Some(true), ..spec() });
    fixture.with(5, ApiTokenSpec { audiences: Some(vec!["billing".to_owned()]), ..spec() });
    // Its key id is known, its secret is not.
    let forged = format::make(&Prefix::default(), KeyId::from_bytes([1; 16]), &[9; 32]);
    let uri = "/auth?audience=search&scope=payments:write";
    let unknown = fixture.get(uri, &[("authorization", &bearer(99))]);
    assert_eq!((unknown.status, &*unknown.error()), (401, "invalid_token"));
    for number in 2..=5 {
        assert_eq!(fixture.get(uri, &[("authorization", &bearer(number))]), unknown, "token {number}");
    }
    for text in [forged.expose().as_bytes(), b"tw_", b"", b"\xff", &[b'x'; 20_000]] {
        assert_eq!(fixture.get(uri, &[("x-api-key", text)]), unknown);
        assert_eq!(fixture.get(uri, &[("authorization", &[b"Bearer ", text].concat())]), unknown);
    }
}

#[test]
fn the_client_has_the_rightmost_address_that_is_no_trusted_proxy() {
    let fixture = Fixture::behind(&["10.0.0.0/8", "2001:db8:f::/48"]);
    let cidrs = |list: &[&str]| {
        let cidrs = Some(list.iter().map(|cidr| (*cidr).to_owned()).collect());
        ApiTokenSpec { constraints: Some(Constraints { cidrs }), ..spec() }
    };
    fixture.with(2, cidrs(&["203.0.113.0/24", "2001:db8:1::/48"]));
    // Valid only from the address of a trusted proxy.
    fixture.with(3, cidrs(&["10.0.0.0/8"]));
    const INSIDE: u16 = 200;
    const OUTSIDE: u16 = 403;
    let table: &[(&str, &[&[u8]], u16, u16)] = &[
        // The peer is the client.
        ("203.0.113.9", &[], INSIDE, OUTSIDE),
        ("198.51.100.1", &[], OUTSIDE, OUTSIDE),
        // It is not trusted to report another address.
        ("198.51.100.1", &[b"203.0.113.9"], OUTSIDE, OUTSIDE),
        ("203.0.113.9", &[b"198.51.100.1"], INSIDE, OUTSIDE),
        // One proxy, then several.
        ("10.0.0.1", &[b"203.0.113.9"], INSIDE, OUTSIDE),
        ("10.0.0.1", &[b"198.51.100.1, 203.0.113.9"], INSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9, 198.51.100.1"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9,10.0.0.3,  10.0.0.2"], INSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9", b"198.51.100.1"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"198.51.100.1", b"203.0.113.9", b"10.0.0.2"], INSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9, 198.51.100.1, 10.0.0.2"], OUTSIDE, OUTSIDE),
        // A proxy that reports nobody, or itself.
        ("10.0.0.1", &[], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b""], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b" , ,"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"10.0.0.1"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"10.0.0.1, 10.0.0.2"], OUTSIDE, OUTSIDE),
        // Only proxies: the first of them is the client.
        ("10.0.0.1", &[b"10.0.0.3, 10.0.0.2"], OUTSIDE, INSIDE),
        ("10.0.0.1", &[b"203.0.113.9,,10.0.0.2"], INSIDE, OUTSIDE),
        // A client can write anything in front of its own address.
        ("10.0.0.1", &[b"garbage, 203.0.113.9"], INSIDE, OUTSIDE),
        ("10.0.0.1", &[b"\xff, 203.0.113.9"], INSIDE, OUTSIDE),
        ("10.0.0.1", &[b"\xff, 198.51.100.1"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9", b"\xff, 198.51.100.1"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"10.0.0.7", b"\xff, 198.51.100.1, 10.0.0.2"], OUTSIDE, OUTSIDE),
        // An address that can't be parsed is unknown; above all, it is not the proxy's.
        ("10.0.0.1", &[b"garbage"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"unknown"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"\xff"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9", b"\xff"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9, 300.1.1.1"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"garbage, 10.0.0.2"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9, garbage, 10.0.0.2"], OUTSIDE, OUTSIDE),
        // IPv6, and IPv4 mapped into IPv6.
        ("2001:db8:f::1", &[b"2001:db8:1::9"], INSIDE, OUTSIDE),
        ("2001:db8:e::1", &[b"2001:db8:1::9"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"::ffff:203.0.113.9"], INSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9, ::ffff:10.0.0.2"], INSIDE, OUTSIDE),
        // Some proxies write the port too.
        ("10.0.0.1", &[b"203.0.113.9:4711"], INSIDE, OUTSIDE),
        ("10.0.0.1", &[b"198.51.100.1:4711"], OUTSIDE, OUTSIDE),
        ("10.0.0.1", &[b"203.0.113.9, 10.0.0.2:80"], INSIDE, OUTSIDE),
        ("2001:db8:f::1", &[b"[2001:db8:1::9]:4711"], INSIDE, OUTSIDE),
        ("2001:db8:f::1", &[b"[2001:db8:1::9]"], INSIDE, OUTSIDE),
    ];
    for (peer, forwarded, of_two, of_three) in table {
        let shown: Vec<_> = forwarded.iter().map(|value| value.escape_ascii().to_string()).collect();
        for (number, expected) in [(1, 200), (2, *of_two), (3, *of_three)] {
            let token = bearer(number);
            let mut headers: Vec<(&str, &[u8])> = vec![("authorization", &token)];
            headers.extend(forwarded.iter().map(|value| ("x-forwarded-for", *value)));
            let response = fixture.get_from(peer, "/auth", &headers);
            assert_eq!(response.status, expected, "token {number} from {peer}, forwarded for {shown:?}");
        }
    }
}

#[test]
fn a_denied_address_gets_no_challenge() {
    let fixture = Fixture::new();
    let constraints = Some(Constraints { cidrs: Some(vec!["203.0.113.0/24".to_owned()]) });
    fixture.with(2, ApiTokenSpec { constraints, ..spec() });
    let response = fixture.get("/auth", &[("authorization", &bearer(2))]);
    assert_eq!((response.status, &*response.error()), (403, "ip_not_allowed"));
    assert_eq!(response.header("www-authenticate"), None);
    assert_eq!(response.header("cache-control"), Some("no-store"));
}

#[test]
fn every_outcome_is_counted() {
    let fixture = Fixture::unready(&[]);
    fixture.with(1, spec());
    status(&fixture, "");
    fixture.snapshot.set_tokens_listed(true);
    fixture.snapshot.set_locks_listed(true);
    fixture.snapshot.peppers.store(Some(Arc::new(fixture.peppers.clone())));
    for query in ["", "", "scope=audit:write", "scope="] {
        status(&fixture, query);
    }
    fixture.get("/auth", &[]);
    fixture.get("/auth", &[("x-api-key", b"junk")]);
    let text = fixture.metrics();
    let counts = [
        ("ALLOWED", 2),
        ("INSUFFICIENT_SCOPE", 1),
        ("NOT_FOUND", 1),
        ("MALFORMED", 1),
        ("NO_TOKEN", 1),
        ("UNAVAILABLE", 1),
    ];
    for (code, count) in counts {
        let line = format!(r#"checks_total{{endpoint="auth",code="{code}"}} {count}"#);
        assert!(text.contains(&line), "{line} in {text}");
    }
}

/// A header value as bytes: anything that HTTP allows, often near to something valid.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..80);
    let near = (0usize..80, any::<u8>()).prop_map(|(at, byte)| {
        let mut value = bearer(1);
        let at = at % value.len();
        value[at] = byte;
        value
    });
    let text = "(Bearer|bearer|Basic|) ?(tw_)?[0-9A-Za-z_]{0,70}".prop_map(String::into_bytes);
    let good = prop_oneof![Just(bearer(1)), Just(plaintext(1).expose().as_bytes().to_vec())];
    prop_oneof![3 => bytes, 3 => near, 2 => text, 1 => good]
}

fn header() -> impl Strategy<Value = (&'static str, Vec<u8>)> {
    (prop::sample::select(vec!["authorization", "x-api-key", "x-forwarded-for", "cookie"]), value())
}

proptest! {
    /// No request makes it panic, and every request that is allowed presents the one valid token and nothing else.
    #[test]
    fn only_a_valid_token_is_allowed(
        headers in proptest::collection::vec(header(), 0..4), below: bool, query in "[ -~]{0,60}",
    ) {
        let fixture = Fixture::behind(&["192.0.2.0/24"]);
        let query: String = query.chars().filter(|c| !matches!(c, '#' | ' ' | '"' | '<' | '>' | '\\')).collect();
        let mut request = Request::new(Full::default());
        let uri = format!("/auth{}?{query}", if below { "/orders" } else { "" });
        let Ok(uri) = uri.parse() else { return Ok(()) };
        *request.uri_mut() = uri;
        for (name, value) in &headers {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                request.headers_mut().append(*name, value);
            }
        }
        let response = fixture.send(request.clone(), PEER);
        prop_assert!([200, 400, 401, 403].contains(&response.status), "{}", response.status);
        if response.status == 200 {
            let good = plaintext(1);
            let presented: Vec<&str> = ["authorization", "x-api-key"].into_iter()
                .flat_map(|name| request.headers().get_all(name))
                .filter_map(|value| value.to_str().ok())
                .map(|value| value.trim().rsplit(' ').next().unwrap_or_default())
                .collect();
            prop_assert!(presented.contains(&good.expose()), "{headers:?}");
        } else {
            prop_assert_eq!(response.header("x-tokenward-id"), None);
        }
    }

    /// No other parameter lets a request pass whose query requires a scope that the token lacks.
    #[test]
    fn no_query_weakens_a_requirement(before in "[a-z=&%+0-9]{0,20}", after in "[a-z=&%+0-9:]{0,20}", in_path: bool) {
        let fixture = Fixture::new();
        let parameters = format!("{before}&scope=audit:write&{after}");
        let uri = if in_path { format!("/require/{parameters}/x?{after}") } else { format!("/auth?{parameters}") };
        prop_assert!([400, 403].contains(&fixture.get(&uri, &[("authorization", &bearer(1))]).status));
        let unknown = bearer(99);
        prop_assert!([400, 401].contains(&fixture.get(&uri, &[("authorization", &unknown)]).status));
    }

    /// Whatever a client writes into X-Forwarded-For, the address that the proxy appends is used.
    #[test]
    fn no_client_chooses_its_address(forged in proptest::collection::vec(value(), 0..3), joined: bool) {
        let fixture = Fixture::behind(&["10.0.0.0/8"]);
        let cidrs = Some(vec!["10.0.0.0/8".to_owned(), "203.0.113.0/24".to_owned()]);
        fixture.with(2, ApiTokenSpec { constraints: Some(Constraints { cidrs }), ..spec() });
        let mut forged: Vec<Vec<u8>> = forged.into_iter().filter(|v| HeaderValue::from_bytes(v).is_ok()).collect();
        forged.push(b"203.0.113.9".to_vec());
        match joined {
            true => forged.last_mut().expect("a value").extend_from_slice(b"\xff, 198.51.100.1"),
            false => forged.push(b"198.51.100.1".to_vec()),
        }
        let token = bearer(2);
        let mut headers: Vec<(&str, &[u8])> = vec![("authorization", &token)];
        headers.extend(forged.iter().map(|value| ("x-forwarded-for", &**value)));
        prop_assert_eq!(fixture.get_from("10.0.0.1", "/auth", &headers).status, 403);
    }
}
