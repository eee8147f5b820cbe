//! Instants in the precision in which they are stored, so that what is decided equals what is read back.

use jiff::Timestamp;

/// Whole seconds, as Kubernetes' own times have.
pub fn to_second(instant: Timestamp) -> Timestamp {
    Timestamp::from_second(instant.as_second()).unwrap_or(instant)
}

/// Milliseconds, as the timestamps of tokenward's statuses have.
pub fn to_millisecond(instant: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(instant.as_millisecond()).unwrap_or(instant)
}
