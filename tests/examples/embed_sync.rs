//! Embeds resource-actors in a program without an asynchronous runtime.
//!
//! The library brings the threads that its actors live on. A synchronous program only waits for
//! answers, with any executor that can block on a future.

use std::error::Error;
use std::sync::Arc;

use futures::executor::block_on;
use lifecycle_tests::simulated::{boot, config};
use resource_actors::ledger::MemoryStore;
use resource_actors::{ResourceSystem, SandboxSpec};
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::LifecycleState;
use simulation::{SimulatedFacts, World, simulated_ports};

/// Runs a sandbox and returns the states that it was seen in.
///
/// # Errors
/// The first that went wrong.
pub(crate) fn run() -> Result<Vec<LifecycleState>, Box<dyn Error>> {
    let world = Arc::new(World::new());
    let system = ResourceSystem::builder(simulated_ports(&world))
        .store(Arc::new(MemoryStore::new("/run/embedded")))
        .facts(Arc::new(SimulatedFacts::default()))
        .start()?;
    let spec = SandboxSpec { id: SandboxId::new("sync")?, config: config().into(), cgroups_path: None };
    let sandbox = block_on(system.create_sandbox(spec))?;
    let mut seen = vec![sandbox.status().state];
    block_on(boot(&sandbox))?;
    seen.push(sandbox.status().state);
    block_on(sandbox.stop())?;
    seen.push(sandbox.status().state);
    let report = block_on(sandbox.cleanup())?;
    seen.push(sandbox.status().state);
    assert!(report.is_clean(), "{report:?}");
    block_on(system.shutdown());
    Ok(seen)
}

#[cfg_attr(test, expect(dead_code, reason = "a test runs `run`"))]
fn main() -> Result<(), Box<dyn Error>> {
    println!("{:?}", run()?);
    Ok(())
}
