//! Why a TokenWebhook cannot be served.

/// Why a TokenWebhook cannot be served, as its condition reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// One CamelCase word.
    pub(crate) reason: &'static str,
    /// A sentence that says what to do. Never contains a URL or a key.
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}
