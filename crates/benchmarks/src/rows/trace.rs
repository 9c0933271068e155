//! What recording costs, and how fast a trace replays.

use std::sync::Arc;
use std::time::Duration;

use resource_actors::ResourceSystem;
use resource_actors::trace::{TraceFile, read_trace, replay};
use sandbox_model::trace::{Header, TraceSink};
use simulation::World;
use tempfile::TempDir;

use super::simulated::some_lives;
use super::{Row, Target};
use crate::kernel::{Pods, in_private_namespaces, ports};
use crate::load::{self, Load};
use crate::{Pairs, Samples, Usage, in_turns};

const LIVES: usize = 200;
const ROUNDS: usize = 15;
/// Lives on the real kernel in one turn.
const KERNEL_LIVES: usize = 25;

/// Runs `lives` with a trace that is written to a file, which is whole in the end.
fn recorded<T>(dir: &TempDir, lives: impl FnOnce(Arc<dyn TraceSink>) -> Result<T, String>) -> Result<T, String> {
    let path = dir.path().join("trace.jsonl");
    let file = TraceFile::create(&path, Header::new("simulated", "simulated")).map_err(|error| error.to_string())?;
    let lived = lives(file.sink());
    file.finish().map_err(|error| error.to_string())?;
    lived
}

fn recorded_simulated(dir: &TempDir) -> Result<Duration, String> {
    recorded(dir, |sink| some_lives(LIVES, Some(sink)))
}

pub(super) fn recording() -> Result<Vec<Row>, String> {
    let dir = TempDir::new().map_err(|error| error.to_string())?;
    some_lives(LIVES, None)?;
    let (mut whole_on, mut whole_off) = (Samples::default(), Samples::default());
    let times = in_turns(
        ROUNDS,
        || with_cpu(&mut whole_on, || recorded_simulated(&dir)),
        || with_cpu(&mut whole_off, || some_lives(LIVES, None)),
    )?;
    let detail = format!(
        "{LIVES} simulated lives, CPU of the actors' thread: {}; off: {}; of all threads {:.1?} and {:.1?}",
        times.first.describe(),
        times.second.describe(),
        whole_on.median(),
        whole_off.median(),
    );
    let what = "recording on / off, nothing else to do";
    let mut rows = vec![Row::new(what, times.ratio, "", Target::AtMost(1.05), detail)];
    rows.extend(in_private_namespaces(|| recording_on_the_kernel(&dir))?);
    Ok(rows)
}

/// Adds the CPU time that all threads take in `body`.
fn with_cpu<T>(samples: &mut Samples, body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let used = Usage::now().cpu;
    let done = body()?;
    samples.add(Usage::now().cpu - used);
    Ok(done)
}

/// The same on the real kernel: what a runtime would feel.
fn recording_on_the_kernel(dir: &TempDir) -> Result<Vec<Row>, String> {
    let pods = Pods::make(1)?;
    let (mut on, mut off) = (Samples::default(), Samples::default());
    kernel_lives(&pods, None)?;
    let walls = in_turns(
        ROUNDS,
        || with_cpu(&mut on, || recorded(dir, |sink| kernel_lives(&pods, Some(sink)))),
        || with_cpu(&mut off, || kernel_lives(&pods, None)),
    )?;
    let cpus = Pairs::of(&on.iter().zip(off.iter()).collect::<Vec<_>>());
    let row = |what: &str, pairs: &Pairs| {
        let (on, off) = (pairs.first.describe(), pairs.second.describe());
        Row::new(what, pairs.ratio, "", Target::AtMost(1.05), format!("{KERNEL_LIVES} lives: {on}; off: {off}"))
    };
    Ok(vec![
        row("recording on / off, real kernel, CPU of all threads", &cpus),
        row("recording on / off, real kernel, wall", &walls),
    ])
}

/// Runs lives one after the other on the real kernel, and returns how long they took.
fn kernel_lives(pods: &Pods, sink: Option<Arc<dyn TraceSink>>) -> Result<Duration, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let mut builder = ResourceSystem::builder(ports(&Arc::new(World::new()))).threads(1);
    if let Some(sink) = sink {
        builder = builder.trace(sink);
    }
    let system = builder.start().map_err(|error| error.to_string())?;
    let load = Load { sandboxes: KERNEL_LIVES, at_once: 1, rate: None };
    let outcome = runtime.block_on(load::lives(&system, |place| pods.life(place), load, "recorded"));
    runtime.block_on(system.shutdown());
    match outcome.failures.first() {
        None => Ok(outcome.wall),
        Some(failure) => Err(failure.clone()),
    }
}

pub(super) fn replaying() -> Result<Vec<Row>, String> {
    let dir = TempDir::new().map_err(|error| error.to_string())?;
    recorded_simulated(&dir)?;
    let (_, events) = read_trace(&dir.path().join("trace.jsonl")).map_err(|error| error.to_string())?;
    let mut times = Samples::default();
    for _ in 0..5 {
        // All of it happens on this thread.
        let used = Usage::of_thread();
        let report = replay(&events).map_err(|error| error.to_string())?;
        times.add(Usage::of_thread() - used);
        if let Some(divergence) = report.divergence {
            return Err(format!("the replay diverged at {divergence}"));
        }
    }
    let rate = events.len() as f64 / times.median().as_secs_f64();
    let detail = format!("{} events: CPU {}", events.len(), times.describe());
    Ok(vec![Row::new("events replayed per second", rate, "/s", Target::AtLeast(100_000.0), detail)])
}
