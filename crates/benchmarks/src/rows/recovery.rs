//! Sandboxes that a dead process has left, released from their ledgers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use resource_actors::ResourceSystem;
use resource_actors::ledger::DirectoryStore;
use simulation::{SimulatedFacts, World, simulated_ports};
use tempfile::TempDir;

use super::{Row, Target, on_one_thread};
use crate::life::Life;
use crate::load::{self, Load};
use crate::{Samples, Usage};

const SANDBOXES: usize = 1000;
const ROUNDS: usize = 3;
/// Clean-ups under way at one time.
const AT_ONCE: usize = 64;

fn system(world: &Arc<World>, dir: &TempDir) -> ResourceSystem {
    ResourceSystem::builder(simulated_ports(world))
        .store(Arc::new(DirectoryStore::new(dir.path())))
        .state_dir(dir.path())
        .facts(Arc::new(SimulatedFacts::default()))
        .here()
}

/// Wall and CPU time of one recovery.
fn round() -> Result<(Duration, Duration), String> {
    // Where ledgers live: `/run` is a tmpfs wherever a runtime runs.
    let dir = tempfile::Builder::new().prefix("bench-recovery").tempdir_in("/dev/shm").map_err(|e| e.to_string())?;
    let world = Arc::new(World::new());
    let load = Load { sandboxes: SANDBOXES, at_once: 1, rate: None };
    let failures = on_one_thread(|| async {
        let system = system(&world, &dir);
        let (_, outcome) = load::start(&system, |_| Life::simulated(), load, "left", |_| {}).await;
        outcome.failures
    })?;
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    // The first process is gone; of its sandboxes only the ledgers and the objects are left.
    let took = on_one_thread(|| async {
        let system = system(&world, &dir);
        let (begun, used) = (Instant::now(), Usage::of_thread());
        let ids = system.list().map_err(|error| error.to_string())?;
        let releases =
            futures::stream::iter(ids).map(|id| async { system.cleanup_sandbox(&id).await.map(|r| (id, r)) });
        let mut releases = std::pin::pin!(releases.buffer_unordered(AT_ONCE));
        while let Some(released) = releases.next().await {
            let (id, report) = released.map_err(|error| error.to_string())?;
            if !report.is_clean() {
                return Err(format!("{id}: {report:?}"));
            }
        }
        Ok((begun.elapsed(), Usage::of_thread() - used))
    })??;
    match world.list().first() {
        None => Ok(took),
        Some(left) => Err(format!("{left} was left behind")),
    }
}

pub(super) fn run() -> Result<Vec<Row>, String> {
    let (mut times, mut cpu) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let (wall, used) = round()?;
        times.add(wall);
        cpu.add(used);
    }
    let detail = format!("ledgers on tmpfs, simulated kernel: {}; CPU {}", times.describe(), cpu.describe());
    let seconds = times.median().as_secs_f64();
    Ok(vec![Row::new("1,000 sandboxes released from their ledgers", seconds, "s", Target::AtMost(1.0), detail)])
}
