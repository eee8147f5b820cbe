//! What somebody else changes back each time it is written, as a mutating policy or another controller does.
//!
//! Nothing is gained by writing it again at once, and both sides would write without end. So the same repair, of an object
//! whose spec has not changed since, waits longer each time, and the third is told to people. The token works on.

use jiff::{SignedDuration, Timestamp};

/// How long a repair waits after the last one, by how many there were in a row.
const BACKOFF: [SignedDuration; 3] =
    [SignedDuration::from_secs(1), SignedDuration::from_secs(10), SignedDuration::from_secs(60)];
/// How long every further one waits: nothing tells when a policy is taken away.
const LAST_BACKOFF: SignedDuration = SignedDuration::from_mins(5);
/// After how many repairs in a row people are told.
const TOLD_AFTER: u32 = 3;
/// A repair that holds for so long has ended the contest.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(1);
/// How long people are told after a repair, which may hold for a moment.
const TOLD_FOR: SignedDuration = SignedDuration::from_secs(60);

/// The last repairs of one object, as far as they were the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contest {
    /// What was repaired, for people.
    over: Vec<String>,
    generation: Option<i64>,
    writes: u32,
    last: Timestamp,
}

impl Contest {
    /// The record after another repair, of an object whose spec is of this generation.
    pub fn after(
        previous: Option<&Self>,
        over: Vec<String>,
        generation: Option<i64>,
        now: Timestamp,
    ) -> Self {
        let before = previous.filter(|contest| contest.is_over(&over, generation, now));
        Self { over, generation, writes: before.map_or(0, |contest| contest.writes) + 1, last: now }
    }

    /// Until when the same repair waits. `None`: it may be made now, or is another one.
    pub(super) fn holds(
        &self,
        over: &[String],
        generation: Option<i64>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let index = usize::try_from(self.writes).unwrap_or(usize::MAX).saturating_sub(1);
        let backoff = BACKOFF.get(index).copied().unwrap_or(LAST_BACKOFF);
        let until = self.last.checked_add(backoff).ok()?;
        (self.is_over(over, generation, now) && now < until).then_some(until)
    }

    /// What people are told that it is over, and until when if the last repair holds.
    pub(super) fn told(&self, now: Timestamp) -> Option<(&[String], Timestamp)> {
        let until = self.last.checked_add(TOLD_FOR).ok()?;
        (self.writes >= TOLD_AFTER && self.last <= now).then_some((&self.over, until))
    }

    fn is_over(&self, over: &[String], generation: Option<i64>, now: Timestamp) -> bool {
        // A clock that was set back must not make a repair wait.
        let is_recent = self.last <= now && now.duration_since(self.last) < FORGOTTEN_AFTER;
        is_recent && self.generation == generation && self.over == over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("an instant")
    }

    fn over(what: &str) -> Vec<String> {
        vec![what.to_owned()]
    }

    #[test]
    fn the_same_repair_waits_longer_each_time_and_is_told() {
        let mut contest = None;
        let mut now = 0;
        for (wait, told) in [(1, false), (10, false), (60, true), (300, true), (300, true)] {
            let next = Contest::after(contest.as_ref(), over("label x"), Some(1), at(now));
            assert_eq!(next.holds(&over("label x"), Some(1), at(now)), Some(at(now + wait)));
            assert_eq!(next.holds(&over("label x"), Some(1), at(now + wait)), None);
            assert_eq!(next.told(at(now)).is_some(), told, "{wait}");
            now += wait;
            contest = Some(next);
        }
    }

    #[test]
    fn another_repair_does_not_wait() {
        let contest = Contest::after(None, over("label x"), Some(1), at(0));
        assert_eq!(contest.holds(&over("label y"), Some(1), at(0)), None, "something else");
        assert_eq!(contest.holds(&over("label x"), Some(2), at(0)), None, "another spec");
        assert_eq!(contest.holds(&over("label x"), Some(1), at(-1)), None, "the clock was set back");
        for (what, generation, now) in [("label y", 1, 1), ("label x", 2, 1), ("label x", 1, 3601)] {
            let next = Contest::after(Some(&contest), over(what), Some(generation), at(now));
            assert_eq!(next.writes, 1, "{what} {generation} {now}");
        }
    }
}
