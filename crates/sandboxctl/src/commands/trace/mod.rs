//! `trace`: replaying, comparing, reducing and drawing what `run --trace` wrote.

mod diff;
mod draw;
mod stress;

use std::collections::BTreeMap;
use std::path::Path;

use resource_actors::trace::{ReplayReport, read_trace, replay};
use sandbox_model::trace::{Event, Header, Place};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use simulation::rerun::{Rerun, rerun};

use crate::cli::{ReplayArgs, TraceCommand};
use crate::output::{Code, Exit, Failure, data, json as print_json};

/// Serves the verb.
pub(crate) fn trace(command: &TraceCommand) -> Result<(), Failure> {
    match command {
        TraceCommand::Replay(args) if stress::is_wanted(args) => stress::replay(args),
        TraceCommand::Replay(args) => replay_file(args),
        TraceCommand::Diff { one, other, all, json } => diff::diff(one, other, *all, json.json),
        TraceCommand::Timeline(args) => draw::timeline(args),
        TraceCommand::Explain { file, seq, json } => draw::explain(file, *seq, json.json),
        TraceCommand::Minimise { stress, output } => stress::minimise(stress, output.as_deref()),
    }
}

/// The trace in `file`.
pub(super) fn read(file: &Path) -> Result<(Header, Vec<Event>), Failure> {
    read_trace(file).map_err(|error| unusable(file, error))
}

pub(super) fn unusable(file: &Path, error: impl std::fmt::Display) -> Failure {
    let advice = "sandboxctl run --trace FILE …   # with this version";
    Failure::early(Code::TRACE_READ, format!("cannot replay {}", file.display()), error, advice)
}

fn diverged(what: String, why: String) -> Failure {
    let mut failure = Failure::early(Code::DIVERGED, what, why, "sandboxctl help E0602");
    failure.exit = Exit::Diverged;
    failure.documented()
}

/// What `trace replay --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct Replayed<'a> {
    /// The version of this document: 1.
    v: u32,
    /// With what it was recorded.
    vmm: &'a str,
    host: &'a str,
    events: usize,
    /// Commands that were driven again.
    commands: usize,
    /// Replies that were compared.
    replies: usize,
    /// Messages, replies and ledger records that were compared.
    outputs: usize,
    /// Events that the trace says it lacks.
    lost: u64,
    /// Commands that the trace ends before.
    cut: usize,
    /// The state of each sandbox at the end.
    states: BTreeMap<String, String>,
    /// The first difference, if there is one.
    diverged: Option<String>,
    /// Whether the trace's seed gives the same trace to the byte, if all of it was simulated.
    same_by_seed: Option<bool>,
}

fn replay_file(args: &ReplayArgs) -> Result<(), Failure> {
    let file = &args.file;
    let (header, events) = read(file)?;
    let report = replay(&events).map_err(|error| unusable(file, error))?;
    let again = again(file, &header, &events)?;
    if args.json.json {
        print_json(&json!(Replayed {
            v: 1,
            vmm: &header.vmm,
            host: &header.host,
            events: report.events,
            commands: report.commands,
            replies: report.replies,
            outputs: report.outputs,
            lost: report.lost,
            cut: report.cut,
            states: report.states.iter().map(|(id, state)| (id.to_string(), state.to_string())).collect(),
            diverged: report.divergence.as_ref().map(ToString::to_string),
            same_by_seed: again.as_ref().map(|again| again.difference.is_none()),
        }));
    } else {
        data(&render(&header, &report, again.as_ref()));
    }
    // Recorded and replayed are whole documents: they are printed above, here only the place.
    if let Some(divergence) = report.divergence {
        let Place { seq, sandbox, actor, .. } = &divergence.place;
        let why = format!("record {seq}: sandbox {sandbox}, {actor} actor, {}", divergence.what);
        return Err(diverged(format!("{} diverged", file.display()), why));
    }
    match again.and_then(|again| again.difference) {
        Some((line, _)) => {
            Err(diverged(format!("{} is not what its seed gives", file.display()), format!("line {line} differs")))
        }
        None => Ok(()),
    }
}

/// The trace once more from its seed, if all of it was simulated.
fn again(file: &Path, header: &Header, events: &[Event]) -> Result<Option<Rerun>, Failure> {
    if header.host != "simulated" || header.part > 1 || header.seed.is_none() {
        return Ok(None);
    }
    let recorded = std::fs::read(file).map_err(|error| unusable(file, error))?;
    rerun(header, events, &recorded).map(Some).map_err(|error| unusable(file, error))
}

fn render(header: &Header, report: &ReplayReport, again: Option<&Rerun>) -> String {
    let mut text = format!(
        "vmm {}, host {}: {} events, {} commands driven again, {} outputs compared\n",
        header.vmm, header.host, report.events, report.commands, report.outputs
    );
    if report.cut > 0 {
        text += &format!("the trace ends before {} commands were answered\n", report.cut);
    }
    if report.lost > 0 {
        text += &format!("the trace lacks {} events: its writer was too slow\n", report.lost);
    }
    for (sandbox, state) in &report.states {
        text += &format!("sandbox {sandbox}: {state}\n");
    }
    text += &match &report.divergence {
        Some(divergence) => format!("diverged at {divergence}\n"),
        None => "every output is the recorded one\n".to_owned(),
    };
    text + &match again.map(|again| &again.difference) {
        None => String::new(),
        Some(None) => "its seed gives the same trace to the byte\n".to_owned(),
        Some(Some((line, difference))) => format!("its seed gives another trace, from line {line} on\n{difference}\n"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<super::Replayed<'_>>("replay.v1.json");
    }
}
