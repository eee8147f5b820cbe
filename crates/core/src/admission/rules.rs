//! Whether an object may be stored: rules over the new object, the stored one and the other objects of the cluster.

use std::net::{IpAddr, Ipv4Addr};

use http::Uri;
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;

use crate::check::caller;
use crate::crd::{ApiToken, ApiTokenSpec, CreationPolicy, TokenWebhook};
use crate::lifecycle::{InvalidSpec, Spec};
use crate::outbox::destination::{AddressError, AddressPolicy};
use crate::token::scope::any_covers;

/// By how much a user's clock may be ahead of the controller's.
const CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(60);

/// The rule that an object violates.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// The spec is invalid, so the controller could not act on it.
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    /// Another ApiToken uses the Secret.
    #[error("Secret {secret} is that of ApiToken {token}; choose another spec.secret.name")]
    SecretOfAnother {
        /// The name of the Secret.
        secret: String,
        /// The name of the other ApiToken.
        token: String,
    },
    /// The Secret exists and was not created by tokenward.
    #[error(
        "Secret {secret} exists and is not tokenward's, so it would never be written; choose another \
         spec.secret.name"
    )]
    ForeignSecret {
        /// The name of the Secret.
        secret: String,
    },
    /// The Secret is somebody else's, who has not agreed that the ApiToken writes into it.
    #[error(
        "Secret {secret} lacks the label tokenward.dev/token={token}, by which its owner lets this ApiToken write into it"
    )]
    NoConsent {
        /// The name of the Secret.
        secret: String,
        /// The name of the ApiToken.
        token: String,
    },
    /// RBAC does not allow the user to grant these scopes.
    #[error(
        "{user} may not grant {}: it takes the verb \"grant\" on scopes.tokenward.dev of these names in namespace \
         {namespace}", .scopes.join(", ")
    )]
    ScopesNotGranted {
        /// The user who sent the request.
        user: String,
        /// The namespace of the ApiToken.
        namespace: String,
        /// The scopes that the user may not grant.
        scopes: Vec<String>,
    },
    /// Webhooks may not be sent to the address in the URL of the TokenWebhook.
    #[error("spec.url: {0}")]
    Address(#[from] AddressError),
}

/// What the caller has to check with the API server before an ApiToken is admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterChecks {
    /// Scopes that the ApiToken gains, or all of them if one of its limits is lifted. The user must be allowed to grant them.
    pub gained_scopes: Vec<String>,
    /// The name of a Secret that must not exist, or be ours, or by its policy one whose owner agrees.
    pub secret: Option<(String, CreationPolicy)>,
    /// Warnings for the user: the stored spec was invalid already, or does not do what is probably meant.
    pub warnings: Vec<String>,
}

/// Validates an ApiToken by itself, and returns what else has to be checked. `old` is the stored object.
///
/// A revocation is never denied. Nor is another edit of an object that violates a rule already: it gets a warning.
pub fn validate_token(
    new: &ApiToken,
    old: Option<&ApiToken>,
    now: Timestamp,
) -> Result<ClusterChecks, Violation> {
    let unchanged = old.is_some_and(|old| old.spec == new.spec);
    if unchanged || new.spec.revoked == Some(true) {
        return Ok(ClusterChecks::default());
    }
    let spec = match Spec::of(new) {
        Ok(spec) => spec,
        Err(error) if old.is_some_and(|old| Spec::of(old).as_ref() == Err(&error)) => {
            let warnings = vec![format!("{error}; the controller does not act on this ApiToken")];
            return Ok(ClusterChecks { gained_scopes: gained(new, old), warnings, ..Default::default() });
        }
        Err(error) => return Err(error.into()),
    };
    // The name of the Secret is immutable, so it is checked on creation only.
    let secret = old.is_none().then_some((spec.secret_name, spec.creation_policy));
    let warnings =
        [late_cut(new, old, now), caller_without_audience(new, old)].into_iter().flatten().collect();
    Ok(ClusterChecks { gained_scopes: gained(new, old), secret, warnings })
}

