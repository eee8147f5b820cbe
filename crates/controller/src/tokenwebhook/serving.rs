//! Whether events are sent for a TokenWebhook, and what prevents it.
//!
//! It depends on four facts, each of which changes without the others: whether the registry serves it, how its spec and
//! Secrets resolved, whether the endpoint has answered 410, and `spec.suspend`. What follows from them together is
//! decided here alone.

use super::target::Target;
use tokenward_core::crd::Reason;

/// What is known about the configuration of an endpoint.
#[derive(Default)]
pub(crate) struct Serving {
    /// Why the registry does not serve it.
    pub(crate) unserved: Option<Reason>,
    /// The target that last resolved. It stays, with its connections, when a later resolution fails.
    pub(crate) target: Option<Box<Target>>,
    /// Why the last resolution failed.
    pub(crate) misconfigured: Option<Reason>,
    /// The generation of the spec to which the endpoint answered 410.
    pub(crate) gone: Option<i64>,
}

/// Why events wait until a person acts. The first that applies, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked<'s> {
    /// The registry does not serve it, for this reason.
    Unserved(&'s Reason),
    /// The spec, or a Secret that it names, cannot be used.
    Misconfigured(&'s Reason),
    /// The endpoint has answered 410 to the spec of this generation.
    Gone,
    /// `spec.suspend` is true.
    Suspended,
}

impl Serving {
    /// Why nothing is sent until a person acts. `None`: nothing is in the way. `suspended`: `spec.suspend`.
    pub(crate) fn blocked(&self, suspended: bool) -> Option<Blocked<'_>> {
        let unserved = self.unserved.as_ref().map(Blocked::Unserved);
        let misconfigured = || self.misconfigured.as_ref().map(Blocked::Misconfigured);
        let gone = || self.gone.map(|_| Blocked::Gone);
        unserved.or_else(misconfigured).or_else(gone).or_else(|| suspended.then_some(Blocked::Suspended))
    }

    /// Where events are sent now. `None`: nowhere, since something is in the way, or nothing has resolved yet.
    pub(crate) fn active(&self, suspended: bool) -> Option<&Target> {
        self.target.as_deref().filter(|_| self.blocked(suspended).is_none())
    }

    /// What the conditions report as wrong with the configuration.
    pub(crate) fn problem(&self) -> Option<&Reason> {
        self.unserved.as_ref().or(self.misconfigured.as_ref())
    }

    /// Whether there was a resolution, successful or not. Before it there is nothing to report.
    pub(crate) fn is_resolved(&self) -> bool {
        self.target.is_some() || self.misconfigured.is_some()
    }
}

impl Blocked<'_> {
    /// The cause under which events that wait too long are dead-lettered.
    pub(crate) fn cause(self) -> &'static str {
        match self {
            Self::Unserved(reason) | Self::Misconfigured(reason) => reason.code,
            Self::Gone => "Disabled",
            Self::Suspended => "Suspended",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_that_applies_is_reported() {
        let (unserved, misconfigured) = (Reason::new("TooMany", "t"), Reason::new("InvalidUrl", "u"));
        for bits in 0u8..16 {
            let serving = Serving {
                unserved: (bits & 1 != 0).then(|| unserved.clone()),
                misconfigured: (bits & 2 != 0).then(|| misconfigured.clone()),
                gone: (bits & 4 != 0).then_some(1),
                target: None,
            };
            let suspended = bits & 8 != 0;
            let expected = match bits.trailing_zeros() {
                0 => Some(("TooMany", Blocked::Unserved(&unserved))),
                1 => Some(("InvalidUrl", Blocked::Misconfigured(&misconfigured))),
                2 => Some(("Disabled", Blocked::Gone)),
                3 => Some(("Suspended", Blocked::Suspended)),
                _ => None,
            };
            assert_eq!(
                serving.blocked(suspended).map(|blocked| (blocked.cause(), blocked)),
                expected,
                "{bits:04b}"
            );
            assert!(serving.active(suspended).is_none(), "there is no target");
            assert_eq!(serving.is_resolved(), bits & 2 != 0, "{bits:04b}");
        }
    }
}
