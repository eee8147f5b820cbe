//! What the registry sends to the worker of a TokenWebhook.

use std::sync::Arc;

use tokenward_core::crd::{Reason, StoredEvent, TokenWebhook};
use tokenward_core::outbox::queue::{Key, TokenEvents};
use tokio::sync::oneshot;

/// A message to the worker of a TokenWebhook.
pub(crate) enum Command {
    /// The TokenWebhook as it is now, and why it is not served, if it is not.
    Webhook(Arc<TokenWebhook>, Option<Reason>),
    /// The undelivered events of a token, as its outbox has them now.
    Token(Arc<TokenEvents>),
    /// A token was deleted.
    TokenGone(Key),
    /// Store these events in the TokenWebhook's own status, and confirm once they are stored. They come from a token
    /// that is about to be deleted.
    Store(Vec<StoredEvent>, oneshot::Sender<()>),
}
