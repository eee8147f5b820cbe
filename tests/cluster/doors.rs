//! placeholder
use crate::Shared;
pub async fn hostile_tokens_are_refused(_: &Shared) {}
pub async fn hostile_requests_are_refused(_: &Shared) {}
pub async fn the_challenge_follows_the_rfc(_: &Shared) {}
pub async fn public_answers_do_not_tell_revoked_from_unknown(_: &Shared) {}
