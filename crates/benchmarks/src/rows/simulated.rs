//! Whole lives on simulated ports: what remains is what the actors themselves cost.

use std::sync::Arc;
use std::time::Duration;

use resource_actors::ResourceSystem;
use resource_actors::ledger::MemoryStore;
use sandbox_model::trace::TraceSink;
use simulation::{SimulatedFacts, World, simulated_ports};

use super::{Row, Target, on_one_thread};
use crate::life::Life;
use crate::load::{self, Load};
use crate::{Samples, Usage, middle};

const LIVES: usize = 500;
const ROUNDS: usize = 9;
const ALIVE: usize = 10_000;
const PROBES: usize = 400;
const IDLE: Duration = Duration::from_secs(5);

/// A builder of systems on a simulated host.
pub(super) fn builder(world: &Arc<World>, sink: Option<Arc<dyn TraceSink>>) -> resource_actors::ResourceSystemBuilder {
    let builder = ResourceSystem::builder(simulated_ports(world))
        .store(Arc::new(MemoryStore::new("/run/simulated")))
        .facts(Arc::new(SimulatedFacts::default()));
    match sink {
        Some(sink) => builder.trace(sink),
        None => builder,
    }
}

/// Runs lives one after the other on one thread, and returns the CPU time that they took.
pub(super) fn some_lives(count: usize, sink: Option<Arc<dyn TraceSink>>) -> Result<Duration, String> {
    let world = Arc::new(World::new());
    let outcome = on_one_thread(|| async {
        let system = builder(&world, sink).here();
        let load = Load { sandboxes: count, at_once: 1, rate: None };
        let used = Usage::of_thread();
        let outcome = load::lives(&system, |_| Life::simulated(), load, "life").await;
        (Usage::of_thread() - used, outcome.failures)
    })?;
    match (outcome.1.first(), world.list().first()) {
        (None, None) => Ok(outcome.0),
        (Some(failure), _) => Err(failure.clone()),
        (None, Some(left)) => Err(format!("{left} was left behind")),
    }
}

pub(super) fn lives() -> Result<Vec<Row>, String> {
    let mut times = Samples::default();
    some_lives(LIVES / 10, None)?;
    for _ in 0..ROUNDS {
        times.add(some_lives(LIVES, None)?);
    }
    let rate = LIVES as f64 / times.median().as_secs_f64();
    let detail = format!("{LIVES} lives: CPU {}", times.describe());
    Ok(vec![Row::new("simulated lives per second and core", rate, "/s", Target::AtLeast(3000.0), detail)])
}

/// Starts and ends sandboxes beside those that live.
async fn probe(system: &ResourceSystem, prefix: &str) -> Result<Samples, String> {
    let load = Load { sandboxes: PROBES, at_once: 1, rate: None };
    let outcome = load::lives(system, |_| Life::simulated(), load, prefix).await;
    match outcome.failures.first() {
        None => Ok(outcome.times.starts),
        Some(failure) => Err(failure.clone()),
    }
}

pub(super) fn alive() -> Result<Vec<Row>, String> {
    let world = Arc::new(World::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let (few_system, many_system) = (
        builder(&Arc::new(World::new()), None).start().map_err(|error| error.to_string())?,
        builder(&world, None).start().map_err(|error| error.to_string())?,
    );
    let life = Life::simulated();
    let grow = |system, sandboxes, prefix| {
        let load = Load { sandboxes, at_once: 1, rate: None };
        runtime.block_on(load::start(system, |_| Life::simulated(), load, prefix, |_| {}))
    };
    let (few, _) = grow(&few_system, 10, "few");
    runtime.block_on(probe(&many_system, "warm"))?;
    let before = Usage::now();
    let (many, started) = grow(&many_system, ALIVE, "many");
    if let Some(failure) = started.failures.first() {
        return Err(failure.clone());
    }
    let grown = Usage::now();
    let memory = grown.resident.saturating_sub(before.resident) as f64 / ALIVE as f64 / 1024.0;
    #[expect(clippy::disallowed_methods, reason = "this thread serves nobody; any other wait would count as wakeups")]
    std::thread::sleep(IDLE);
    let idle = Usage::now();
    // Our own sleep is one of them.
    let wakeups = idle.wakeups.saturating_sub(grown.wakeups + 1) as f64 / IDLE.as_secs_f64();

    let (mut with_few, mut with_many, mut ratios) = (Samples::default(), Samples::default(), Vec::new());
    for round in 0..5 {
        let few = runtime.block_on(probe(&few_system, &format!("few-probe{round}")))?;
        let many = runtime.block_on(probe(&many_system, &format!("many-probe{round}")))?;
        ratios.push(many.percentile(99.0).as_secs_f64() / few.percentile(99.0).as_secs_f64().max(1e-12));
        with_few.extend(&few);
        with_many.extend(&many);
    }
    let ratio = middle(ratios);
    let ended = runtime.block_on(load::end(many, &life, 64, |_| {}));
    let few_ended = runtime.block_on(load::end(few, &life, 1, |_| {}));
    if let Some(failure) = ended.failures.first().or(few_ended.failures.first()) {
        return Err(failure.clone());
    }
    let left = world.list().len();
    Ok(vec![
        Row::new(
            "start p99, 10,000 alive / 10 alive",
            ratio,
            "",
            Target::AtMost(1.2),
            format!("{}; with 10: {}", with_many.describe(), with_few.describe()),
        ),
        Row {
            what: "resident memory for each sandbox, simulated VM and kernel included".to_owned(),
            value: memory,
            unit: "KiB",
            target: None,
            detail: format!("{ALIVE} alive; `memory` has our own share"),
        },
        Row::new(
            "threads more than before 10,000 sandboxes",
            grown.threads as f64 - before.threads as f64,
            "",
            Target::AtMost(0.0),
            format!("{} threads", grown.threads),
        ),
        Row::new("idle wake-ups, 10,000 alive", wakeups, "/s", Target::AtMost(100.0), format!("over {IDLE:?}")),
        Row::new("objects left behind", left as f64, "", Target::AtMost(0.0), format!("{ALIVE} sandboxes released")),
    ])
}
