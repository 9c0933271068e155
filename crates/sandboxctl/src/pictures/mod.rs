//! Pictures of a trace: a page, an SVG, a file for Perfetto, an explanation in words.

pub(crate) mod chrome;
pub(crate) mod explain;
pub(crate) mod page;
pub(crate) mod svg;

use crate::story::{Outcome, Purpose};

/// How something is coloured: 0 done, 1 taken away, 2 undone, 3 failed, 4 given up or without an end.
pub(crate) fn tone(outcome: &Outcome, purpose: Purpose) -> u8 {
    match (outcome, purpose) {
        (Outcome::Failed(_), _) => 3,
        (Outcome::Open | Outcome::Dropped, _) => 4,
        (Outcome::Done | Outcome::AlreadyGone, Purpose::Undo) => 2,
        (Outcome::Done | Outcome::AlreadyGone, Purpose::TakeAway) => 1,
        (Outcome::Done | Outcome::AlreadyGone, Purpose::Build) => 0,
    }
}
