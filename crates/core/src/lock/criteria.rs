//! What a lock matches: a token if each criterion that is set does.

use std::collections::HashSet;

use super::facet::{self, Facet, Facets};
use super::{Subject, SubjectVersion};
use crate::crd::{LockMatch, LockSelector, LockSelectorOperator, LockSelectorRequirement};
use crate::token::KeyId;
use crate::token::scope::covers;

/// The criteria of a lock. `None` and an empty list set no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Criteria {
    /// Whether none is set, as in an object that no CEL rule has seen. Such a lock matches nothing.
    is_empty: bool,
    namespaces: Option<HashSet<String>>,
    names: Option<HashSet<String>>,
    name_prefix: String,
    token_ids: Option<HashSet<String>>,
    key_ids: Option<HashSet<KeyId>>,
    scopes: Option<Vec<String>>,
    /// All of these, of the owner.
    owner: Vec<Facet>,
    labels: Vec<Requirement>,
    issued: Issued,
}

/// The instants by which secrets are matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Issued {
    /// Those that were issued before this instant, in milliseconds since the epoch.
    Before(i64),
    /// Those of tokens that were created until this second, and those that were issued until then.
    OfTokensUntil(i64),
}

/// What holds of a label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(Vec<Facet>),
    NotIn(Vec<Facet>),
    Exists(Facet),
    DoesNotExist(Facet),
}

impl Criteria {
    /// `created_at` is the second in which the lock was created.
    pub(super) fn of(matches: &LockMatch, created_at: i64) -> Self {
        let LockMatch {
            all,
            namespaces,
            names,
            name_prefix,
            selector,
            owner,
            scopes,
            token_ids,
            key_ids,
            issued_before,
        } = matches;
        let set = |list: &Option<Vec<String>>| list.as_ref().map(|list| list.iter().cloned().collect());
        let key_ids =
            key_ids.as_ref().map(|list| list.iter().filter_map(|id| KeyId::parse(id).ok()).collect());
        let issued = match issued_before {
            // Not in the future, whatever it says.
            Some(at) => {
                Issued::Before(at.as_millisecond().min(created_at.saturating_add(1).saturating_mul(1000)))
            }
            None => Issued::OfTokensUntil(created_at),
        };
        let is_set = [
            *all == Some(true),
            namespaces.is_some(),
            names.is_some(),
            name_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty()),
            selector.as_ref().is_some_and(|selector| *selector != LockSelector::default()),
            owner.as_ref().is_some_and(|owner| facet::owned(owner).next().is_some()),
            scopes.is_some(),
            token_ids.is_some(),
            key_ids.is_some(),
            issued_before.is_some(),
        ];
        Self {
            is_empty: !is_set.contains(&true),
            namespaces: set(namespaces),
            names: set(names),
            name_prefix: name_prefix.clone().unwrap_or_default(),
            token_ids: set(token_ids),
            key_ids,
            scopes: scopes.clone(),
            owner: owner.iter().flat_map(facet::owned).collect(),
            labels: selector.as_ref().map(Requirement::all_of).unwrap_or_default(),
            issued,
        }
    }

    /// Whether the criteria match that are the same for all secrets of a token.
    pub(super) fn match_token(&self, subject: &Subject<'_>) -> bool {
        let is_in =
            |set: &Option<HashSet<String>>, item: &str| set.as_ref().is_none_or(|set| set.contains(item));
        !self.is_empty
            && is_in(&self.namespaces, subject.namespace)
            && is_in(&self.names, subject.name)
            && subject.name.starts_with(&self.name_prefix)
            && is_in(&self.token_ids, subject.token_id)
            && self.owner.iter().all(|part| subject.facets.contains(part))
            && self.labels.iter().all(|requirement| requirement.holds(subject.facets))
    }

    /// Whether the criteria match that each secret has for itself.
    pub(super) fn match_version(&self, subject: &Subject<'_>, version: &SubjectVersion<'_>) -> bool {
        let issued = match self.issued {
            Issued::Before(at) => version.issued_at.saturating_mul(1000) < at,
            Issued::OfTokensUntil(second) => subject.created_at <= second || version.issued_at <= second,
        };
        issued
            && self.key_ids.as_ref().is_none_or(|key_ids| key_ids.contains(&version.key_id))
            && self.match_scopes(version.scopes)
    }

    /// Whether they would match the first secret of a token.
    pub(super) fn match_unissued(&self, subject: &Subject<'_>, scopes: &str) -> bool {
        let created = match self.issued {
            // What will be issued is issued later.
            Issued::Before(_) => false,
            Issued::OfTokensUntil(second) => subject.created_at <= second,
        };
        created && self.key_ids.is_none() && self.match_scopes(scopes)
    }

    /// Whether something is allowed that one of the scopes allows, too.
    fn match_scopes(&self, allowed: &str) -> bool {
        let Some(scopes) = &self.scopes else { return true };
        allowed
            .split_ascii_whitespace()
            .any(|allowed| scopes.iter().any(|scope| covers(allowed, scope) || covers(scope, allowed)))
    }
}

impl Requirement {
    fn all_of(selector: &LockSelector) -> Vec<Self> {
        let LockSelector { match_labels, match_expressions } = selector;
        let labels = match_labels.iter().flatten();
        let labels = labels.map(|(key, value)| Self::In(vec![facet::label(key, value)]));
        labels.chain(match_expressions.iter().flatten().map(Self::of)).collect()
    }

    fn of(requirement: &LockSelectorRequirement) -> Self {
        let LockSelectorRequirement { key, operator, values } = requirement;
        let values = || values.iter().flatten().map(|value| facet::label(key, value)).collect();
        match operator {
            LockSelectorOperator::In => Self::In(values()),
            LockSelectorOperator::NotIn => Self::NotIn(values()),
            LockSelectorOperator::Exists => Self::Exists(facet::label(key, "")),
            LockSelectorOperator::DoesNotExist => Self::DoesNotExist(facet::label(key, "")),
        }
    }

    fn holds(&self, facets: Facets<'_>) -> bool {
        match self {
            Self::In(values) => values.iter().any(|value| facets.contains(value)),
            Self::NotIn(values) => !values.iter().any(|value| facets.contains(value)),
            Self::Exists(key) => facets.contains_key_of(key),
            Self::DoesNotExist(key) => !facets.contains_key_of(key),
        }
    }
}
