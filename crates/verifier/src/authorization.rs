//! The `Authorization` header: one parser for the tokens that gateways pass on and for the callers of other endpoints.
//!
//! It accepts exactly what RFC 9110 section 11.4 and the schemes' own RFCs generate, and no more:
//!
//! - One header field. The field is not a list (RFC 9110 section 5.3), so with two of them a gateway and a verifier
//!   might each use another one.
//! - White space around the value is not part of it (section 5.5).
//! - The scheme is case-insensitive (section 11.1), and ends at a space or at the end of the value.
//! - Spaces, at least one, and no tabs separate the scheme from the credentials: `1*SP` in section 11.4, in RFC 6750
//!   section 2.1 (Bearer) and in RFC 7617 section 2 (Basic). So a tab before a token is part of the credentials, which
//!   are then no token.
//! - The credentials are any bytes, and may be missing. RFC 6750 restricts them to `b64token`, but a value that does not
//!   match that grammar can't be a valid token either, so that check is left to whoever parses the token.

use http::HeaderValue;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName};

/// A scheme by which a token can be presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// RFC 6750.
    Bearer,
    /// RFC 7617.
    Basic,
}

/// The content of an `Authorization` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Authorization<'h> {
    pub(crate) scheme: Scheme,
    /// What follows the scheme; empty if nothing does.
    pub(crate) credentials: &'h [u8],
}

/// Why a request has no credentials of an accepted scheme. What follows from it differs: for a gateway another scheme
/// is as good as none, because it may be meant for the service behind; for a caller it is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AuthorizationError {
    Missing,
    Repeated,
    UnacceptedScheme,
}

/// A header field that is not a list, and occurs more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RepeatedHeader;

impl Scheme {
    fn name(self) -> &'static str {
        match self {
            Self::Bearer => "Bearer",
            Self::Basic => "Basic",
        }
    }
}

impl<'h> Authorization<'h> {
    pub(crate) fn parse(headers: &'h HeaderMap, accepted: &[Scheme]) -> Result<Self, AuthorizationError> {
        let value =
            single_header(headers, AUTHORIZATION).map_err(|RepeatedHeader| AuthorizationError::Repeated)?;
        let value = value.ok_or(AuthorizationError::Missing)?.as_bytes().trim_ascii();
        let end_of_scheme = value.iter().position(|byte| *byte == b' ').unwrap_or(value.len());
        let (name, rest) = value.split_at(end_of_scheme);
        let scheme = accepted.iter().find(|scheme| name.eq_ignore_ascii_case(scheme.name().as_bytes()));
        let scheme = *scheme.ok_or(AuthorizationError::UnacceptedScheme)?;
        let spaces = rest.iter().take_while(|byte| **byte == b' ').count();
        Ok(Self { scheme, credentials: &rest[spaces..] })
    }
}

/// The value of a header field that is not a list.
pub(crate) fn single_header(
    headers: &HeaderMap,
    name: HeaderName,
) -> Result<Option<&HeaderValue>, RepeatedHeader> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(RepeatedHeader) } else { Ok(first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[Scheme] = &[Scheme::Bearer, Scheme::Basic];

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let values = values.iter().map(|value| HeaderValue::from_bytes(value).expect("a header value"));
        values.map(|value| (AUTHORIZATION, value)).collect()
    }

    fn bearer(credentials: &[u8]) -> Result<Authorization<'_>, AuthorizationError> {
        Ok(Authorization { scheme: Scheme::Bearer, credentials })
    }

    fn basic(credentials: &[u8]) -> Result<Authorization<'_>, AuthorizationError> {
        Ok(Authorization { scheme: Scheme::Basic, credentials })
    }

    type Parsed<'h> = Result<Authorization<'h>, AuthorizationError>;

    #[test]
    fn every_form_of_the_header() {
        use AuthorizationError::{Missing, Repeated, UnacceptedScheme};
        let table: &[(&str, &[&[u8]], Parsed<'_>)] = &[
            ("no header", &[], Err(Missing)),
            ("two headers", &[b"Bearer a", b"Bearer a"], Err(Repeated)),
            ("two headers, one of them of another scheme", &[b"Digest a", b"Bearer a"], Err(Repeated)),
            ("two headers, one of them empty", &[b"", b"Bearer a"], Err(Repeated)),
            ("an empty value", &[b""], Err(UnacceptedScheme)),
            ("white space only", &[b" \t "], Err(UnacceptedScheme)),
            ("a token", &[b"Bearer a"], bearer(b"a")),
            ("lower case", &[b"bearer a"], bearer(b"a")),
            ("upper case", &[b"BEARER a"], bearer(b"a")),
            ("mixed case", &[b"bEaReR a"], bearer(b"a")),
            ("a scheme alone", &[b"Bearer"], bearer(b"")),
            ("a scheme and spaces", &[b"Bearer  "], bearer(b"")),
            ("several spaces", &[b"Bearer   a"], bearer(b"a")),
            ("spaces at the ends", &[b"  Bearer a  "], bearer(b"a")),
            ("tabs at the ends", &[b"\tBearer a\t"], bearer(b"a")),
            ("a tab instead of the space", &[b"Bearer\ta"], Err(UnacceptedScheme)),
            ("a tab after the space", &[b"Bearer \ta"], bearer(b"\ta")),
            ("a tab before the space", &[b"Bearer\t a"], Err(UnacceptedScheme)),
            ("a no-break space instead of the space", &[b"Bearer\xc2\xa0a"], Err(UnacceptedScheme)),
            ("a no-break space at the end", &[b"Bearer a\xc2\xa0"], bearer(b"a\xc2\xa0")),
            ("two words", &[b"Bearer a b"], bearer(b"a b")),
            ("two values that a proxy has joined", &[b"Bearer a, Bearer a"], bearer(b"a, Bearer a")),
            ("not UTF-8", &[b"Bearer \xff\xfe"], bearer(b"\xff\xfe")),
            ("a scheme that is not UTF-8", &[b"Bearer\xff a"], Err(UnacceptedScheme)),
            ("a longer scheme", &[b"BearerX a"], Err(UnacceptedScheme)),
            ("a shorter scheme", &[b"Beare a"], Err(UnacceptedScheme)),
            ("no scheme", &[b"a"], Err(UnacceptedScheme)),
            ("a colon after the scheme", &[b"Bearer: a"], Err(UnacceptedScheme)),
            ("a quoted scheme", &[b"\"Bearer\" a"], Err(UnacceptedScheme)),
            ("another scheme", &[b"Digest username=\"a\""], Err(UnacceptedScheme)),
            ("Basic", &[b"Basic YTpi"], basic(b"YTpi")),
            ("Basic in lower case", &[b"basic YTpi"], basic(b"YTpi")),
            ("Basic with junk", &[b"Basic %%%"], basic(b"%%%")),
            ("Basic alone", &[b"Basic"], basic(b"")),
        ];
        for (what, values, expected) in table {
            assert_eq!(Authorization::parse(&headers(values), BOTH), *expected, "{what}");
        }
    }

    #[test]
    fn a_scheme_that_is_not_accepted_is_an_error() {
        let headers = headers(&[b"Basic YTpi"]);
        let parsed = Authorization::parse(&headers, &[Scheme::Bearer]);
        assert_eq!(parsed, Err(AuthorizationError::UnacceptedScheme));
    }
}
