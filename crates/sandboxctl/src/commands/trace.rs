//! `trace replay`.

use std::path::Path;

use resource_actors::trace::{ReplayReport, read_trace, replay};
use sandbox_model::trace::Place;
use serde_json::json;

use crate::cli::TraceCommand;
use crate::output::{Code, Exit, Failure, data, json as print_json};

/// Serves the verb.
pub(crate) fn trace(command: &TraceCommand) -> Result<(), Failure> {
    let TraceCommand::Replay { file, json } = command;
    replay_file(file, json.json)
}

fn replay_file(file: &Path, as_json: bool) -> Result<(), Failure> {
    let what = || format!("cannot replay {}", file.display());
    let advice = "sandboxctl run --trace FILE …   # with this version";
    let (header, events) = read_trace(file).map_err(|error| Failure::early(Code::TRACE_READ, what(), error, advice))?;
    let report = replay(&events).map_err(|error| Failure::early(Code::TRACE_READ, what(), error, advice))?;
    if as_json {
        print_json(&json!({
            "v": 1, "vmm": header.vmm, "host": header.host,
            "events": report.events, "commands": report.commands, "replies": report.replies, "cut": report.cut,
            "states": report.states, "diverged": report.divergence.as_ref().map(ToString::to_string),
        }));
    } else {
        data(&render(&header.vmm, &header.host, &report));
    }
    let Some(divergence) = report.divergence else { return Ok(()) };
    let mut failure =
        Failure::early(Code::DIVERGED, format!("{} diverged", file.display()), "", "sandboxctl help E0602");
    failure.exit = Exit::Diverged;
    // Recorded and replayed are whole documents: they are printed above, here only the place.
    let Place { seq, sandbox, actor, .. } = &divergence.place;
    failure.why = format!("record {seq}: sandbox {sandbox}, {actor} actor, {}", divergence.what);
    Err(failure.documented())
}

fn render(vmm: &str, host: &str, report: &ReplayReport) -> String {
    let mut text = format!(
        "vmm {vmm}, host {host}: {} events, {} commands driven again, {} replies compared\n",
        report.events, report.commands, report.replies
    );
    if report.cut > 0 {
        text += &format!("the trace ends before {} commands were answered\n", report.cut);
    }
    for (sandbox, state) in &report.states {
        text += &format!("sandbox {sandbox}: {state}\n");
    }
    match &report.divergence {
        Some(divergence) => text + &format!("diverged at {divergence}\n"),
        None => text + "every reply is the recorded one\n",
    }
}
