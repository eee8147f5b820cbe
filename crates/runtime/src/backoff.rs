//! Exponential back-off, with jitter for watches.

use std::time::Duration;

/// Waits that double with each failure in a row, from `first` up to `last`.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
}

impl Backoff {
    /// A back-off from `first` up to `last`.
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last }
    }

    /// The wait after so many failures in a row. The first failure is 1.
    pub fn wait(&self, failures: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1))).min(self.last)
    }
}

/// How long a watch that failed waits before it is tried again.
///
/// The client's default grows to 30 s and more, which suits an API server that serves thousands of watches. There are
/// only a handful of ours, and a revocation is not seen while one of them is down.
const WATCH: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

/// The back-off of one watch: about 0.1 s, growing to 2 s.
#[derive(Clone, Copy, Debug, Default)]
pub struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        // Up to half of it less, so that replicas which lost the same API server do not reconnect all at once.
        Some(WATCH.wait(self.failures).mul_f64(1.0 - rand::random::<f64>() / 2.0))
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::utils::Backoff as _;

    use super::*;

    #[test]
    fn waits_double_up_to_the_last() {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let waits = [0, 1, 2, 3, 4, 40, u32::MAX].map(|failures| backoff.wait(failures).as_millis());
        assert_eq!(waits, [200, 200, 400, 800, 1000, 1000, 1000]);
    }

    #[test]
    fn the_back_off_of_a_watch_grows_and_is_reset() {
        let mut backoff = WatchBackoff::default();
        let waits: Vec<Duration> = backoff.by_ref().take(20).collect();
        assert!(waits[0] <= WATCH.first && waits[0] >= WATCH.first / 2);
        assert!(waits.iter().all(|wait| *wait <= WATCH.last) && waits[19] >= WATCH.last / 2);
        backoff.reset();
        assert!(backoff.next().is_some_and(|wait| wait <= WATCH.first));
    }
}
