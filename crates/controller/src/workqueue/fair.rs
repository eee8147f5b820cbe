//! Which ApiToken is reconciled next: the namespaces have turns.
//!
//! Like the work queues of Kubernetes' own controllers, it has an object at most once, and gives it out again only after
//! the reconciliation that is under way has finished. In one queue for all, though, a namespace with thousands of
//! rotations would come before everything that changes later. Here a namespace that has something to do waits for one
//! token of each other namespace at most, and slow writes in one leave places for others. Pure: the caller has the clock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use kube::runtime::reflector::ObjectRef;
use tokio::time::Instant;

use crate::objects::Token;

/// How many tokens of a namespace are reconciled at a time.
pub(super) const MAX_RUNNING_OF_A_NAMESPACE: usize = 16;

type Key = ObjectRef<Token>;
/// When a token is due. The number distinguishes those that are due at the same instant.
type Timer = (Instant, u64);

#[derive(Default)]
pub(super) struct FairQueue {
    /// Every token that waits, is ready or is being reconciled.
    states: HashMap<Key, State>,
    namespaces: HashMap<Arc<str>, Namespace>,
    /// The namespaces that may have a token reconciled, each once.
    turns: VecDeque<Arc<str>>,
    timers: BTreeMap<Timer, Key>,
    timers_made: u64,
}

enum State {
    Waiting(Timer),
    Ready,
    Running,
    /// It has changed since its reconciliation began.
    RunningAndChanged,
}

#[derive(Default)]
struct Namespace {
    ready: VecDeque<Key>,
    running: usize,
    /// Whether it is in `turns`.
    has_turn: bool,
}

impl FairQueue {
    /// Has a token reconciled when it is its turn, and not later, if it waits for an instant.
    pub(super) fn push(&mut self, key: Key) {
        match self.states.get_mut(&key) {
            Some(State::Ready | State::RunningAndChanged) => {}
            Some(state @ State::Running) => *state = State::RunningAndChanged,
            Some(State::Waiting(timer)) => {
                self.timers.remove(timer);
                self.make_ready(key);
            }
            None => self.make_ready(key),
        }
    }

    /// The same for all tokens that are due.
    pub(super) fn push_due(&mut self, now: Instant) {
        while let Some(first) = self.timers.first_entry().filter(|first| first.key().0 <= now) {
            let key = first.remove();
            self.make_ready(key);
        }
    }

    /// When the next token is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// The token whose turn it is. [`Self::finish`] must follow.
    pub(super) fn pop(&mut self) -> Option<Key> {
        let name = self.turns.pop_front()?;
        let namespace = self.namespaces.get_mut(&name)?;
        namespace.has_turn = false;
        let key = namespace.ready.pop_front()?;
        namespace.running += 1;
        self.states.insert(key.clone(), State::Running);
        self.give_turn(&name);
        Some(key)
    }

    /// A reconciliation has finished. `again`: when the token is due next, if it does not change before.
    pub(super) fn finish(&mut self, key: Key, again: Option<Instant>) {
        let name: Arc<str> = namespace_of(&key).into();
        if let Some(namespace) = self.namespaces.get_mut(&name) {
            namespace.running = namespace.running.saturating_sub(1);
        }
        match (self.states.remove(&key), again) {
            (Some(State::RunningAndChanged), _) => self.make_ready(key),
            (_, Some(at)) => {
                let timer = (at, self.timers_made);
                self.timers_made += 1;
                self.timers.insert(timer, key.clone());
                self.states.insert(key, State::Waiting(timer));
            }
            (_, None) => {}
        }
        self.give_turn(&name);
    }

    fn make_ready(&mut self, key: Key) {
        let name = self.namespaces.get_key_value(namespace_of(&key)).map(|(name, _)| name.clone());
        let name = name.unwrap_or_else(|| namespace_of(&key).into());
        self.namespaces.entry(name.clone()).or_default().ready.push_back(key.clone());
        self.states.insert(key, State::Ready);
        self.give_turn(&name);
    }

    /// Puts a namespace at the end of the turns, if it has something to do, and forgets it if it has not.
    fn give_turn(&mut self, name: &Arc<str>) {
        let Some(namespace) = self.namespaces.get_mut(name) else { return };
        if namespace.ready.is_empty() && namespace.running == 0 {
            self.namespaces.remove(name);
        } else if !namespace.has_turn
            && !namespace.ready.is_empty()
            && namespace.running < MAX_RUNNING_OF_A_NAMESPACE
        {
            namespace.has_turn = true;
            self.turns.push_back(name.clone());
        }
    }
}

