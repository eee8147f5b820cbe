//! Tokens that are to be looked at though nothing has changed in the cluster: what an endpoint has accepted, or that a
//! TokenWebhook has come or gone.

use futures::StreamExt;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use kube::runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Token;

/// Asks for looks.
#[derive(Clone)]
pub(super) struct Nudges {
    now: mpsc::UnboundedSender<ObjectRef<Token>>,
    later: mpsc::UnboundedSender<(Instant, ObjectRef<Token>)>,
}

/// A new queue, and the tokens in it, each when its time comes.
pub(super) fn channel() -> (Nudges, BoxStream<'static, ObjectRef<Token>>) {
    let (now, at_once) = mpsc::unbounded_channel();
    let (later, in_a_while) = mpsc::unbounded_channel();
    let at_once = stream::unfold(at_once, async |mut queue| Some((queue.recv().await?, queue)));
    // The first that came is the first that is due.
    let in_a_while = stream::unfold(in_a_while, async |mut queue: mpsc::UnboundedReceiver<(Instant, _)>| {
        let (at, token) = queue.recv().await?;
        tokio::time::sleep_until(at).await;
        Some((token, queue))
    });
    (Nudges { now, later }, stream::select(at_once, in_a_while.boxed()).boxed())
}

impl Nudges {
    /// Has a token looked at.
    pub(super) fn now(&self, token: ObjectRef<Token>) {
        // Nobody takes it once the process ends.
        let _ = self.now.send(token);
    }

    /// Has a token looked at when a write for its receipts alone is worth while: any earlier look would be for nothing,
    /// and deliveries come in bursts. Who asks later must not be due earlier.
    pub(super) fn after(&self, wait: Duration, token: ObjectRef<Token>) {
        let _ = self.later.send((Instant::now() + wait, token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_waits_for_nobody_else_s_time() {
        let (nudges, mut looks) = channel();
        let (start, wait) = (Instant::now(), Duration::from_millis(300));
        nudges.after(wait, ObjectRef::new("collected"));
        nudges.now(ObjectRef::new("now"));
        assert_eq!(looks.next().await.expect("a look").name, "now");
        assert_eq!(looks.next().await.expect("a look").name, "collected");
        assert!(start.elapsed() >= wait);
    }
}
