//! What a set of locks does to a secret, remembered beside it.

use std::sync::atomic::{AtomicU32, Ordering};

use super::Locks;
use crate::crd::LockAction;

const ACTION_BITS: u32 = 2;
/// After this many sets a generation is used again. What is remembered from so long ago was found out again since, unless
/// nobody has presented the secret in a billion changes of locks.
const GENERATIONS: u32 = u32::MAX >> ACTION_BITS;

/// What a set of locks does to a secret.
#[derive(Debug, Default)]
pub struct Memo(AtomicU32);

impl Memo {
    /// What these locks do, as remembered; else `find` finds it out.
    ///
    /// Whoever decides by an earlier set at the same moment remembers that one's generation, so nothing is mistaken for
    /// news, and no order between threads is needed.
    pub fn recall(&self, locks: &Locks, find: impl FnOnce() -> Option<LockAction>) -> Option<LockAction> {
        let generation = locks.generation() & GENERATIONS;
        let known = self.0.load(Ordering::Relaxed);
        if known >> ACTION_BITS == generation && known != 0 {
            return match known & ((1 << ACTION_BITS) - 1) {
                2 => Some(LockAction::Revoke),
                1 => Some(LockAction::Suspend),
                _ => None,
            };
        }
        let found = find();
        let bits = match found {
            Some(LockAction::Revoke) => 2,
            Some(LockAction::Suspend) => 1,
            None => 0,
        };
        self.0.store(generation << ACTION_BITS | bits, Ordering::Relaxed);
        found
    }
}

/// A copy remembers nothing.
impl Clone for Memo {
    fn clone(&self) -> Self {
        Self::default()
    }
}
