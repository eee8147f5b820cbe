//! The serving certificate of admission: `state` decides when it is replaced, `rotator` replaces it.

pub mod generate;
pub mod rotator;
pub mod state;
