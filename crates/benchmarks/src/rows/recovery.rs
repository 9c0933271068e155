//! Sandboxes that a dead process has left: taken over, or released from their ledgers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use resource_actors::ledger::DirectoryStore;
use resource_actors::{Recovered, ResourceSystem};
use simulation::{SimulatedFacts, SimulatedVmmFactory, World, simulated_ports};
use tempfile::TempDir;

use super::{Row, Target, on_one_thread, state_dir};
use crate::life::Life;
use crate::load::{self, Load};
use crate::{Samples, Usage};

const SANDBOXES: usize = 1000;
const ROUNDS: usize = 3;

/// A world, and a state directory where ledgers live: `/run` is a tmpfs wherever a runtime runs.
struct Host {
    world: Arc<World>,
    dir: TempDir,
}

impl Host {
    fn new() -> Result<Self, String> {
        Ok(Self { world: Arc::new(World::new()), dir: state_dir("bench-recovery")? })
    }

    fn system(&self) -> ResourceSystem {
        ResourceSystem::builder(simulated_ports(&self.world))
            .store(Arc::new(DirectoryStore::new(self.dir.path())))
            .state_dir(self.dir.path())
            .facts(Arc::new(SimulatedFacts::default()))
            .here()
    }

    /// Sandboxes in use, whose process then ends: only ledgers and objects are left.
    fn leave_behind(&self) -> Result<(), String> {
        let failures = on_one_thread(|| async {
            let load = Load { sandboxes: SANDBOXES, at_once: 1, rate: None };
            load::start(&self.system(), |_| Life::simulated(), load, "left", |_| {}).await.1.failures
        })?;
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Recovers all. Wall and CPU time, and how many were taken over.
    fn recover(&self) -> Result<(Duration, Duration, usize), String> {
        on_one_thread(|| async {
            let system = self.system();
            let (begun, used) = (Instant::now(), Usage::of_thread());
            let recovered = system.recover_all().await.map_err(|error| error.to_string())?;
            let took = (begun.elapsed(), Usage::of_thread() - used);
            let mut adopted = 0;
            for (id, outcome) in &recovered {
                match outcome {
                    Ok(Recovered::Adopted(_)) => adopted += 1,
                    Ok(Recovered::Released { report, .. }) if report.is_clean() => {}
                    other => return Err(format!("{id}: {other:?}")),
                }
            }
            if recovered.len() == SANDBOXES {
                Ok((took.0, took.1, adopted))
            } else {
                Err(format!("{} sandboxes were found", recovered.len()))
            }
        })?
    }
}

fn row(what: &str, are_alive: bool) -> Result<Row, String> {
    let (mut times, mut cpu) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let host = Host::new()?;
        host.leave_behind()?;
        if !are_alive {
            let vmms = SimulatedVmmFactory::new(host.world.clone());
            (0..SANDBOXES).for_each(|index| vmms.crash(&load::name("left", index)));
        }
        let (wall, used, adopted) = host.recover()?;
        if adopted != if are_alive { SANDBOXES } else { 0 } {
            return Err(format!("{adopted} of {SANDBOXES} were taken over"));
        }
        if let Some(left) = host.world.list().first().filter(|_| !are_alive) {
            return Err(format!("{left} was left behind"));
        }
        times.add(wall);
        cpu.add(used);
    }
    let detail = format!("ledgers on tmpfs, simulated kernel: {}; CPU {}", times.describe(), cpu.describe());
    Ok(Row::new(what, times.median().as_secs_f64(), "s", Target::AtMost(1.0), detail))
}

pub(super) fn run() -> Result<Vec<Row>, String> {
    Ok(vec![
        row("1,000 sandboxes taken over from their ledgers", true)?,
        row("1,000 sandboxes whose VMs are gone released from their ledgers", false)?,
    ])
}
