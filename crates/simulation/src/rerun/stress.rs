//! Stress replay: the commands of a trace once more in the simulation, in a hurry, for many sandboxes
//! at once, with faults. What must hold is not the trace's replies but the rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use resource_actors::SandboxHandle;
use resource_actors::trace::{LineSink, ReplayError, events_of, file_of, replay};
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::trace::{Event, Header};
use serde_json::Value;

use super::in_virtual_time;
use super::script::{Played, Script, network, play};
use crate::fault::{FaultPlan, Mode, Site, seeded_plan};
use crate::{SimulatedHost, World};

/// How a trace is put under stress.
#[derive(Debug, Clone, PartialEq)]
pub struct Stress {
    /// Of the delays: which of what happens side by side comes first.
    pub seed: u64,
    /// Copies of the trace's sandboxes, all at once.
    pub sandboxes: usize,
    /// How many times as fast the commands come.
    pub speed: f64,
    /// Seed of the faults; none if absent.
    pub faults: Option<u64>,
}

impl Default for Stress {
    fn default() -> Self {
        Self { seed: 1, sandboxes: 1, speed: 1.0, faults: None }
    }
}

/// What a stress replay found.
#[derive(Debug, Clone)]
pub struct StressReport {
    /// Commands that were sent.
    pub commands: usize,
    /// Those that were answered with `Ok`.
    pub succeeded: usize,
    /// Faults that were planned.
    pub faults: FaultPlan,
    /// How many of them struck.
    pub struck: usize,
    /// Where each sandbox stood at the end.
    pub states: BTreeMap<SandboxId, LifecycleState>,
    /// What must not be: each is a defect.
    pub violations: Vec<String>,
    /// The trace of the run, which replays by its seed.
    pub header: Header,
    /// Its events.
    pub events: Vec<Event>,
    /// The same, as they were told.
    lines: Vec<u8>,
}

impl StressReport {
    /// The trace of the run, as a file has it.
    pub fn file(&self) -> Vec<u8> {
        file_of(&self.header, &self.lines)
    }
}

/// Faults of one run.
const FAULTS_MAX: usize = 4;
/// Clean-ups that a sandbox may need when nothing fails any more.
const CLEANUPS_MAX: usize = 3;

/// Puts a trace under stress.
///
/// # Errors
/// [`ReplayError`]: the trace is no trace of this version, or begins in the middle.
pub fn stress(events: &[Event], stress: &Stress) -> Result<StressReport, ReplayError> {
    let script = Script::of(events)?;
    let plan = plan(&script, stress)?;
    run(&script, stress, plan)
}

/// The faults of a stress, at sites that it comes to.
pub(super) fn plan(script: &Script, stress: &Stress) -> Result<FaultPlan, ReplayError> {
    let Some(seed) = stress.faults else { return Ok(FaultPlan::default()) };
    let (_, sites) = once(script, stress, FaultPlan::default())?;
    let mut plan = seeded_plan(seed, &sites, FAULTS_MAX * stress.sandboxes);
    plan.faults.retain(|fault| is_of_the_world(&fault.site, fault.mode));
    Ok(plan)
}

/// Whether a fault is the world's, and honest: one of the caller's or of our own process needs a caller
/// that plays along, and a kernel that says it did what it did not leaves something behind.
fn is_of_the_world(site: &Site, mode: Mode) -> bool {
    // Half a record is what our own death leaves.
    let is_torn = mode == Mode::Partial && ["ledger", "store"].contains(&site.port.as_str());
    let is_the_callers = matches!(mode, Mode::Interrupted | Mode::Stopped | Mode::GivenUp | Mode::Duplicate);
    !is_torn && !mode.is_crash() && !is_the_callers && mode != Mode::Lie
}

/// Runs a script with a plan of faults, and judges.
pub(super) fn run(script: &Script, stress: &Stress, plan: FaultPlan) -> Result<StressReport, ReplayError> {
    let (mut report, _) = once(script, stress, plan)?;
    report.events = events_of(&report.lines).map_err(ReplayError::Runtime)?;
    // A run without faults must replay. One with faults ends calls at their deadlines, and at such an
    // instant the trace does not say what came first.
    if report.faults.faults.is_empty() {
        let divergence = replay(&report.events)?.divergence;
        report.violations.extend(divergence.map(|divergence| format!("its own trace diverges: {divergence}")));
    }
    Ok(report)
}

