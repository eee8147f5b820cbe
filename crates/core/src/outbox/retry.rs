//! When a delivery is retried, and what the status code of a response means: the rules of Standard Webhooks 1.0.

use std::time::Duration;

use jiff::Timestamp;

use crate::crd::Reason;

/// The wait after each failed attempt. The last one repeats until the event is as old as `delivery.maxAge`.
const RETRY_WAITS: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(5 * 3600),
    Duration::from_secs(10 * 3600),
    Duration::from_secs(14 * 3600),
    Duration::from_secs(20 * 3600),
    Duration::from_secs(24 * 3600),
];
/// The upper bound for the Retry-After of an endpoint.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Each wait is up to this fraction shorter or longer, so that events which failed together are not retried together.
const JITTER: f64 = 0.1;

/// The retry schedule. Tests speed it up by a factor.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    scale: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self::faster(1.0)
    }
}

impl Schedule {
    /// The schedule with all waits divided by `scale`, which is ignored unless it is finite and above 0.
    pub fn faster(scale: f64) -> Self {
        Self { scale: if scale.is_finite() && scale > 0.0 { scale } else { 1.0 } }
    }

    /// How long to wait after the `attempts`-th attempt has failed. `random`, from 0 to 1, chooses the jitter;
    /// `retry_after`, the endpoint's, is a lower bound.
    pub fn wait(&self, attempts: u32, random: f64, retry_after: Option<Duration>) -> Duration {
        let at = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX).min(RETRY_WAITS.len() - 1);
        let jitter = 1.0 + JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        let wait = self.scaled(RETRY_WAITS[at].mul_f64(jitter));
        let least = retry_after.map_or(Duration::ZERO, |after| self.scaled(after.min(MAX_RETRY_AFTER)));
        wait.max(least)
    }

    /// A duration divided by the scale.
    pub fn scaled(&self, time: Duration) -> Duration {
        time.div_f64(self.scale)
    }
}

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint has accepted the event.
    Accepted,
    /// The attempt failed. It is retried until the event is too old.
    Failed(Failure),
    /// 410: the endpoint never accepts events again.
    Gone,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its code is the reason of the condition Healthy and a label of metrics. Its message contains nothing of the
    /// response body or the URL, which may be secret.
    pub reason: Reason,
    /// How long the endpoint asks to wait, by its header Retry-After.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure without a Retry-After.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { reason: Reason::new(code, message), retry_after: None }
    }
}

/// Classifies a response by its status code. `retry_after` is the header of that name.
pub fn classify_response(status: u16, retry_after: Option<&str>, now: Timestamp) -> Outcome {
    let code = match status {
        200..=299 => return Outcome::Accepted,
        410 => return Outcome::Gone,
        300..=399 => "Redirect",
        429 => "TooManyRequests",
        400..=499 => "ClientError",
        _ => "ServerError",
    };
    let message = match status {
        300..=399 => format!("HTTP {status}: redirects are not followed; name the final URL"),
        _ => format!("HTTP {status}"),
    };
    let retry_after = retry_after.and_then(|value| parse_retry_after(value, now));
    Outcome::Failed(Failure { reason: Reason::new(code, message), retry_after })
}

/// RFC 9110, section 10.2.3: seconds, or an HTTP date.
fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(at.duration_since(now).max(jiff::SignedDuration::ZERO).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_schedule_is_that_of_the_specification() {
        let schedule = Schedule::default();
        let waits: Vec<u64> = (1..=11).map(|n| schedule.wait(n, 0.5, None).as_secs()).collect();
        let hours = |h: u64| h * 3600;
        let last = hours(24);
        let expected = [5, 300, 1800, hours(2), hours(5), hours(10), hours(14), hours(20), last, last, last];
        assert_eq!(waits, expected);
    }

    #[test]
    fn retry_after_is_honoured_and_bounded() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("an instant");
        let retry_after = |status, value| match classify_response(status, Some(value), now) {
            Outcome::Failed(failure) => failure.retry_after.map(|wait| wait.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(retry_after(503, "120"), Some(120));
        assert_eq!(retry_after(429, "Sat, 21 Nov 2026 12:01:00 GMT"), Some(60));
        assert_eq!(retry_after(503, "Sat, 21 Nov 2026 11:00:00 GMT"), Some(0));
        for junk in ["", "soon", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(retry_after(503, junk), None, "{junk}");
        }
        let schedule = Schedule::default();
        let bounded = schedule.wait(1, 0.5, Some(Duration::from_secs(u64::MAX)));
        assert_eq!(bounded, MAX_RETRY_AFTER);
        assert_eq!(schedule.wait(2, 0.5, Some(Duration::ZERO)).as_secs(), 300);
    }

    #[test]
    fn responses_are_classified_by_their_status_code() {
        let now = Timestamp::UNIX_EPOCH;
        for status in [200, 202, 204, 299] {
            assert_eq!(classify_response(status, None, now), Outcome::Accepted, "{status}");
        }
        assert_eq!(classify_response(410, None, now), Outcome::Gone);
        let cases = [(301, "Redirect"), (404, "ClientError"), (429, "TooManyRequests"), (500, "ServerError")];
        for (status, code) in cases {
            assert!(
                matches!(classify_response(status, None, now), Outcome::Failed(f) if f.reason.code == code),
                "{status}"
            );
        }
    }

    proptest! {
        #[test]
        fn waits_stay_within_the_jitter_and_scale(
            attempts in 0u32..2000, random in 0.0f64..1.0, scale in 0.5f64..10_000.0,
            retry_after in proptest::option::of(any::<u64>().prop_map(Duration::from_secs)),
        ) {
            let exact = Schedule::default().wait(attempts, 0.5, None).as_secs_f64();
            let plain = Schedule::default().wait(attempts, random, None).as_secs_f64();
            prop_assert!((plain - exact).abs() <= exact * 0.1 + 1e-6);
            let scaled = Schedule::faster(scale).wait(attempts, random, None).as_secs_f64();
            prop_assert!((scaled * scale - plain).abs() < plain * 1e-3 + 1e-3);
            let delayed = Schedule::default().wait(attempts, random, retry_after);
            prop_assert!(delayed >= retry_after.unwrap_or_default().min(MAX_RETRY_AFTER));
        }

        #[test]
        fn no_scale_panics(scale: f64, attempts: u32) {
            let _ = Schedule::faster(scale.abs().clamp(1e-3, 1e9)).wait(attempts, 0.0, None);
        }
    }
}
