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

/// The scopes that two lists both grant: of each list those that the other covers.
///
/// It covers what both cover. Where two scopes cover a third, one of them covers the other, since both are it or a
/// beginning of it; and that other one is in the list.
pub fn granted_by_both<'a>(one: &'a [String], other: &'a [String]) -> Vec<&'a str> {
    let covered = |scope: &&str, by: &[String]| any_covers(by.iter().map(String::as_str), scope);
    let of_one = one.iter().map(String::as_str).filter(|scope| covered(scope, other));
    // A scope that is in both lists is returned once.
    let of_other = other.iter().filter(|scope| !one.contains(scope));
    of_one.chain(of_other.map(String::as_str).filter(|scope| covered(scope, one))).collect()
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

    proptest! {
        #[test]
        fn granted_by_both_is_granted_by_each(
            one in proptest::collection::vec("(a|b)(:(a|b)){0,2}:(a|b|[*])", 0..4),
            other in proptest::collection::vec("(a|b)(:(a|b)){0,2}:(a|b|[*])", 0..4),
            required in "(a|b)(:(a|b)){0,3}:(a|b|[*])",
        ) {
            let covers = |list: &[String]| any_covers(list.iter().map(String::as_str), &required);
            let both = granted_by_both(&one, &other);
            prop_assert_eq!(any_covers(both.iter().copied(), &required), covers(&one) && covers(&other));
        }
    }
}
