//! Seed replay: the same commands, the same seed, the same trace to the byte.

use resource_actors::trace::{LineSink, ReplayError, difference, file_of};
use sandbox_model::trace::{Event, Header};

use super::in_virtual_time;
use super::script::{Script, play};
use crate::SimulatedHost;
use crate::fault::FaultPlan;

/// What a seed replay gave.
#[derive(Debug)]
pub struct Rerun {
    /// The trace of it, as a file has it.
    pub lines: Vec<u8>,
    /// The first line that differs from the given trace: its number from 1, and both, side by side.
    pub difference: Option<(usize, String)>,
}

/// Does what `events` say was done from outside once more, with the seed and the faults of `header`.
/// `recorded` is the file.
///
/// # Errors
/// [`ReplayError`]: the trace is none of a simulation, or of another version.
pub fn rerun(header: &Header, events: &[Event], recorded: &[u8]) -> Result<Rerun, ReplayError> {
    let wrong = |what: &str| ReplayError::Record { seq: 0, what: what.to_owned() };
    let seed = header.seed.ok_or_else(|| wrong("the trace has no seed"))?;
    let plan = match &header.faults {
        None => FaultPlan::default(),
        Some(plan) => serde_json::from_value(plan.clone()).map_err(|error| wrong(&error.to_string()))?,
    };
    let script = Script::of(events)?;
    let sink = LineSink::in_memory();
    let told = sink.clone();
    in_virtual_time(async move {
        let system = SimulatedHost::new(plan).delayed_process(seed, told);
        drop(play(&script, &system, 1.0).await);
    })?;
    let lines = file_of(header, &sink.take_lines());
    let difference = (lines != recorded).then(|| first_difference(recorded, &lines));
    Ok(Rerun { lines, difference })
}

fn first_difference(recorded: &[u8], replayed: &[u8]) -> (usize, String) {
    let lines = |bytes: &[u8]| bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (recorded, replayed) = (lines(recorded), lines(replayed));
    let number = recorded.iter().zip(&replayed).take_while(|(one, other)| one == other).count();
    let value = |lines: &[Vec<u8>]| {
        let line = lines.get(number).filter(|line| !line.is_empty());
        line.and_then(|line| serde_json::from_slice(line).ok()).unwrap_or(serde_json::Value::Null)
    };
    (number + 1, difference(&value(&recorded), &value(&replayed)))
}
