//! The conditions of a TokenWebhook, computed from what is known of its endpoint.

use jiff::Timestamp;

use tokenward_core::crd::{ConditionType, Conditions, Outcome, Reason, TokenWebhookStatus};
use tokenward_core::instant::to_second;
use tokenward_core::outbox::retry::Failure;

/// After this many failures in a row an endpoint is unhealthy.
const UNHEALTHY_AFTER: u32 = 3;

/// The health of an endpoint.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    /// Failures in a row.
    pub(crate) failures: u32,
    /// The last of these failures.
    failure: Option<Failure>,
    /// The condition Healthy. `None`: unknown, as there was no attempt by this process.
    healthy: Option<bool>,
    last_success: Option<Timestamp>,
    last_failure: Option<Timestamp>,
}

impl Health {
    /// The endpoint accepted an event. Returns whether the conditions change.
    pub(crate) fn succeeded(&mut self, now: Timestamp) -> bool {
        self.failures = 0;
        self.failure = None;
        // In whole seconds, so that the status changes, and is written, less often.
        self.last_success = Some(to_second(now));
        self.healthy.replace(true) != Some(true)
    }

    /// An attempt failed. Returns whether the conditions change.
    pub(crate) fn failed(&mut self, failure: Failure, now: Timestamp) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.last_failure = Some(to_second(now));
        let unhealthy = self.healthy.is_none() || self.failures >= UNHEALTHY_AFTER;
        let is_other = self.failure.as_ref().map(|failure| failure.reason.code) != Some(failure.reason.code);
        self.failure = Some(failure);
        unhealthy && (self.healthy.replace(false) != Some(false) || is_other)
    }
}

/// The input of the conditions.
pub(crate) struct View<'a> {
    pub(crate) generation: Option<i64>,
    pub(crate) problem: Option<&'a Reason>,
    pub(crate) suspended: bool,
    pub(crate) disabled: bool,
    pub(crate) health: &'a Health,
    pub(crate) pending: usize,
    pub(crate) lost: i64,
}

/// Writes the conditions and the numbers into a status.
pub(crate) fn describe(status: &mut TokenWebhookStatus, view: &View<'_>, now: Timestamp) {
    status.observed_generation = view.generation;
    status.pending = Some(i64::try_from(view.pending).unwrap_or(i64::MAX));
    status.dead_lettered.get_or_insert_default();
    status.lost = (view.lost > 0).then_some(view.lost);
    status.last_success = view.health.last_success.or(status.last_success);
    status.last_failure = view.health.last_failure.or(status.last_failure);
    let ready = ready(view);
    let before = std::mem::take(&mut status.conditions);
    let healthy = before.iter().find(|condition| condition.type_ == ConditionType::Healthy.as_str()).cloned();
    let mut conditions = Conditions::after(&before, view.generation, now);
    conditions.set(ConditionType::Ready, ready.clone());
    if let Some(outcome) = health(view.health) {
        conditions.set(ConditionType::Healthy, outcome);
    }
    if view.disabled {
        let advice = "the endpoint has answered 410 Gone, so nothing is sent; events wait. To try again, edit the spec or change the annotation tokenward.dev/ping";
        conditions.set(ConditionType::Disabled, Outcome::yes("Gone", advice));
    }
    if !ready.status {
        conditions.set(ConditionType::Stalled, Outcome { status: true, reason: ready.reason });
    }
    status.conditions = conditions.into_vec();
    // Until this process has made an attempt, the condition of the one that led before it stays.
    if view.health.healthy.is_none() {
        status.conditions.extend(healthy);
    }
}

fn ready(view: &View<'_>) -> Outcome {
    match view.problem {
        Some(problem) => Outcome { status: false, reason: problem.clone() },
        None if view.disabled => Outcome::no("Disabled", "the endpoint has answered 410 Gone"),
        None if view.suspended => {
            Outcome::yes("Suspended", "events are recorded and not sent, as spec.suspend says")
        }
        None => Outcome::yes("Ready", "events are recorded and sent"),
    }
}

fn health(health: &Health) -> Option<Outcome> {
    match (health.healthy?, &health.failure) {
        (true, _) | (false, None) => Some(Outcome::yes("Delivering", "the endpoint accepts events")),
        (false, Some(failure)) => {
            let message = format!("{}; events wait and are tried again", failure.reason.message);
            Some(Outcome::no(failure.reason.code, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Failure {
        Failure::new("ServerError", "HTTP 500")
    }

    #[test]
    fn one_failure_of_a_healthy_endpoint_does_not_change_the_conditions() {
        let (mut health, now) = (Health::default(), Timestamp::UNIX_EPOCH);
        assert!(health.succeeded(now));
        assert!(!health.succeeded(now));
        let changes: Vec<bool> = (0..5).map(|_| health.failed(failure(), now)).collect();
        assert_eq!(changes, [false, false, true, false, false]);
        assert!(health.succeeded(now));
        // One that never worked is unhealthy at once.
        assert!(Health::default().failed(failure(), now));
    }

    #[test]
    fn conditions_give_the_first_reason_that_applies() {
        let problem = Reason::new("SecretMissing", "Secret x does not exist");
        let health = Health::default();
        let mut view = View {
            generation: Some(2),
            problem: Some(&problem),
            suspended: false,
            disabled: false,
            health: &health,
            pending: 3,
            lost: 0,
        };
        let mut status = TokenWebhookStatus::default();
        let reasons = |status: &TokenWebhookStatus| {
            let texts = status.conditions.iter().map(|c| format!("{}={}/{}", c.type_, c.status, c.reason));
            texts.collect::<Vec<_>>()
        };
        describe(&mut status, &view, Timestamp::UNIX_EPOCH);
        assert_eq!(reasons(&status), ["Ready=False/SecretMissing", "Stalled=True/SecretMissing"]);
        assert_eq!((status.pending, status.dead_lettered), (Some(3), Some(0)));
        view.problem = None;
        view.disabled = true;
        describe(&mut status, &view, Timestamp::UNIX_EPOCH);
        assert_eq!(reasons(&status), ["Ready=False/Disabled", "Disabled=True/Gone", "Stalled=True/Disabled"]);
        view.disabled = false;
        let mut failing = Health::default();
        failing.failed(failure(), Timestamp::UNIX_EPOCH);
        describe(&mut status, &View { health: &failing, ..view }, Timestamp::UNIX_EPOCH);
        assert_eq!(reasons(&status), ["Ready=True/Ready", "Healthy=False/ServerError"]);
    }
}