fn namespace_of(key: &Key) -> &str {
    key.namespace.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn key(namespace: u8, name: u16) -> Key {
        ObjectRef::new(&format!("token-{name}")).within(&format!("tenant-{namespace}"))
    }

    #[test]
    fn a_namespace_with_thousands_of_tokens_delays_another_by_one() {
        let mut queue = FairQueue::default();
        (0..1500).for_each(|name| queue.push(key(1, name)));
        assert_eq!(queue.pop(), Some(key(1, 0)));
        queue.push(key(2, 0));
        assert_eq!(
            [queue.pop(), queue.pop(), queue.pop()],
            [(1, 1), (2, 0), (1, 2)].map(|(n, t)| Some(key(n, t)))
        );
    }

    #[test]
    fn a_namespace_whose_writes_hang_leaves_places_for_others() {
        let mut queue = FairQueue::default();
        (0..100).for_each(|name| queue.push(key(1, name)));
        let running: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(running.len(), MAX_RUNNING_OF_A_NAMESPACE);
        queue.push(key(2, 0));
        assert_eq!([queue.pop(), queue.pop()], [Some(key(2, 0)), None]);
        queue.finish(key(1, 3), None);
        assert_eq!([queue.pop(), queue.pop()], [Some(key(1, 16)), None]);
    }

    #[test]
    fn a_change_comes_before_the_instant_and_a_running_token_is_not_given_out() {
        let (mut queue, now) = (FairQueue::default(), Instant::now());
        let (token, later) = (key(1, 1), now + Duration::from_secs(1));
        queue.push(token.clone());
        queue.push(token.clone());
        assert_eq!([queue.pop(), queue.pop()], [Some(token.clone()), None]);
        queue.finish(token.clone(), Some(later));
        queue.push_due(now);
        assert_eq!((queue.pop(), queue.next_due()), (None, Some(later)));
        queue.push(token.clone());
        assert_eq!((queue.pop(), queue.next_due()), (Some(token.clone()), None));
        queue.push(token.clone());
        assert_eq!(queue.pop(), None, "it is being reconciled");
        queue.finish(token.clone(), Some(later));
        assert_eq!((queue.pop(), queue.next_due()), (Some(token.clone()), None));
        queue.finish(token.clone(), Some(later));
        queue.push_due(later);
        assert_eq!(queue.pop(), Some(token.clone()));
        queue.finish(token, None);
        assert!(queue.states.is_empty() && queue.namespaces.is_empty() && queue.timers.is_empty());
    }

    /// What happens to a queue: a token changes, the clock goes on, the next one is taken, the nth running one finishes.
    #[derive(Clone, Copy, Debug)]
    enum Happening {
        Change(u8, u16),
        Wait(u64),
        Pop,
        Finish(usize, Option<u64>),
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            4 => (0u8..4, 0u16..24).prop_map(|(namespace, name)| Happening::Change(namespace, name)),
            1 => (0u64..20).prop_map(Happening::Wait),
            4 => Just(Happening::Pop),
            3 => (any::<usize>(), proptest::option::of(0u64..20)).prop_map(|(n, again)| Happening::Finish(n, again)),
        ]
    }

    proptest! {
        #[test]
        fn every_change_is_reconciled_once_and_nothing_is_forgotten_or_kept(
            happenings in proptest::collection::vec(happening(), 0..200)
        ) {
            let (mut queue, mut now) = (FairQueue::default(), Instant::now());
            let mut running: Vec<Key> = Vec::new();
            // What has to be reconciled, by change or by time.
            let (mut changed, mut due) = (HashSet::new(), HashMap::new());
            for happening in happenings {
                match happening {
                    Happening::Change(namespace, name) => {
                        queue.push(key(namespace, name));
                        changed.insert(key(namespace, name));
                    }
                    Happening::Wait(millis) => now += Duration::from_millis(millis),
                    Happening::Pop => {
                        queue.push_due(now);
                        if let Some(key) = queue.pop() {
                            prop_assert!(!running.contains(&key), "two at a time");
                            let was_due = due.remove(&key).is_some_and(|at| at <= now);
                            prop_assert!(changed.remove(&key) || was_due, "for no reason");
                            running.push(key);
                        }
                    }
                    Happening::Finish(_, _) if running.is_empty() => {}
                    Happening::Finish(n, again) => {
                        let key = running.remove(n % running.len());
                        let again = again.map(|millis| now + Duration::from_millis(millis));
                        if let Some(at) = again.filter(|_| !changed.contains(&key)) {
                            due.insert(key.clone(), at);
                        }
                        queue.finish(key, again);
                    }
                }
                for namespace in 0..4 {
                    let of_it = running.iter().filter(|running| running.namespace == key(namespace, 0).namespace);
                    prop_assert!(of_it.count() <= MAX_RUNNING_OF_A_NAMESPACE);
                }
            }
            // All that is left comes out.
            loop {
                running.drain(..).for_each(|key| queue.finish(key, None));
                queue.push_due(now + Duration::from_secs(1));
                let Some(key) = queue.pop() else { break };
                prop_assert!(changed.remove(&key) | due.remove(&key).is_some());
                running.push(key);
            }
            prop_assert!(changed.is_empty() && due.is_empty());
            prop_assert!(queue.states.is_empty() && queue.namespaces.is_empty() && queue.turns.is_empty());
        }
    }
}
