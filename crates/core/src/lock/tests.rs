use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, Time};
use kube_core::labels::{Selector, SelectorExt};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::crd::{
    ClusterTokenLock, ClusterTokenLockSpec, LockMatch, LockSelector, LockSelectorOperator,
    LockSelectorRequirement, Owner, TokenLock, TokenLockSpec, TokenLockStatus,
};
use crate::proof::Confirmations;

/// When the locks of these tests are created, in seconds.
const CREATED: i64 = 1_800_000_000;

fn spec(matches: serde_json::Value, action: LockAction) -> LockSpec {
    let matches: LockMatch = serde_json::from_value(matches).expect("a match");
    LockSpec { matches, action, ..Default::default() }
}

fn at(second: i64) -> Option<Time> {
    Some(Time(Timestamp::from_second(second).expect("an instant")))
}

fn cluster_lock(matches: serde_json::Value, action: LockAction) -> Lock {
    let mut lock = ClusterTokenLock::new("lock", ClusterTokenLockSpec { lock: spec(matches, action) });
    lock.metadata.creation_timestamp = at(CREATED);
    Lock::of(&lock)
}

fn lock(namespace: &str, matches: serde_json::Value, action: LockAction) -> Lock {
    let mut lock = TokenLock::new("lock", TokenLockSpec { lock: spec(matches, action) });
    lock.metadata.namespace = Some(namespace.to_owned());
    lock.metadata.creation_timestamp = at(CREATED);
    Lock::of(&lock)
}

fn key_id() -> KeyId {
    KeyId::from_bytes([1; 16])
}

/// Whether a lock stops a secret of ns/ci-1 with these labels, created and issued so many seconds after the lock.
fn stops(lock: &Lock, labels: &BTreeMap<String, String>, created: i64, issued: i64) -> bool {
    let owner = Owner { team: Some("payments".to_owned()), contact: None };
    let facets = facets(Some(labels), Some(&owner));
    let subject = Subject {
        namespace: "ns",
        name: "ci-1",
        token_id: "tok_1",
        created_at: CREATED + created,
        facets: Facets(&facets),
    };
    let version =
        SubjectVersion { key_id: key_id(), issued_at: CREATED + issued, scopes: "orders:read audit:*" };
    lock.stops(&subject, &version)
}

#[test]
fn each_criterion_by_itself() {
    let key_id = key_id().to_string();
    let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
    for (matches, expected) in [
        (json!({"all": true}), true),
        (json!({}), false),
        (json!({"selector": {}}), false),
        (json!({"owner": {}}), false),
        (json!({"all": false}), false),
        (json!({"namespaces": ["other", "ns"]}), true),
        (json!({"namespaces": ["other"]}), false),
        (json!({"names": ["ci-1"]}), true),
        (json!({"names": ["ci"]}), false),
        (json!({"namePrefix": "ci-"}), true),
        (json!({"namePrefix": "cd-"}), false),
        (json!({"tokenIds": ["tok_1"]}), true),
        (json!({"tokenIds": ["tok_2"]}), false),
        (json!({"keyIds": [key_id]}), true),
        (json!({"keyIds": ["000000000000"]}), false),
        (json!({"keyIds": ["not one"]}), false),
        (json!({"owner": {"team": "payments"}}), true),
        (json!({"owner": {"team": "search"}}), false),
        (json!({"owner": {"team": "payments", "contact": "x"}}), false),
        (json!({"scopes": ["orders:read"]}), true),
        (json!({"scopes": ["orders:*"]}), true),
        (json!({"scopes": ["orders:write"]}), false),
        (json!({"scopes": ["audit:write"]}), true),
        (json!({"scopes": ["x:y", "audit:*"]}), true),
        (json!({"selector": {"matchLabels": {"env": "prod"}}}), true),
        (json!({"selector": {"matchLabels": {"env": "dev"}}}), false),
        (json!({"namespaces": ["ns"], "names": ["other"]}), false),
        (json!({"namespaces": ["ns"], "names": ["ci-1"], "scopes": ["audit:x"]}), true),
    ] {
        let lock = cluster_lock(matches.clone(), LockAction::Revoke);
        assert_eq!(stops(&lock, &labels, -10, -10), expected, "{matches}");
    }
}

