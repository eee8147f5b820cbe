//! How long a watch that failed waits before it is tried again: about 0.1 s, growing to 2 s.
//!
//! The client's default grows to 30 s and more, which is kind to an API server that serves thousands of watches. Of
//! ours there are a handful, and each second without them is one in which a revocation is not heard.

use std::time::Duration;

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(2);

/// The waits of one watch.
#[derive(Clone, Copy, Debug, Default)]
pub struct WatchBackoff {
    failures: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        // Up to half of it less, so that replicas which lost the same API server do not come back as one.
        Some(wait.mul_f64(1.0 - rand::random::<f64>() / 2.0))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_its_limit_and_starts_anew() {
        let mut backoff = WatchBackoff::default();
        let waits: Vec<Duration> = backoff.by_ref().take(20).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits.iter().all(|wait| *wait <= LAST) && waits[19] >= LAST / 2);
        backoff.reset();
        assert!(backoff.next().is_some_and(|wait| wait <= FIRST));
    }
}