fn once(script: &Script, stress: &Stress, plan: FaultPlan) -> Result<(StressReport, Vec<Site>), ReplayError> {
    let copies: Vec<_> = (0..stress.sandboxes.max(1)).map(|n| script.copy(n)).collect();
    let sink = LineSink::in_memory();
    let told = sink.clone();
    let (seed, speed, faults) = (stress.seed, stress.speed, plan.clone());
    let commands = copies.iter().flat_map(|copy| &copy.acts).filter(|act| act.command().is_some()).count();
    let (mut report, sites) = in_virtual_time(async move {
        let host = surroundings(&copies, faults);
        let before = host.world.list();
        let system = host.delayed_process(seed, told);
        let played = futures::future::join_all(copies.iter().map(|copy| play(copy, &system, speed))).await;
        let struck = host.faults.struck().len();
        host.faults.relent();
        let mut report = judge(played).await;
        let left: Vec<_> = host.world.list().into_iter().filter(|object| !before.contains(object)).collect();
        report.violations.extend(left.into_iter().map(|object| format!("left behind: {object}")));
        report.violations.extend(host.faults.oddities());
        report.struck = struck;
        (report, host.faults.visits())
    })?;
    (report.commands, report.faults) = (commands, plan);
    report.header.seed = Some(seed);
    report.header.faults = serde_json::to_value(&report.faults).ok().filter(|_| !report.faults.faults.is_empty());
    report.lines = sink.take_lines();
    Ok((report, sites))
}

/// The host that the trace shows, once for each copy.
fn surroundings(copies: &[Script], plan: FaultPlan) -> SimulatedHost {
    let world = Arc::new(World::new());
    let network = network(&world, copies.iter().map(|copy| &copy.surroundings));
    let mut host = SimulatedHost::with(world, network, plan);
    for (path, kind) in copies.iter().flat_map(|copy| &copy.surroundings.kinds) {
        host.set_kind(path, *kind);
    }
    host
}

/// Cleans up, now that nothing fails any more, and looks for what must not be.
async fn judge(played: Vec<Played>) -> StressReport {
    let mut report = StressReport {
        commands: 0,
        succeeded: 0,
        faults: FaultPlan::default(),
        struck: 0,
        states: BTreeMap::new(),
        violations: Vec::new(),
        header: Header::new("simulated", "simulated"),
        events: Vec::new(),
        lines: Vec::new(),
    };
    for one in played {
        report.violations.extend(one.problems);
        for (seq, reply) in &one.replies {
            report.succeeded += usize::from(reply.is_ok());
            if let Some(reason) = death(&reply.reply) {
                report.violations.push(format!("record {seq}, {}: an actor died: {reason}", reply.message));
            }
        }
        for (id, handle) in one.sandboxes {
            if let Err(what) = clean_up(&handle).await {
                report.violations.push(format!("sandbox {id}: {what}"));
            }
            let status = handle.status();
            if status.state != LifecycleState::Released || status.objects > 0 {
                report.violations.push(format!("sandbox {id} is {} with {} objects", status.state, status.objects));
            }
            report.states.insert(id, status.state);
        }
    }
    report
}

async fn clean_up(handle: &SandboxHandle) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..CLEANUPS_MAX {
        match handle.cleanup().await {
            Ok(report) if report.is_clean() => return Ok(()),
            Ok(report) => last = report.failed().map(|(item, error)| format!("{}: {error}", item.object)).collect(),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("its clean-up does not end well: {last}"))
}

/// The text of a panic, if a reply tells of one.
fn death(reply: &Value) -> Option<&str> {
    match reply {
        Value::Object(fields) => match fields.get("died") {
            Some(died) => died.get("reason").and_then(Value::as_str),
            None => fields.values().find_map(death),
        },
        Value::Array(items) => items.iter().find_map(death),
        _ => None,
    }
}
