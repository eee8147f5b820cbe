//! Who may grant which scopes. RBAC decides, so that the right to edit an ApiToken does not imply that to grant
//! `payments:*`.
//!
//! The right is the verb `grant` on the resource `scopes` of the group `tokenward.dev`, with scopes as resource names.
//! RBAC compares names as a whole, so each name that covers a scope is checked: a Role that lists `orders:*`
//! lets its holders grant `orders:read`, too. A Role without resource names lets them grant everything.

use k8s_openapi::api::authorization::v1::ResourceAttributes;

use crate::crd::labels::{GROUP, SCOPES_RESOURCE};

/// The RBAC verb that allows a user to put scopes into an ApiToken.
pub const VERB: &str = "grant";

/// The resource names that allow a user to grant a scope: itself and the wildcards that cover it, the narrowest first.
pub fn names(scope: &str) -> impl Iterator<Item = String> {
    let stem = scope.strip_suffix(":*").unwrap_or(scope);
    let wildcards = stem.rmatch_indices(':').map(|(at, _)| format!("{}:*", &stem[..at]));
    std::iter::once(scope.to_owned()).chain(wildcards)
}

/// The right to grant the scope or wildcard of this name. Without a name: every scope.
pub fn attributes(namespace: &str, name: Option<String>) -> ResourceAttributes {
    ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        verb: Some(VERB.to_owned()),
        group: Some(GROUP.to_owned()),
        resource: Some(SCOPES_RESOURCE.to_owned()),
        name,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::scope::{covers, is_scope};

    #[test]
    fn a_scope_is_granted_by_what_covers_it() {
        for (scope, expected) in [
            ("orders:read", &["orders:read", "orders:*"][..]),
            ("orders:*", &["orders:*"]),
            ("a:b:c", &["a:b:c", "a:b:*", "a:*"]),
            ("a:b:*", &["a:b:*", "a:*"]),
        ] {
            assert_eq!(names(scope).collect::<Vec<_>>(), expected, "{scope}");
        }
    }

    proptest! {
        #[test]
        fn exactly_those_names_cover_it(
            scope in "(a|b)(:(a|b)){1,3}|(a|b)(:(a|b)){0,2}:[*]",
            granted in "(a|b)(:(a|b)){1,3}|(a|b)(:(a|b)){0,2}:[*]",
        ) {
            prop_assert!(is_scope(&scope));
            prop_assert_eq!(names(&scope).any(|name| name == granted), covers(&granted, &scope));
        }
    }
}
