//! `/auth` and `/require`. The input is a line with path and query, then a line for each header.

#![no_main]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body_util::Full;
use hyper::body::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};
use tokenward_fuzz::{answer, is_valid};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some(request) = request(input) else { return Corpus::Reject };
    let operators = operators_parameters(request.uri());
    let headers = request.headers().clone();
    let (status, body) = answer(request);
    match status.as_u16() {
        200 => {
            let needs: Vec<_> = form_urlencoded::parse(operators.as_bytes())
                .filter(|(name, _)| name == "scope")
                .map(|(_, scopes)| scopes.into_owned())
                .collect();
            let scopes = || needs.iter().flat_map(|scopes| scopes.split_ascii_whitespace());
            assert!(presented(&headers).any(|token| is_valid(&token, scopes(), None)), "{needs:?}");
        }
        400 | 401 | 403 => assert!(body["error"].is_string() && body["message"].is_string()),
        _ => panic!("{status} {body}"),
    }
    Corpus::Keep
});

/// What the gateway's operator requires: the first segment below `/require`, or the query of `/auth` itself.
fn operators_parameters(uri: &Uri) -> String {
    let path = uri.path();
    let in_path = path.strip_prefix("/require/").map(|below| below.split('/').next().unwrap_or_default());
    let in_query = path.trim_end_matches('/') == "/auth";
    in_path.or(uri.query().filter(|_| in_query)).unwrap_or_default().to_owned()
}

/// The request that an input encodes. `None`: it encodes none that hyper would accept.
fn request(input: &[u8]) -> Option<Request<Full<Bytes>>> {
    let mut lines = input.split(|byte| *byte == b'\n');
    let path = std::str::from_utf8(lines.next()?).ok()?;
    let is_ours = |route: &str| {
        path.strip_prefix(route).is_some_and(|rest| rest.is_empty() || rest.starts_with(['?', '/']))
    };
    if !is_ours("/auth") && !is_ours("/require") {
        return None;
    }
    let mut request = Request::get(path);
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        request = request.header(HeaderName::from_bytes(&line[..colon]).ok()?, value);
    }
    request.body(Default::default()).ok()
}

/// Whatever a client may have meant as a token: the value of a header, what follows `Bearer`, the password of `Basic`.
fn presented(headers: &HeaderMap) -> impl Iterator<Item = Vec<u8>> {
    let values = headers.get_all("authorization").iter().chain(headers.get_all("x-api-key"));
    values.flat_map(|value| {
        let value = value.as_bytes().trim_ascii();
        let after = |scheme: &[u8]| {
            let (name, rest) = value.split_at_checked(scheme.len())?;
            name.eq_ignore_ascii_case(scheme).then(|| rest.trim_ascii())
        };
        let password = after(b"basic ").and_then(|pair| {
            let pair = STANDARD.decode(pair).ok()?;
            let colon = pair.iter().position(|byte| *byte == b':')?;
            Some(pair[colon + 1..].to_vec())
        });
        [Some(value.to_vec()), after(b"bearer ").map(<[u8]>::to_vec), password].into_iter().flatten()
    })
}
