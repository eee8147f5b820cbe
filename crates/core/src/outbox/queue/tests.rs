//! One event after the other, of each token, whatever comes in between.

use proptest::prelude::*;

use super::*;

fn message(id: &str) -> Message {
    let time = Timestamp::UNIX_EPOCH;
    Message {
        id: id.into(),
        type_: "token.revoked".to_owned(),
        time,
        since: time,
        token_id: None,
        name: None,
        version: None,
        reason: None,
        scopes: None,
    }
}

fn waiting(key: &str, ids: &[String]) -> Waiting {
    let events = ids.iter().map(|id| (message(id).into(), vec!["hook".to_owned()])).collect();
    Waiting { key: key.into(), events, lost: BTreeMap::new() }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn a_failure_holds_up_its_own_token_only() {
    let (mut queues, start) = (DeliveryQueue::of("hook"), Instant::now());
    queues.see(&waiting("a", &ids(&["a1", "a2"])), start);
    queues.see(&waiting("b", &ids(&["b1"])), start);
    let first = queues.next(start).expect("a job");
    assert_eq!((&*first.key, &*first.message.id), ("a", "a1"));
    assert_eq!(&*queues.next(start).expect("a job").message.id, "b1");
    assert!(queues.next(start).is_none(), "a's second waits for its first");
    let later = start + Duration::from_secs(5);
    queues.failed(&first.key, "a1", later);
    queues.done(&"b".into(), "b1", start);
    assert!(queues.next(start).is_none());
    assert_eq!(queues.next_at(), Some(later));
    let again = queues.next(later).expect("a job");
    assert_eq!((&*again.message.id, again.attempts), ("a1", 1));
    queues.done(&again.key, "a1", later);
    let second = queues.next(later).expect("a job");
    assert_eq!((&*second.message.id, second.attempts), ("a2", 0));
}

#[test]
fn what_waits_for_a_person_has_an_age() {
    let (mut queues, start) = (DeliveryQueue::of("hook"), Instant::now());
    let at = |seconds| Timestamp::from_second(seconds).expect("an instant");
    assert_eq!(queues.oldest(at(60)), None);
    queues.see(&waiting("a", &ids(&["a1"])), start);
    let younger = Message { since: at(50), ..message("b1") };
    let events = vec![(younger.into(), vec!["hook".to_owned()])];
    queues.see(&Waiting { key: "b".into(), events, lost: BTreeMap::new() }, start);
    let older = |queues: &DeliveryQueue, than| {
        let jobs = queues.older(Duration::from_secs(than), at(60));
        jobs.iter().map(|job| job.message.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((queues.oldest(at(60)), older(&queues, 60)), (Some(Duration::from_secs(60)), ids(&["a1"])));
    // What is under way has its own end.
    assert_eq!(&*queues.next(start).expect("a job").message.id, "a1");
    assert_eq!((queues.oldest(at(60)), older(&queues, 11)), (Some(Duration::from_secs(10)), ids(&[])));
    queues.done(&"b".into(), "b1", start);
    assert_eq!(queues.oldest(at(60)), None);
}

#[test]
fn what_the_watch_still_shows_is_not_sent_twice() {
    let (mut queues, now) = (DeliveryQueue::of("hook"), Instant::now());
    queues.see(&waiting("a", &ids(&["a1"])), now);
    let job = queues.next(now).expect("a job");
    queues.done(&job.key, "a1", now);
    queues.see(&waiting("a", &ids(&["a1"])), now);
    assert!(queues.next(now).is_none());
    assert_eq!(queues.pending(), 0);
    queues.see(&waiting("a", &[]), now);
    assert!(queues.queues.is_empty());
}

#[test]
fn what_is_reopened_has_its_turn_again_and_before_what_follows() {
    let (mut queues, now) = (DeliveryQueue::of("hook"), Instant::now());
    queues.see(&waiting("a", &ids(&["a1", "a2"])), now);
    let first = queues.next(now).expect("a job");
    queues.done(&first.key, "a1", now);
    queues.reopen(&first.key, "a1", now);
    assert_eq!(queues.pending(), 2);
    assert_eq!(&*queues.next(now).expect("a job").message.id, "a1");
}

#[test]
fn a_token_that_goes_leaves_what_is_open() {
    let (mut queues, now) = (DeliveryQueue::of("hook"), Instant::now());
    queues.see(&waiting("a", &ids(&["a1", "a2"])), now);
    let job = queues.next(now).expect("a job");
    queues.done(&job.key, "a1", now);
    let left: Vec<_> = queues.gone(&"a".into()).into_iter().map(|message| message.id.to_string()).collect();
    assert_eq!(left, ["a2"]);
    assert_eq!((queues.pending(), queues.next(now).is_none()), (0, true));
}

#[derive(Clone, Debug)]
enum Act {
    Record(u8),
    Run,
    Finish(bool),
    /// The watch catches up with what was settled.
    Settle(u8),
    Pass(u8),
    Hurry,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0u8..3).prop_map(Act::Record),
        4 => Just(Act::Run),
        4 => any::<bool>().prop_map(Act::Finish),
        2 => (0u8..3).prop_map(Act::Settle),
        2 => (0u8..20).prop_map(Act::Pass),
        1 => Just(Act::Hurry),
    ]
}

proptest! {
    /// Each event is accepted once, in its token's order, one at a time of each token; and once nothing fails
    /// any more, all of them are.
    #[test]
    fn order_is_kept_and_nothing_is_forgotten(acts in proptest::collection::vec(act(), 0..200)) {
        let (mut queues, mut now) = (DeliveryQueue::of("hook"), Instant::now());
        let mut stored: [Vec<String>; 3] = Default::default();
        let mut recorded: [Vec<String>; 3] = Default::default();
        let mut accepted: [Vec<String>; 3] = Default::default();
        let mut running: Vec<Job> = Vec::new();
        let index = |key: &Key| key.parse::<usize>().expect("a number");
        let rest = (0..200).flat_map(|_| [Act::Pass(10), Act::Run, Act::Finish(true)]);
        for act in acts.into_iter().chain(rest) {
            match act {
                Act::Record(token) => {
                    let token = usize::from(token);
                    let id = format!("{token}-{}", recorded[token].len());
                    recorded[token].push(id.clone());
                    stored[token].push(id);
                    queues.see(&waiting(&token.to_string(), &stored[token]), now);
                }
                Act::Run => {
                    if let Some(job) = queues.next(now) {
                        prop_assert!(running.iter().all(|other| other.key != job.key), "two at once");
                        running.push(job);
                    }
                }
                Act::Finish(well) => {
                    if let Some(job) = running.pop() {
                        if well {
                            accepted[index(&job.key)].push(job.message.id.to_string());
                            queues.done(&job.key, &job.message.id, now);
                        } else {
                            queues.failed(&job.key, &job.message.id, now + Duration::from_secs(5));
                        }
                    }
                }
                Act::Settle(token) => {
                    let token = usize::from(token);
                    stored[token].retain(|id| !accepted[token].contains(id));
                    queues.see(&waiting(&token.to_string(), &stored[token]), now);
                }
                Act::Pass(seconds) => now += Duration::from_secs(seconds.into()),
                Act::Hurry => queues.make_all_due(now),
            }
            let open: usize = (0..3).map(|token| recorded[token].len() - accepted[token].len()).sum();
            prop_assert_eq!(queues.pending(), open);
        }
        prop_assert_eq!(&accepted, &recorded);
    }
}
