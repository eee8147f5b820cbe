//! What is reported of an ApiToken that can't be read: one that the API server stored for the CRD of another version of
//! tokenward. The conditions that it has are of a time when it could be read, and must not go on saying that it works.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::crd::{ConditionType, Conditions, Outcome, Phase, find_condition};

/// The conditions and the phase. `error`: why the object can't be read. Verifiers read less of it, and may or may not be able
/// to: what is not known is not reported as working. A revocation that was recorded stays recorded.
pub fn describe_unreadable(
    before: &[Condition],
    generation: Option<i64>,
    error: &str,
    now: Timestamp,
) -> (Vec<Condition>, Phase) {
    let message = format!(
        "the ApiToken can't be read: {error}; correct it, or install the controller and the CRDs of one version"
    );
    let mut conditions = Conditions::after(before, generation, now);
    conditions.set(ConditionType::Ready, Outcome::no("Unreadable", message.clone()));
    conditions.set(
        ConditionType::Active,
        Outcome::no(
            "Unreadable",
            "whether a check succeeds is not known: the controller can't read the ApiToken",
        ),
    );
    let revoked = find_condition(before, ConditionType::Revoked).filter(|revoked| revoked.status == "True");
    if revoked.is_some() {
        conditions.set(ConditionType::Revoked, Outcome::yes("Enforced", "revoked for good, and unreadable"));
    }
    conditions.set(ConditionType::Stalled, Outcome::yes("Unreadable", message));
    (conditions.into_vec(), if revoked.is_some() { Phase::Revoked } else { Phase::Failed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_active_and_a_revocation_stays() {
        let now = Timestamp::UNIX_EPOCH;
        let said = |before: &[Condition]| {
            let (conditions, phase) = describe_unreadable(before, Some(2), "spec.x: no number", now);
            let texts = conditions.iter().map(|c| format!("{}={} {}", c.type_, c.status, c.reason));
            (texts.collect::<Vec<_>>(), phase, conditions)
        };
        let mut active = Conditions::after(&[], Some(1), now);
        active.set(ConditionType::Ready, Outcome::yes("Active", "works"));
        active.set(ConditionType::Active, Outcome::yes("Active", "works"));
        let expected = ["Ready=False Unreadable", "Active=False Unreadable", "Stalled=True Unreadable"];
        let (texts, phase, again) = said(&active.into_vec());
        assert_eq!((texts.as_slice(), phase), (&expected.map(String::from)[..], Phase::Failed));
        assert!(again[2].message.contains("spec.x: no number; correct it"), "{}", again[2].message);
        assert_eq!(said(&again).2, again, "nothing to write again");
        let mut revoked = Conditions::after(&[], Some(1), now);
        revoked.set(ConditionType::Revoked, Outcome::yes("Enforced", "revoked"));
        let (texts, phase, _) = said(&revoked.into_vec());
        assert_eq!((texts[2].as_str(), phase), ("Revoked=True Enforced", Phase::Revoked));
    }
}
