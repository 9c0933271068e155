//! `trace replay`, `timeline`, `explain`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use resource_actors::trace::{ReplayReport, read_trace, replay};
use sandbox_model::trace::Place;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::cli::{TimelineArgs, TraceCommand};
use crate::output::{Code, Exit, Failure, data, json as print_json};
use crate::pictures::explain::Explanation;
use crate::pictures::{chrome, page, svg};
use crate::story::{Life, Story};

/// Serves the verb.
pub(crate) fn trace(command: &TraceCommand) -> Result<(), Failure> {
    match command {
        TraceCommand::Replay { file, json } => replay_file(file, json.json),
        TraceCommand::Timeline(args) => timeline(args),
        TraceCommand::Explain { file, seq, json } => explain(file, *seq, json.json),
    }
}

fn read(file: &Path, doing: &str) -> Result<Story, Failure> {
    let what = || format!("cannot {doing} {}", file.display());
    let (header, events) = read_trace(file).map_err(|error| {
        Failure::early(Code::TRACE_READ, what(), error, "sandboxctl run --trace FILE …   # with this version")
    })?;
    Ok(Story::new(header, events))
}

fn timeline(args: &TimelineArgs) -> Result<(), Failure> {
    let story = read(&args.file, "draw")?;
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    if let Some(path) = &args.output {
        create(path, |out| page::write(&story, &name, out))?;
    }
    if let Some(path) = &args.chrome {
        create(path, |out| chrome::write(&story, out))?;
    }
    if let Some(path) = &args.svg {
        let life = match &args.sandbox {
            Some(id) => story.lives.iter().find(|life| life.sandbox == *id),
            None => story.lives.first(),
        };
        let life = life.ok_or_else(|| not_in_trace(args, &story))?;
        create(path, |out| out.write_all(svg::of_life(&story, life).as_bytes()))?;
    }
    let records: usize = story.lives.iter().map(|life| life.messages.len() + life.calls.len()).sum();
    let failed = story.lives.iter().filter(|life| life.failed_commands() > 0).count();
    let header = &story.header;
    data(&format!(
        "vmm {}, host {}: {records} messages and calls of {} sandboxes, {failed} with failures\n",
        header.vmm,
        header.host,
        story.lives.len()
    ));
    Ok(())
}

fn not_in_trace(args: &TimelineArgs, story: &Story) -> Failure {
    let wished = args.sandbox.as_ref().map_or_else(|| "any sandbox".to_owned(), |id| format!("sandbox {id}"));
    let what = format!("{} does not tell of {wished}", args.file.display());
    let known: Vec<_> = story.lives.iter().take(5).map(|life: &Life| life.sandbox.as_str()).collect();
    let why = format!("its sandboxes are: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") });
    Failure::early(Code::UNKNOWN, what, why, "--sandbox ID")
}

fn create(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<(), Failure> {
    let written = File::create(path).and_then(|file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.flush()
    });
    let what = || format!("cannot write {}", path.display());
    written.map_err(|error| Failure::early(Code::OUTPUT, what(), error, "another path"))
}

fn explain(file: &Path, seq: u64, as_json: bool) -> Result<(), Failure> {
    let story = read(file, "explain")?;
    let explained = Explanation::find(&story, seq).ok_or_else(|| {
        let why = "it tells of messages, calls and interruptions by their numbers";
        let advice = format!("sandboxctl trace timeline {} -o page.html shows the numbers", file.display());
        Failure::early(Code::RECORD, format!("{} has no record {seq} to explain", file.display()), why, advice)
    })?;
    if as_json {
        print_json(&json!(explained))
    } else {
        data(&explained.text())
    }
    Ok(())
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
}

fn replay_file(file: &Path, as_json: bool) -> Result<(), Failure> {
    let what = || format!("cannot replay {}", file.display());
    let advice = "sandboxctl run --trace FILE …   # with this version";
    let (header, events) = read_trace(file).map_err(|error| Failure::early(Code::TRACE_READ, what(), error, advice))?;
    let report = replay(&events).map_err(|error| Failure::early(Code::TRACE_READ, what(), error, advice))?;
    if as_json {
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

#[cfg(test)]
mod tests {
    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<super::Replayed<'_>>("replay.v1.json");
    }
}