/// In seconds from the creation of the lock.
#[test]
fn what_is_later_is_not_touched_and_what_is_restored_is() {
    let before = |seconds: i64| {
        let at = Timestamp::from_second(CREATED + seconds).expect("an instant");
        json!({"issuedBefore": at})
    };
    for (matches, created, issued, expected) in [
        (json!({"all": true}), -1, -1, true),
        (json!({"all": true}), 0, 0, true),
        (json!({"all": true}), 1, 1, false),
        // A secret that is issued later, for a token from before.
        (json!({"all": true}), -1, 1, true),
        // An object that was created again, over a secret from before.
        (json!({"all": true}), 1, -1, true),
        (before(-10), -20, -11, true),
        (before(-10), -20, -10, false),
        (before(-10), -20, -5, false),
        (before(-10), 1, -11, true),
        // In the future, it is taken for the present.
        (before(1000), -20, 0, true),
        (before(1000), 5, 5, false),
    ] {
        let lock = cluster_lock(matches.clone(), LockAction::Revoke);
        assert_eq!(stops(&lock, &BTreeMap::new(), created, issued), expected, "{matches} {created} {issued}");
    }
}

#[test]
fn a_token_lock_reaches_its_own_namespace() {
    let all = || json!({"all": true});
    let labels = BTreeMap::new();
    assert!(stops(&lock("ns", all(), LockAction::Revoke), &labels, -1, -1));
    assert!(!stops(&lock("other", all(), LockAction::Revoke), &labels, -1, -1));
    // Refused by the CRD; if it were stored, it would not reach further.
    let forged = json!({"namespaces": ["ns"]});
    assert!(!stops(&lock("other", forged, LockAction::Revoke), &labels, -1, -1));
}

#[test]
fn of_several_locks_one_that_revokes_counts() {
    let suspend = Arc::new(cluster_lock(json!({"all": true}), LockAction::Suspend));
    let revoke = Arc::new(lock("ns", json!({"all": true}), LockAction::Revoke));
    let elsewhere = Arc::new(lock("other", json!({"all": true}), LockAction::Revoke));
    let subject =
        Subject { namespace: "ns", name: "a", token_id: "", created_at: 0, facets: Facets::default() };
    let version = SubjectVersion { key_id: key_id(), issued_at: 0, scopes: "a:b" };
    let on = |locks: &[&Arc<Lock>]| {
        let locks = Locks::new(1, locks.iter().map(|lock| (*lock).clone()));
        locks.on(&subject, &version).map(|lock| lock.action())
    };
    assert_eq!(on(&[]), None);
    assert_eq!(on(&[&elsewhere]), None);
    assert_eq!(on(&[&suspend, &elsewhere]), Some(LockAction::Suspend));
    for order in [[&suspend, &revoke], [&revoke, &suspend]] {
        assert_eq!(on(&order), Some(LockAction::Revoke));
    }
}

fn requirement() -> impl Strategy<Value = LockSelectorRequirement> {
    let key = prop_oneof![Just("a"), Just("b"), Just("c")];
    let operator = prop_oneof![
        Just(LockSelectorOperator::In),
        Just(LockSelectorOperator::NotIn),
        Just(LockSelectorOperator::Exists),
        Just(LockSelectorOperator::DoesNotExist),
    ];
    let values = proptest::collection::vec("[xy]", 1..3);
    (key, operator, values).prop_map(|(key, operator, values)| LockSelectorRequirement {
        key: key.to_owned(),
        operator,
        values: Some(values),
    })
}

