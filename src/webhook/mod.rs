//! Outgoing events: what a TokenWebhook is told of, signed and delivered as Standard Webhooks 1.0 defines it.
//!
//! Pure, and asked by [`crate::lifecycle`]: `subscription` (who wants to know), `outbox` (what waits in an ApiToken's
//! status). Pure, and asked by the controller: `lanes` (which event is next, and when), `ledger` (what waits in a
//! TokenWebhook's status, and what was given up), `schedule` (when to try again, and what an answer means),
//! `payload`, `sign`, `address` (where requests may go). Effects: `connect` (a socket to an address that was
//! checked), `connection` (HTTP over it) and `deliver` (one request). The tasks that tie them together are in `controller::webhooks`.

pub mod address;
pub mod connect;
mod connection;
pub mod deliver;
mod event;
pub mod lanes;
pub mod ledger;
pub mod outbox;
pub mod payload;
pub mod schedule;
pub mod sign;
pub mod subscription;

pub use event::EventType;
