//! The events and the tokens that a TokenWebhook subscribes to.

use std::collections::BTreeMap;

use kube_core::labels::{Selector, SelectorExt};

use crate::crd::{EventType, TokenWebhook};

/// How many TokenWebhooks of a namespace are served, the oldest first. Each event names all that have not accepted it,
/// so this bounds the size of an ApiToken's status.
pub const MAX_SUBSCRIPTIONS: usize = 128;

/// What one TokenWebhook subscribes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    name: String,
    patterns: Vec<String>,
    selector: Selector,
}

impl Subscription {
    /// Reads it from the spec. The error is a sentence for people.
    pub fn of(webhook: &TokenWebhook) -> Result<Self, String> {
        let selector = webhook.spec.selector.clone().unwrap_or_default();
        Ok(Self {
            name: webhook.metadata.name.clone().unwrap_or_default(),
            patterns: webhook.spec.events.clone(),
            selector: selector.try_into().map_err(|error| format!("spec.selector: {error}"))?,
        })
    }

    /// A subscription that selects nothing, for a TokenWebhook whose spec is invalid. What was recorded for it before
    /// stays recorded, since its name is known.
    pub fn empty(name: &str) -> Self {
        Self { name: name.to_owned(), patterns: Vec::new(), selector: Selector::default() }
    }

    /// The name of the TokenWebhook.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it selects an event of a token with these labels.
    pub fn selects(&self, event: EventType, labels: &BTreeMap<String, String>) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern, event.as_str())) && self.selector.matches(labels)
    }
}

/// An exact name, or a prefix before a trailing wildcard.
fn matches(pattern: &str, event: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => event.starts_with(prefix),
        None => pattern == event,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

    use super::*;
    use crate::crd::TokenWebhookSpec;

    fn subscription(events: &[&str], selector: Option<LabelSelector>) -> Result<Subscription, String> {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        Subscription::of(&TokenWebhook::new(
            "hook",
            TokenWebhookSpec { events, selector, ..Default::default() },
        ))
    }

    fn labels(team: &str) -> BTreeMap<String, String> {
        [("team".to_owned(), team.to_owned())].into()
    }

    #[test]
    fn patterns_are_exact_or_end_in_a_wildcard() {
        let cases = [
            (&["token.revoked"][..], EventType::Revoked, true),
            (&["token.revoked"], EventType::Rotated, false),
            (&["token.*"], EventType::KeyRetired, true),
            (&["token.*"], EventType::Ping, false),
            (&["*"], EventType::Ping, true),
            (&["token.revoke"], EventType::Revoked, false),
            (&["token.created", "token.deleted"], EventType::Deleted, true),
        ];
        for (patterns, event, selected) in cases {
            let subscription = subscription(patterns, None).expect("a subscription");
            assert_eq!(subscription.selects(event, &BTreeMap::new()), selected, "{patterns:?} {event:?}");
        }
    }

    #[test]
    fn the_selector_matches_labels() {
        let selector = LabelSelector { match_labels: Some(labels("a")), ..Default::default() };
        let subscription = subscription(&["*"], Some(selector)).expect("a subscription");
        assert!(subscription.selects(EventType::Revoked, &labels("a")));
        assert!(!subscription.selects(EventType::Revoked, &labels("b")));
        assert!(!subscription.selects(EventType::Revoked, &BTreeMap::new()));
    }

    #[test]
    fn an_invalid_selector_is_rejected() {
        let requirement =
            LabelSelectorRequirement { key: "team".to_owned(), operator: "Perhaps".to_owned(), values: None };
        let selector = LabelSelector { match_expressions: Some(vec![requirement]), ..Default::default() };
        let error = subscription(&["*"], Some(selector)).expect_err("no selector");
        assert!(error.starts_with("spec.selector"), "{error}");
    }
}
