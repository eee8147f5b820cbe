//! Outgoing events, pure: what TokenWebhooks are told of, recorded in a token's status and signed as Standard Webhooks
//! 1.0 defines it.
//!
//! Asked by [`crate::lifecycle`]: `subscription` (who wants an event), `events` (what waits in an ApiToken's status).
//! Asked by the controller: `queue` (which event is next, and when), `dead_letters` (what waits in a TokenWebhook's
//! status, and what was dead-lettered), `retry` (when to try again, and what a response means), `payload`,
//! `signature`, `destination` (where requests may go).

pub mod dead_letters;
pub mod destination;
mod event_type;
pub mod events;
pub mod payload;
pub mod queue;
pub mod retry;
pub mod signature;
pub mod subscription;

pub use event_type::EventType;
