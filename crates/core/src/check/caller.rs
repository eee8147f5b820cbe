//! What the token of a caller must have: a service that asks a verifier about the tokens of others.

/// The scope.
pub const SCOPE: &str = "tokens:verify";

/// The audience, which `spec.audiences` must name. A token that may be presented anywhere is presented to services that could
/// call a verifier with it.
pub const AUDIENCE: &str = "tokenward";
