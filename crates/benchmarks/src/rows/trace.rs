//! What recording costs, and how fast a trace replays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use resource_actors::trace::{TraceFile, read_trace, replay};
use sandbox_model::trace::Header;
use tempfile::TempDir;

use super::simulated::some_lives;
use super::{Row, Target};
use crate::{Samples, in_turns};

const LIVES: usize = 200;
const ROUNDS: usize = 15;

/// Runs lives that are recorded, and returns the CPU time that the actors' thread took.
fn recorded(dir: &TempDir) -> Result<Duration, String> {
    let path = dir.path().join("trace.jsonl");
    let file = TraceFile::create(&path, Header::new("simulated", "simulated")).map_err(|error| error.to_string())?;
    let took = some_lives(LIVES, Some(file.sink()));
    file.finish().map_err(|error| error.to_string())?;
    took
}

pub(super) fn recording() -> Result<Vec<Row>, String> {
    let dir = TempDir::new().map_err(|error| error.to_string())?;
    some_lives(LIVES, None)?;
    let times = in_turns(ROUNDS, || recorded(&dir), || some_lives(LIVES, None))?;
    let detail = format!(
        "{LIVES} simulated lives, CPU of the actors' thread: {}; off: {}",
        times.first.describe(),
        times.second.describe()
    );
    Ok(vec![Row::new("recording on / off, nothing else to do", times.ratio, "", Target::AtMost(1.05), detail)])
}

pub(super) fn replaying() -> Result<Vec<Row>, String> {
    let dir = TempDir::new().map_err(|error| error.to_string())?;
    recorded(&dir)?;
    let (_, events) = read_trace(&dir.path().join("trace.jsonl")).map_err(|error| error.to_string())?;
    let events = Arc::new(events);
    let mut times = Samples::default();
    for _ in 0..5 {
        let begun = Instant::now();
        let report = replay(&events).map_err(|error| error.to_string())?;
        times.add(begun.elapsed());
        if let Some(divergence) = report.divergence {
            return Err(format!("the replay diverged at {divergence}"));
        }
    }
    let rate = events.len() as f64 / times.median().as_secs_f64();
    let detail = format!("{} events: {}", events.len(), times.describe());
    Ok(vec![Row::new("events replayed per second", rate, "/s", Target::AtLeast(100_000.0), detail)])
}
