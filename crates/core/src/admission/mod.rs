//! Admission, pure: the rules that CEL cannot state, since they need more than the object itself.

pub mod grants;
pub mod preview;
pub mod rules;
