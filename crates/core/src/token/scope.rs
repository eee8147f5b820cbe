//! Scopes: `resource:action`, where a last part of `*` covers everything below it.

use thiserror::Error;

/// The most scopes that a token or a check may name.
pub const MAX_SCOPES: usize = 64;
/// The length of the longest scope, in bytes, all of which are ASCII.
pub const MAX_SCOPE_LEN: usize = 128;

/// Why a list of scopes is not one that a check may require.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScopesError {
    /// There are more than [`MAX_SCOPES`].
    #[error("more than {MAX_SCOPES} scopes")]
    TooMany,
    /// One of them is not a scope. The error has at most its first 64 characters, since anybody may have sent it.
    #[error("scope {0:?} is not resource:action")]
    NotAScope(String),
}

/// Validates a list of scopes that a check requires.
pub fn validate<S: AsRef<str>>(scopes: &[S]) -> Result<(), ScopesError> {
    if scopes.len() > MAX_SCOPES {
        return Err(ScopesError::TooMany);
    }
    match scopes.iter().map(AsRef::as_ref).find(|scope| !is_scope(scope)) {
        None => Ok(()),
        Some(bad) => Err(ScopesError::NotAScope(bad.chars().take(64).collect())),
    }
}

/// Whether a text is a scope: parts of letters, digits and `. _ / -`, at least two of them, separated by colons.
pub fn is_scope(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-');
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(allowed);
    let Some((resource, action)) = text.rsplit_once(':') else { return false };
    text.len() <= MAX_SCOPE_LEN
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && resource.split(':').all(is_part)
        && (action == "*" || is_part(action))
}

/// Whether a granted scope covers a required one.
///
/// `orders:*` covers `orders:read`, `orders:items:read` and `orders:*` itself, but neither `orders` nor
/// `orders2:read`.
pub fn covers(granted: &str, required: &str) -> bool {
    match granted.strip_suffix('*') {
        Some(stem) if stem.ends_with(':') => required.len() > stem.len() && required.starts_with(stem),
        _ => granted == required,
    }
}

/// Whether any of the granted scopes covers the required one.
pub fn any_covers<'a>(granted: impl IntoIterator<Item = &'a str>, required: &str) -> bool {
    granted.into_iter().any(|scope| covers(scope, required))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grammar() {
        for good in ["tokens:read", "audit:read", "orders:*", "a:b:c", "k8s.io/pods:get", "A:b", "a:b:*"] {
            assert!(is_scope(good), "{good}");
        }
        let long = format!("a:{}", "b".repeat(127));
        for bad in [
            "", ":", "*", "tokens", "tokens:", ":read", "a:*:b", "a b:c", "a:b*", "*:read", "a::b", ".a:b",
            "é:a", &long,
        ] {
            assert!(!is_scope(bad), "{bad}");
        }
    }

    #[test]
    fn coverage() {
        for (granted, required, covered) in [
            ("orders:read", "orders:read", true),
            ("orders:read", "orders:write", false),
            ("orders:*", "orders:read", true),
            ("orders:*", "orders:items:read", true),
            ("orders:*", "orders:*", true),
            ("orders:*", "orders:", false),
            ("orders:*", "orders", false),
            ("orders:*", "orders2:read", false),
            ("orders:items:*", "orders:*", false),
            ("orders:read", "orders:*", false),
            ("*", "orders:read", false),
        ] {
            assert_eq!(covers(granted, required), covered, "{granted} {required}");
        }
    }

    proptest! {
        #[test]
        fn a_scope_covers_itself(scope in "[a-z]{1,5}(:[a-z]{1,5}){1,3}|[a-z]{1,5}:[*]") {
            prop_assert!(is_scope(&scope));
            prop_assert!(covers(&scope, &scope));
        }

        #[test]
        fn coverage_is_transitive(a in "(a|b)(:(a|b)){0,2}:(a|[*])", b in "(a|b)(:(a|b)){0,2}:(a|[*])", c in "(a|b)(:(a|b)){0,2}:(a|[*])") {
            if covers(&a, &b) && covers(&b, &c) {
                prop_assert!(covers(&a, &c));
            }
        }
    }
}
