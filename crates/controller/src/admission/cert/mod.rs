//! The serving certificate of admission: `state` says what there is and when it is replaced, `rotator` does it.

pub mod generate;
pub mod rotator;
pub mod state;