proptest! {
    /// A selector means what Kubernetes' own means.
    #[test]
    fn selectors_mean_what_those_of_kubernetes_mean(
        labels in proptest::collection::btree_map("[abc]", "[xy]", 0..4),
        match_labels in proptest::collection::btree_map("[ab]", "[xy]", 0..2),
        requirements in proptest::collection::vec(requirement(), 1..4),
    ) {
        let selector = LabelSelector {
            match_labels: Some(match_labels.clone()),
            match_expressions: Some(requirements.iter().map(|r| LabelSelectorRequirement {
                key: r.key.clone(),
                operator: format!("{:?}", r.operator),
                values: r.values.clone(),
            }).collect()),
        };
        let expected = Selector::try_from(selector).expect("a selector").matches(&labels);
        let selector = LockSelector { match_labels: Some(match_labels), match_expressions: Some(requirements) };
        let lock = cluster_lock(json!({ "selector": selector }), LockAction::Revoke);
        prop_assert_eq!(stops(&lock, &labels, -1, -1), expected);
    }

    /// Whatever was remembered by whichever set, the answer is that of the set that is asked.
    #[test]
    fn what_is_remembered_is_never_that_of_other_locks(
        asked in proptest::collection::vec((0u32..4, proptest::option::of(any::<bool>())), 1..20),
    ) {
        let memo = Memo::default();
        let mut of_generation = BTreeMap::new();
        for (generation, action) in asked {
            let action = action.map(|revoke| if revoke { LockAction::Revoke } else { LockAction::Suspend });
            // A set does one thing to a secret, whenever it is asked.
            let action = *of_generation.entry(generation).or_insert(action);
            let locks = Locks::new(generation, []);
            prop_assert_eq!(memo.recall(&locks, || action), action);
        }
    }
}

#[test]
fn a_status_says_what_is_still_to_be_recorded() {
    let tally = |latched, outstanding, unreadable| Tally { latched, outstanding, unreadable };
    for (action, tally, expected) in [
        (LockAction::Revoke, tally(0, 0, 0), &[("Ready", "True", "NoMatch")][..]),
        (
            LockAction::Revoke,
            tally(1, 2, 0),
            &[("Ready", "False", "Revoking"), ("Reconciling", "True", "Revoking")],
        ),
        (LockAction::Revoke, tally(3, 0, 0), &[("Ready", "True", "Revoked")]),
        (
            LockAction::Revoke,
            tally(3, 0, 1),
            &[("Ready", "False", "Unreadable"), ("Stalled", "True", "Unreadable")],
        ),
        (
            LockAction::Suspend,
            tally(0, 1, 1),
            &[("Ready", "False", "Suspending"), ("Reconciling", "True", "Suspending")],
        ),
        (LockAction::Suspend, tally(1, 0, 1), &[("Ready", "True", "Suspended")]),
    ] {
        let lock = cluster_lock(json!({"all": true}), action);
        let now = Timestamp::UNIX_EPOCH;
        let status = report(None, &lock, tally, None, Some(1), now);
        let conditions: Vec<_> = status
            .conditions
            .iter()
            .filter(|c| c.type_ != "Enforced")
            .map(|c| (&*c.type_, &*c.status, &*c.reason))
            .collect();
        assert_eq!(conditions, expected, "{action:?} {tally:?}");
        let later = Timestamp::from_second(9).expect("an instant");
        assert_eq!(report(Some(&status), &lock, tally, None, Some(1), later), status, "nothing has changed");
    }
}

#[test]
fn a_lock_is_enforced_once_all_have_confirmed_it_and_stays_so() {
    let lock = cluster_lock(json!({"all": true}), LockAction::Suspend);
    let at = |second| Timestamp::from_second(second).expect("an instant");
    let counted = |confirmed, missing: &[&str]| Confirmations {
        asked: 2,
        confirmed,
        missing: missing.iter().map(|text| (*text).to_owned()).collect(),
    };
    let enforced = |status: &TokenLockStatus| {
        let condition = status.conditions.iter().find(|c| c.type_ == "Enforced").expect("Enforced");
        (condition.status.clone(), condition.message.clone())
    };
    let tally = Tally::default();
    let first = report(None, &lock, tally, Some(&counted(1, &["b is silent"])), Some(1), at(1));
    assert_eq!(first.enforced_at, None);
    let message = "1 of 2 verifiers have confirmed it; b is silent".to_owned();
    assert_eq!(enforced(&first), ("False".to_owned(), message));
    let second = report(Some(&first), &lock, tally, Some(&counted(2, &[])), Some(1), at(2));
    assert_eq!(second.enforced_at, Some(at(2)));
    let third = report(Some(&second), &lock, tally, Some(&counted(0, &["b is silent"])), Some(1), at(3));
    assert_eq!(third, second);
}
