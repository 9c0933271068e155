//! I17, I18, I26: requests and replies.

use sandbox_model::trace::Event;

use super::{Check, Memory, Scene};

/// The checks of this file.
pub(super) const CHECKS: &[Check] = &[
    Check { id: "I17", says: "a request has one reply", look: one_reply },
    Check { id: "I26", says: "an actor takes one message at a time", look: one_at_a_time },
];

/// I17: each message that was taken is answered exactly once.
fn one_reply(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    match scene.event {
        Event::Received { place, message, .. } => {
            memory.unanswered.insert(place.seq, (place.actor, message.clone()));
            Ok(())
        }
        Event::Replied { place, message, .. } => {
            let request = place.cause.unwrap_or_default();
            let was_open = memory.unanswered.remove(&request).is_some();
            if was_open && memory.answered.insert(request) {
                return Ok(());
            }
            Err(format!("{} answers {message} (record {request}) a second time", place.actor))
        }
        _ => Ok(()),
    }
}

/// I26 (and rule 2): no message is taken before the one before it was answered.
fn one_at_a_time(scene: &Scene<'_>, memory: &mut Memory) -> Result<(), String> {
    let Event::Received { place, message, .. } = scene.event else { return Ok(()) };
    let open = memory.unanswered.iter().find(|(seq, (actor, _))| *actor == place.actor && **seq != place.seq);
    match open {
        Some((_, (_, other))) => Err(format!("{} takes {message} while it serves {other}", place.actor)),
        None => Ok(()),
    }
}
