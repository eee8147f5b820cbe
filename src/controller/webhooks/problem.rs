//! Why a TokenWebhook can't be served.

/// Why a TokenWebhook can't be served, as its condition tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// One CamelCase word.
    pub(super) reason: &'static str,
    /// A sentence that says what to do. Never holds a URL or a key.
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}
