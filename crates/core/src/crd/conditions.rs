//! Conditions: their types, the reason of each, and a list that preserves their transition times.
//!
//! Types and meanings follow the Kubernetes API conventions and kstatus, so that `kubectl wait`, Flux and
//! Argo CD wait for no object for ever.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::instant::to_second;

/// The types of condition that ApiTokens and TokenWebhooks carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// The spec at `observedGeneration` is realised.
    Ready,
    /// A check with the Secret's content succeeds now.
    Active,
    /// The token is revoked for good.
    Revoked,
    /// Every verifier refuses what was revoked, or what a lock stops.
    Enforced,
    /// An overlap is open: a replaced secret still works.
    Rotating,
    /// The Secret contains the current version.
    Delivered,
    /// Work is under way (kstatus).
    Reconciling,
    /// The spec can't be realised until somebody acts (kstatus).
    Stalled,
    /// The endpoint of a TokenWebhook accepts events.
    Healthy,
    /// The endpoint of a TokenWebhook has responded with 410 Gone.
    Disabled,
}

impl ConditionType {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::Active => "Active",
            Self::Revoked => "Revoked",
            Self::Enforced => "Enforced",
            Self::Rotating => "Rotating",
            Self::Delivered => "Delivered",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
            Self::Healthy => "Healthy",
            Self::Disabled => "Disabled",
        }
    }
}

/// Why something is as it is, for programs and for people: the `reason` and `message` of a condition, or the `reason`
/// and `note` of an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// A CamelCase word that programs match on.
    pub code: &'static str,
    /// A sentence for people. Never contains a secret.
    pub message: String,
}

impl Reason {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What a condition says: true or false, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The condition's status; it is never `Unknown`.
    pub status: bool,
    pub reason: Reason,
}

impl Outcome {
    /// The condition is `True`, for this reason.
    pub fn yes(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: true, reason: Reason::new(code, message) }
    }

    /// The condition is `False`, for this reason.
    pub fn no(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: false, reason: Reason::new(code, message) }
    }
}

/// Conditions in the order in which they are set, with the transition times of the list before.
#[derive(Debug)]
pub struct Conditions<'a> {
    before: &'a [Condition],
    now: Timestamp,
    generation: Option<i64>,
    list: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Starts a new list that follows `before`.
    pub fn after(before: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Self {
        // Kubernetes stores whole seconds. A list with more than that would never equal the one that is stored.
        Self { before, now: to_second(now), generation, list: Vec::new() }
    }

    /// Adds a condition. Its transition time moves only if its status does.
    pub fn set(&mut self, type_: ConditionType, outcome: Outcome) -> &mut Self {
        let status = if outcome.status { "True" } else { "False" };
        let since = find(self.before, type_)
            .filter(|old| old.status == status)
            .map_or(Time(self.now), |old| old.last_transition_time.clone());
        self.list.push(Condition {
            type_: type_.as_str().to_owned(),
            status: status.to_owned(),
            reason: outcome.reason.code.to_owned(),
            message: outcome.reason.message,
            last_transition_time: since,
            observed_generation: self.generation,
        });
        self
    }

    /// The list, as a status has it.
    pub fn into_vec(self) -> Vec<Condition> {
        self.list
    }
}

/// The condition of a type, if the list has one.
pub fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == type_.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_equal_those_that_are_stored() {
        let now = "2026-11-01T08:00:01.123456789Z".parse().expect("a time");
        let mut conditions = Conditions::after(&[], Some(1), now);
        conditions.set(ConditionType::Ready, Outcome::yes("Ready", "all is well"));
        let list = conditions.into_vec();
        let stored = serde_json::to_string(&list).expect("JSON");
        assert_eq!(list, serde_json::from_str::<Vec<Condition>>(&stored).expect("conditions"));
    }
}
