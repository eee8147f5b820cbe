//! The endpoints that gateways ask: whether to let a request pass, and who makes it.

pub mod ext_authz;
pub mod forward_auth;
