//! ApiTokens: `reconcile` observes and decides on the next step, `apply` makes it, `cache` is state that can be lost,
//! `unreadable` reports what can't be parsed.

pub mod apply;
pub mod cache;
pub mod error;
pub mod reconcile;
pub(crate) mod terminating;
mod unreadable;
