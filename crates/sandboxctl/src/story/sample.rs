//! A small trace for tests: two simulated lives, the second of which fails.
//!
//! Written by `cargo run -p lifecycle-tests --example record_simulated -- 2 FILE`.

use std::path::Path;

use resource_actors::trace::read_trace;
use sandbox_model::trace::{Event, Header};

use super::Story;

/// Its header and records.
pub(crate) fn events() -> (Header, Vec<Event>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/two-lives.jsonl");
    read_trace(&path).unwrap()
}

/// What it tells.
pub(crate) fn story() -> Story {
    let (header, events) = events();
    Story::new(header, events)
}
