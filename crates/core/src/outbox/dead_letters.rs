//! The outbox and the dead letters in the status of a TokenWebhook.
//!
//! Pings, replays and the events of deleted ApiTokens have no ApiToken in whose outbox they could be. They are stored
//! here, and are delivered and dead-lettered like all others. Dead letters are counted, and the latest are stored for a
//! replay.

use jiff::Timestamp;

use super::events;
use super::events::NewEvent;
use super::payload::Message;
use crate::crd::{DeadLetter, EventType, StoredEvent, TokenHandle, TokenWebhookStatus};

/// The capacity of the outbox, in events. The CRD has the same bound.
const MAX_OUTBOX: usize = 64;
/// How many dead letters are stored, as in the CRD. Older ones are only counted.
const MAX_DEAD_LETTERS: usize = 64;

/// Stores an event in the outbox, unless it is there or a dead letter already. If the outbox is full, the event is
/// dead-lettered.
pub fn store(status: &mut TokenWebhookStatus, event: StoredEvent) {
    let mut known = status.outbox.iter().chain(status.dead_letters.iter().map(|letter| &letter.event));
    if known.any(|known| known.id == event.id) {
        return;
    }
    if status.outbox.len() < MAX_OUTBOX {
        status.outbox.push(event);
    } else {
        let at = event.since;
        dead_letter(status, DeadLetter { event, at, attempts: 0, cause: "Full".to_owned() });
    }
}

/// Removes an event from the outbox, because the endpoint accepted it.
pub fn accept(status: &mut TokenWebhookStatus, id: &str) {
    status.outbox.retain(|event| event.id != id);
}

/// Dead-letters an event, unless it is a dead letter already.
pub fn dead_letter(status: &mut TokenWebhookStatus, letter: DeadLetter) {
    accept(status, &letter.event.id);
    if status.dead_letters.iter().any(|known| known.event.id == letter.event.id) {
        return;
    }
    *status.dead_lettered.get_or_insert_default() += 1;
    status.dead_letters.push(letter);
    let excess = status.dead_letters.len().saturating_sub(MAX_DEAD_LETTERS);
    status.dead_letters.drain(..excess);
}

/// The form in which an event is stored in the outbox. Its age counts from now.
pub fn to_stored(message: &Message, now: Timestamp) -> StoredEvent {
    let token = message
        .name
        .clone()
        .map(|name| TokenHandle { name, token_id: message.token_id.clone().unwrap_or_default() });
    StoredEvent {
        id: message.id.to_string(),
        type_: message.type_.clone(),
        time: message.time,
        since: now,
        token,
        version: message.version,
        reason: message.reason.clone(),
        scopes: message.scopes.clone(),
    }
}

/// Stores a ping for a new TokenWebhook, and for each new value of the annotation. Returns whether it did.
pub fn handle_ping(
    status: &mut TokenWebhookStatus,
    uid: &str,
    annotation: Option<&str>,
    now: Timestamp,
) -> bool {
    let is_new = status.handled_ping.is_none();
    if !is_new && (annotation.is_none() || status.handled_ping.as_deref() == annotation) {
        return false;
    }
    status.handled_ping = Some(annotation.unwrap_or_default().to_owned());
    let ping = NewEvent { type_: EventType::Ping, version: None, reason: None };
    let id = events::id(uid, &ping, now);
    let type_ = EventType::Ping.as_str().to_owned();
    let event = StoredEvent {
        id,
        type_,
        time: now,
        since: now,
        token: None,
        version: None,
        reason: None,
        scopes: None,
    };
    store(status, event);
    true
}

/// Moves the dead letters back into the outbox for each new value of the annotation. Their age counts from now. Returns
/// whether the value was new.
pub fn handle_replay(status: &mut TokenWebhookStatus, annotation: Option<&str>, now: Timestamp) -> bool {
    if annotation.is_none() || status.handled_replay.as_deref() == annotation {
        return false;
    }
    status.handled_replay = annotation.map(str::to_owned);
    let room = MAX_OUTBOX.saturating_sub(status.outbox.len()).min(status.dead_letters.len());
    for letter in status.dead_letters.drain(..room) {
        status.outbox.push(StoredEvent { since: now, ..letter.event });
        if let Some(count) = &mut status.dead_lettered {
            *count -= 1;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("an instant")
    }

    fn event(id: &str) -> StoredEvent {
        let token = Some(TokenHandle { name: "t".to_owned(), token_id: "tok_1".to_owned() });
        let (id, type_) = (id.to_owned(), "token.deleted".to_owned());
        StoredEvent {
            id,
            type_,
            time: at(0),
            since: at(0),
            token,
            version: Some(1),
            reason: None,
            scopes: None,
        }
    }

    fn letter(id: &str) -> DeadLetter {
        DeadLetter { event: event(id), at: at(9), attempts: 3, cause: "ServerError".to_owned() }
    }

    #[test]
    fn repeated_calls_have_no_further_effect() {
        let mut status = TokenWebhookStatus::default();
        for _ in 0..2 {
            store(&mut status, event("pending"));
            store(&mut status, event("accepted"));
            dead_letter(&mut status, letter("dead"));
            store(&mut status, event("dead"));
            accept(&mut status, "accepted");
        }
        assert_eq!(status.outbox, [event("pending")]);
        assert_eq!((status.dead_lettered, status.dead_letters.len()), (Some(1), 1));
    }

    #[test]
    fn each_annotation_replays_all_dead_letters_once() {
        let mut status = TokenWebhookStatus::default();
        ["a", "b"].iter().for_each(|id| dead_letter(&mut status, letter(id)));
        assert!(!handle_replay(&mut status, None, at(20)));
        assert!(handle_replay(&mut status, Some("1"), at(20)));
        assert!(!handle_replay(&mut status, Some("1"), at(30)));
        assert_eq!(status.dead_lettered, Some(0));
        assert!(status.dead_letters.is_empty());
        let waiting: Vec<_> = status.outbox.iter().map(|e| (&*e.id, e.since)).collect();
        assert_eq!(waiting, [("a", at(20)), ("b", at(20))]);
        // One fails again, and is counted again.
        dead_letter(&mut status, letter("a"));
        accept(&mut status, "b");
        assert_eq!((status.dead_lettered, status.outbox.len()), (Some(1), 0));
    }

    #[test]
    fn events_beyond_the_bounds_are_counted() {
        let mut status = TokenWebhookStatus::default();
        (0..100).for_each(|n| store(&mut status, event(&format!("h{n}"))));
        assert_eq!(
            (status.outbox.len(), status.dead_letters.len(), status.dead_lettered),
            (MAX_OUTBOX, 36, Some(36))
        );
        (0..100).for_each(|n| dead_letter(&mut status, letter(&format!("d{n}"))));
        assert_eq!((status.dead_letters.len(), status.dead_lettered), (MAX_DEAD_LETTERS, Some(136)));
        assert!(handle_replay(&mut status, Some("1"), at(1)));
        assert_eq!(
            (status.outbox.len(), status.dead_letters.len()),
            (MAX_OUTBOX, MAX_DEAD_LETTERS),
            "no room"
        );
    }

    #[test]
    fn a_ping_is_stored_at_first_and_for_each_change() {
        let mut status = TokenWebhookStatus::default();
        let pings = [None, None, Some("1"), Some("1"), None, Some("2")];
        let sent: Vec<bool> =
            pings.iter().zip(0..).map(|(ping, n)| handle_ping(&mut status, "u", *ping, at(n))).collect();
        assert_eq!(sent, [true, false, true, false, false, true]);
        assert_eq!(status.outbox.len(), 3);
    }
}