/// A warning for a new `notBefore` that is still to come. Most often it is a mistake in an emergency, such as local time
/// written as UTC, or in the year.
fn late_cut(new: &ApiToken, old: Option<&ApiToken>, now: Timestamp) -> Option<String> {
    let cut = |token: &ApiToken| token.spec.rotation.as_ref().and_then(|rotation| rotation.not_before);
    let at = cut(new).filter(|at| old.and_then(cut) != Some(*at))?;
    let is_late = at.duration_since(now) > CLOCK_DIFFERENCE;
    is_late.then(|| {
        format!(
            "rotation.notBefore is in the future: every secret works until {at}; to end what is issued now, set it to now, \
             or change rotation.trigger and set rotation.overlap to 0s"
        )
    })
}

/// A warning for the token of a caller that verifiers deny, since it may be presented anywhere.
fn caller_without_audience(new: &ApiToken, old: Option<&ApiToken>) -> Option<String> {
    let lacks_audience = |token: &ApiToken| {
        let ApiTokenSpec { scopes, audiences, .. } = &token.spec;
        any_covers(scopes.iter().map(String::as_str), caller::SCOPE)
            && !audiences.iter().flatten().any(|audience| audience == caller::AUDIENCE)
    };
    let is_new = lacks_audience(new) && !old.is_some_and(lacks_audience);
    is_new.then(|| {
        format!(
            "with the scope {} a token calls verifiers, which takes {:?} among its audiences, too",
            caller::SCOPE,
            caller::AUDIENCE
        )
    })
}

/// The scopes that the old ones do not cover: a wider scope is gained, a narrower one is not. Whoever lifts a limit hands out
/// every scope anew, to audiences, networks or times for which nobody has granted it.
fn gained(new: &ApiToken, old: Option<&ApiToken>) -> Vec<String> {
    let before = old.filter(|old| !lifts_a_limit(&new.spec, &old.spec));
    let before = before.map_or(&[][..], |old| &old.spec.scopes);
    let covered = |scope: &String| any_covers(before.iter().map(String::as_str), scope);
    new.spec.scopes.iter().filter(|scope| !covered(scope)).cloned().collect()
}

/// Whether a token works for an audience, from a network or at a time for which it did not.
fn lifts_a_limit(new: &ApiTokenSpec, old: &ApiTokenSpec) -> bool {
    let is_true = |flag: Option<bool>| flag == Some(true);
    let expires_later = old.expires_at.is_some_and(|old| new.expires_at.is_none_or(|new| new > old));
    let resumes = is_true(old.suspend) && !is_true(new.suspend);
    expires_later || resumes || widens_audiences(new, old) || widens_networks(new, old)
}

fn widens_audiences(new: &ApiTokenSpec, old: &ApiTokenSpec) -> bool {
    let old = old.audiences.as_deref().unwrap_or_default();
    widens(new.audiences.as_deref().unwrap_or_default(), old, |audience| old.contains(audience))
}

fn widens_networks(new: &ApiTokenSpec, old: &ApiTokenSpec) -> bool {
    let old = cidrs(old);
    widens(cidrs(new), old, |network| {
        // Only what can be read on both sides is known to be no wider.
        let Ok(network) = network.parse::<IpNet>() else { return false };
        old.iter().filter_map(|old| old.parse::<IpNet>().ok()).any(|old| old.contains(&network))
    })
}

/// Whether a list of what is allowed, of which an empty one is no limit, allows more than the old one covers.
fn widens(new: &[String], old: &[String], covered: impl FnMut(&String) -> bool) -> bool {
    !old.is_empty() && (new.is_empty() || !new.iter().all(covered))
}

fn cidrs(spec: &ApiTokenSpec) -> &[String] {
    spec.constraints.as_ref().and_then(|constraints| constraints.cidrs.as_deref()).unwrap_or_default()
}

/// Checks the URL of a TokenWebhook, if its host is an IP address. The addresses of a name can change, so the controller
/// checks them each time it connects.
pub fn validate_destination(
    new: &TokenWebhook,
    old: Option<&TokenWebhook>,
    policy: &AddressPolicy,
) -> Result<(), Violation> {
    if old.is_some_and(|old| old.spec.url == new.spec.url) {
        return Ok(());
    }
    let uri = new.spec.url.as_deref().and_then(|url| url.parse::<Uri>().ok());
    let Some(host) = uri.as_ref().and_then(Uri::host) else { return Ok(()) };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let address = match host.parse() {
        Ok(address) => address,
        // Loopback, by RFC 6761 section 6.3.
        Err(_) if is_localhost(host) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Err(_) => return Ok(()),
    };
    Ok(policy.check(address)?)
}

fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn token(spec: Value) -> ApiToken {
        ApiToken::new("backend", serde_json::from_value(spec).expect("a spec"))
    }

    #[test]
    fn all_scopes_and_the_secret_of_a_new_token_are_checked() {
        let new = token(json!({"scopes": ["orders:read", "audit:*"], "secret": {"name": "mine"}}));
        let expected = ClusterChecks {
            gained_scopes: vec!["orders:read".to_owned(), "audit:*".to_owned()],
            secret: Some(("mine".to_owned(), CreationPolicy::Owner)),
            warnings: Vec::new(),
        };
        assert_eq!(validate_token(&new, None, NOW), Ok(expected));
    }

    #[test]
    fn a_caller_that_may_be_presented_anywhere_is_a_warning() {
        let warnings = |spec| validate_token(&token(spec), None, NOW).expect("valid").warnings;
        let told = warnings(json!({"scopes": ["tokens:verify"], "audiences": ["ledger"]}));
        assert!(matches!(&*told, [text] if text.contains(r#""tokenward" among its audiences"#)), "{told:?}");
        for spec in [
            json!({"scopes": ["tokens:verify"], "audiences": ["ledger", "tokenward"]}),
            json!({"scopes": ["orders:read"]}),
        ] {
            assert_eq!(warnings(spec), Vec::<String>::new());
        }
    }

    #[test]
    fn a_cut_that_is_still_to_come_is_a_warning() {
        let cut = |seconds: i64| {
            let at = NOW + SignedDuration::from_secs(seconds);
            token(json!({"scopes": ["a:b"], "rotation": {"notBefore": at}}))
        };
        let warning = |new: &ApiToken, old: Option<&ApiToken>| {
            validate_token(new, old, NOW).expect("valid").warnings.pop()
        };
        assert_eq!((warning(&cut(0), None), warning(&cut(60), None)), (None, None));
        let told = warning(&cut(3600), Some(&cut(0))).expect("a warning");
        assert!(told.contains("every secret works until 1970-01-01T01:00:00Z"), "{told}");
        let mut renamed = cut(3600);
        renamed.spec.display_name = Some("Orders".to_owned());
        assert_eq!(warning(&renamed, Some(&cut(3600))), None, "it was told before");
    }

    #[test]
    fn an_edit_is_checked_for_the_scopes_that_it_gains() {
        let old = token(json!({"scopes": ["orders:*"]}));
        for (scopes, gained) in [
            (json!(["orders:read"]), vec![]),
            (json!(["orders:*", "audit:read"]), vec!["audit:read"]),
            (json!(["audit:*"]), vec!["audit:*"]),
        ] {
            let checks = validate_token(&token(json!({"scopes": scopes, "suspend": true})), Some(&old), NOW);
            let checks = checks.expect("valid");
            assert_eq!(checks.gained_scopes, gained);
            assert_eq!(checks.secret, None);
        }
    }

    #[test]
    fn whoever_lifts_a_limit_must_be_allowed_to_grant_every_scope() {
        let limits = json!({
            "scopes": ["a:b"], "audiences": ["ledger", "audit"], "suspend": true,
            "constraints": {"cidrs": ["10.9.0.0/16"]}, "expiresAt": "2030-01-01T00:00:00Z",
        });
        let old = token(limits.clone());
        let edited = |field: &str, value: Value| {
            let mut spec = limits.clone();
            spec[field] = value;
            validate_token(&token(spec), Some(&old), NOW).expect("valid").gained_scopes
        };
        for (field, value) in [
            ("audiences", json!(null)),
            ("audiences", json!([])),
            ("audiences", json!(["ledger", "other"])),
            ("constraints", json!(null)),
            ("constraints", json!({"cidrs": []})),
            ("constraints", json!({"cidrs": ["10.0.0.0/8"]})),
            ("constraints", json!({"cidrs": ["10.9.1.0/24", "10.10.0.0/24"]})),
            ("constraints", json!({"cidrs": ["::/0"]})),
            ("expiresAt", json!(null)),
            ("expiresAt", json!("2030-01-01T00:00:01Z")),
            ("suspend", json!(false)),
            ("suspend", json!(null)),
        ] {
            assert_eq!(edited(field, value.clone()), ["a:b"], "{field} {value}");
        }
        for (field, value) in [
            ("audiences", json!(["audit"])),
            ("constraints", json!({"cidrs": ["10.9.1.0/24", "10.9.0.0/16"]})),
            ("expiresAt", json!("2029-01-01T00:00:00Z")),
            ("displayName", json!("other")),
        ] {
            assert_eq!(edited(field, value.clone()), Vec::<String>::new(), "{field} {value}");
        }
    }

    #[test]
    fn a_label_that_a_tool_owns_objects_by_is_denied() {
        let template = json!({"metadata": {"labels": {"argoproj.io/instance": "x"}}});
        let new = token(json!({"scopes": ["a:b"], "secret": {"template": template}}));
        let violation = validate_token(&new, None, NOW).expect_err("a violation").to_string();
        assert!(violation.contains("argoproj.io/instance"), "{violation}");
    }

    /// An ApiToken that predates a rule can be edited, and above all revoked.
    #[test]
    fn a_rule_that_was_violated_before_blocks_no_edit() {
        let secret = json!({"template": {"metadata": {"labels": {"argoproj.io/instance": "x"}}}});
        let old = token(json!({"scopes": ["a:b"], "secret": secret.clone()}));
        let edited = token(json!({"scopes": ["a:b", "a:c"], "secret": secret.clone()}));
        let checks = validate_token(&edited, Some(&old), NOW).expect("valid");
        assert_eq!(checks.gained_scopes, ["a:c"]);
        assert!(checks.warnings.iter().any(|told| told.contains("argoproj.io/instance")));
        let worse = token(json!({"scopes": ["a:b", "no scope"], "secret": secret.clone()}));
        assert!(validate_token(&worse, Some(&old), NOW).is_err());
        let revoked = token(json!({"scopes": ["no scope"], "revoked": true, "secret": secret}));
        assert_eq!(validate_token(&revoked, Some(&old), NOW), Ok(ClusterChecks::default()));
    }

    #[test]
    fn a_url_that_points_inside_is_denied() {
        let webhook = |url: &str| {
            let spec = json!({"url": url, "events": ["token.*"]});
            TokenWebhook::new("audit", serde_json::from_value(spec).expect("a spec"))
        };
        let policy = AddressPolicy::default();
        for (url, admitted) in [
            ("https://audit.example.com/x", true),
            ("https://93.184.215.14/", true),
            ("http://127.0.0.1:8080/", false),
            ("http://[::1]/", false),
            ("http://[::ffff:169.254.169.254]/latest/meta-data", false),
            ("http://localhost/", false),
            ("http://LOCALHOST./", false),
            ("http://a.localhost/", false),
            ("http://10.0.0.1/", false),
        ] {
            let result = validate_destination(&webhook(url), None, &policy);
            assert_eq!(result.is_ok(), admitted, "{url}: {result:?}");
            // A URL that is stored already does not block other edits.
            assert_eq!(validate_destination(&webhook(url), Some(&webhook(url)), &policy), Ok(()));
        }
        let policy =
            AddressPolicy { allow_private: true, allow: vec!["127.0.0.0/8".parse().expect("a network")] };
        for url in ["http://localhost/", "http://10.0.0.1/"] {
            assert_eq!(validate_destination(&webhook(url), None, &policy), Ok(()), "{url}");
        }
    }

    proptest! {
        /// A scope that the token did not have before is covered by the gained scopes, which are checked.
        #[test]
        fn every_gained_scope_is_checked(
            old in proptest::collection::vec("(a|b):(c|d|[*])", 1..4),
            new in proptest::collection::vec("(a|b):(c|d|[*])", 1..4),
            can in "(a|b):(c|d)",
        ) {
            let covers = |list: &[String]| any_covers(list.iter().map(String::as_str), &can);
            let checks = validate_token(&token(json!({"scopes": new})), Some(&token(json!({"scopes": old}))), NOW);
            let gained = checks.expect("valid").gained_scopes;
            prop_assert!(!covers(&new) || covers(&old) || covers(&gained));
        }
    }
}
