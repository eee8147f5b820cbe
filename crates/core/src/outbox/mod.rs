//! Outgoing events: recorded in the status of a token, delivered and signed as Standard Webhooks 1.0 defines it.
//!
//! Used by [`crate::lifecycle`]: `subscription` (which TokenWebhooks want an event), `events` (the outbox of an
//! ApiToken). Used by the controller: `queue` (which event is next, and when), `dead_letters` (the outbox and the dead
//! letters of a TokenWebhook), `retry` (when to retry, and what a response means), `payload`, `signature`,
//! `destination` (which addresses may be connected to).

pub mod dead_letters;
pub mod destination;
pub mod events;
pub mod payload;
pub mod queue;
pub mod retry;
pub mod signature;
pub mod subscription;
