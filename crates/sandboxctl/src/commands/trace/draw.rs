//! `trace timeline` and `trace explain`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use resource_actors::trace::read_trace;
use serde_json::json;

use crate::cli::TimelineArgs;
use crate::output::{Code, Failure, data, json as print_json};
use crate::pictures::explain::Explanation;
use crate::pictures::{chrome, page, svg};
use crate::story::{Life, Story};

fn read(file: &Path, doing: &str) -> Result<Story, Failure> {
    let what = || format!("cannot {doing} {}", file.display());
    let (header, events) = read_trace(file).map_err(|error| {
        Failure::early(Code::TRACE_READ, what(), error, "sandboxctl run --trace FILE …   # with this version")
    })?;
    Ok(Story::new(header, events))
}

pub(super) fn timeline(args: &TimelineArgs) -> Result<(), Failure> {
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

pub(super) fn explain(file: &Path, seq: u64, as_json: bool) -> Result<(), Failure> {
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
