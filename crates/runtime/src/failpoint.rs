//! Points at which a crash test kills the process, before and after each write. Without debug assertions, and so in every
//! release, they compile to nothing.

/// To be called right before the write that `point` names.
pub fn before(point: &str) {
    hit("before", point);
}

/// To be called right after the write that `point` names.
pub fn after(point: &str) {
    hit("after", point);
}

#[cfg(not(debug_assertions))]
fn hit(_: &str, _: &str) {}

/// Sends this process SIGKILL, if `TOKENWARD_FAILPOINT` names the place: `before:deliver`, or `before:deliver@3`
/// for its third time. SIGKILL, not an abort: nothing is flushed, released or logged, as with a lost machine.
#[cfg(debug_assertions)]
fn hit(when: &str, point: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    static HITS: AtomicU32 = AtomicU32::new(0);
    static WANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("TOKENWARD_FAILPOINT").ok());
    let Some(wanted) = &*WANTED else { return };
    let (place, nth) = wanted.split_once('@').unwrap_or((wanted, "1"));
    if place == format!("{when}:{point}")
        && nth.parse() == Ok(HITS.fetch_add(1, Ordering::SeqCst) + 1)
        && rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).is_ok()
    {
        std::thread::park();
    }
}
