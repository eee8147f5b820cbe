//! The baseline: a process that uses a share of a core, and touches nothing. What the good checks lose beside it is what the
//! processor's time costs; what they lose beyond that, beside a flood that costs as much, is the verifier's own.

use std::time::{Duration, Instant};

/// Short beside a check's latency under load.
const PERIOD: Duration = Duration::from_millis(1);

/// Uses so many percent of the core, for a time.
pub fn main(percent: u32, time: Duration) {
    let start = Instant::now();
    let mut next = start;
    while start.elapsed() < time {
        let busy = PERIOD * percent.min(100) / 100;
        let begun = Instant::now();
        while begun.elapsed() < busy {
            std::hint::spin_loop();
        }
        // From now, not from when it was due: what was missed is not made up for.
        next = (next + PERIOD).max(begun + busy);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
