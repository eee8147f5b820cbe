//! The events of each token are sent one after the other, in any interleaving with other tokens.

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

fn token_events(key: &str, ids: &[String]) -> TokenEvents {
    let events = ids.iter().map(|id| (message(id).into(), vec!["hook".to_owned()])).collect();
    TokenEvents { key: key.into(), events, lost: BTreeMap::new() }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn a_failure_delays_its_own_token_only() {
    let (mut queues, start) = (DeliveryQueue::new("hook"), Instant::now());
    queues.update(&token_events("a", &ids(&["a1", "a2"])), start);
    queues.update(&token_events("b", &ids(&["b1"])), start);
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
fn the_age_of_events_under_way_does_not_count() {
    let (mut queues, start) = (DeliveryQueue::new("hook"), Instant::now());
    let at = |seconds| Timestamp::from_second(seconds).expect("an instant");
    assert_eq!(queues.oldest_age(at(60)), None);
    queues.update(&token_events("a", &ids(&["a1"])), start);
    let younger = Message { since: at(50), ..message("b1") };
    let events = vec![(younger.into(), vec!["hook".to_owned()])];
    queues.update(&TokenEvents { key: "b".into(), events, lost: BTreeMap::new() }, start);
    let of_age = |queues: &DeliveryQueue, seconds| {
        let jobs = queues.events_of_age(Duration::from_secs(seconds), at(60));
        jobs.iter().map(|job| job.message.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        (queues.oldest_age(at(60)), of_age(&queues, 60)),
        (Some(Duration::from_secs(60)), ids(&["a1"]))
    );
    // The result of an attempt under way decides about its event.
    assert_eq!(&*queues.next(start).expect("a job").message.id, "a1");
    assert_eq!((queues.oldest_age(at(60)), of_age(&queues, 11)), (Some(Duration::from_secs(10)), ids(&[])));
    queues.done(&"b".into(), "b1", start);
    assert_eq!(queues.oldest_age(at(60)), None);
}

#[test]
fn an_accepted_event_that_the_watch_still_shows_is_not_sent_again() {
    let (mut queues, now) = (DeliveryQueue::new("hook"), Instant::now());
    queues.update(&token_events("a", &ids(&["a1"])), now);
    let job = queues.next(now).expect("a job");
    queues.done(&job.key, "a1", now);
    queues.update(&token_events("a", &ids(&["a1"])), now);
    assert!(queues.next(now).is_none());
    assert_eq!(queues.pending(), 0);
    queues.update(&token_events("a", &[]), now);
    assert!(queues.queues.is_empty());
}

#[test]
fn only_waiting_queues_can_be_made_due() {
    let (mut queues, now) = (DeliveryQueue::new("hook"), Instant::now());
    for key in ["waiting", "under way", "other"] {
        queues.update(&token_events(key, &ids(&[key])), now);
    }
    let later = now + Duration::from_secs(300);
    while let Some(job) = queues.next(now) {
        if &*job.key != "under way" {
            queues.failed(&job.key, &job.message.id, later);
        }
    }
    let keys: [Key; 3] = ["waiting".into(), "under way".into(), "unknown".into()];
    queues.make_due(&keys, now);
    assert_eq!(queues.next(now).map(|job| job.message.id.to_string()), Some("waiting".to_owned()));
    assert!(queues.next(now).is_none());
}

#[test]
fn a_reopened_event_is_sent_again_before_later_ones() {
    let (mut queues, now) = (DeliveryQueue::new("hook"), Instant::now());
    queues.update(&token_events("a", &ids(&["a1", "a2"])), now);
    let first = queues.next(now).expect("a job");
    queues.done(&first.key, "a1", now);
    queues.reopen(&first.key, "a1", now);
    assert_eq!(queues.pending(), 2);
    assert_eq!(&*queues.next(now).expect("a job").message.id, "a1");
}

#[test]
fn removing_a_token_returns_its_open_events() {
    let (mut queues, now) = (DeliveryQueue::new("hook"), Instant::now());
    queues.update(&token_events("a", &ids(&["a1", "a2"])), now);
    let job = queues.next(now).expect("a job");
    queues.done(&job.key, "a1", now);
    let left: Vec<_> =
        queues.remove_token(&"a".into()).into_iter().map(|message| message.id.to_string()).collect();
    assert_eq!(left, ["a2"]);
    assert_eq!((queues.pending(), queues.next(now).is_none()), (0, true));
}

#[derive(Clone, Debug)]
enum Act {
    Record(u8),
    Start,
    Finish(bool),
    /// The watch shows that accepted events were removed.
    CatchUp(u8),
    Wait(u8),
    MakeAllDue,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0u8..3).prop_map(Act::Record),
        4 => Just(Act::Start),
        4 => any::<bool>().prop_map(Act::Finish),
        2 => (0u8..3).prop_map(Act::CatchUp),
        2 => (0u8..20).prop_map(Act::Wait),
        1 => Just(Act::MakeAllDue),
    ]
}

proptest! {
    /// Each event is accepted once, in its token's order, one at a time of each token; and once nothing fails
    /// any more, all of them are.
    #[test]
    fn all_events_are_accepted_once_and_in_order(acts in proptest::collection::vec(act(), 0..200)) {
        let (mut queues, mut now) = (DeliveryQueue::new("hook"), Instant::now());
        let mut stored: [Vec<String>; 3] = Default::default();
        let mut recorded: [Vec<String>; 3] = Default::default();
        let mut accepted: [Vec<String>; 3] = Default::default();
        let mut running: Vec<Job> = Vec::new();
        let index = |key: &Key| key.parse::<usize>().expect("a number");
        let rest = (0..200).flat_map(|_| [Act::Wait(10), Act::Start, Act::Finish(true)]);
        for act in acts.into_iter().chain(rest) {
            match act {
                Act::Record(token) => {
                    let token = usize::from(token);
                    let id = format!("{token}-{}", recorded[token].len());
                    recorded[token].push(id.clone());
                    stored[token].push(id);
                    queues.update(&token_events(&token.to_string(), &stored[token]), now);
                }
                Act::Start => {
                    if let Some(job) = queues.next(now) {
                        prop_assert!(running.iter().all(|other| other.key != job.key), "two at once");
                        running.push(job);
                    }
                }
                Act::Finish(accept) => {
                    if let Some(job) = running.pop() {
                        if accept {
                            accepted[index(&job.key)].push(job.message.id.to_string());
                            queues.done(&job.key, &job.message.id, now);
                        } else {
                            queues.failed(&job.key, &job.message.id, now + Duration::from_secs(5));
                        }
                    }
                }
                Act::CatchUp(token) => {
                    let token = usize::from(token);
                    stored[token].retain(|id| !accepted[token].contains(id));
                    queues.update(&token_events(&token.to_string(), &stored[token]), now);
                }
                Act::Wait(seconds) => now += Duration::from_secs(seconds.into()),
                Act::MakeAllDue => queues.make_all_due(now),
            }
            let open: usize = (0..3).map(|token| recorded[token].len() - accepted[token].len()).sum();
            prop_assert_eq!(queues.pending(), open);
        }
        prop_assert_eq!(&accepted, &recorded);
    }
}
