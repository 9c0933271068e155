//! Embeds resource-actors in a plain multi-threaded tokio program.
//!
//! The actors live on threads of their own; the handle is used from tasks of the program's runtime.
//! The ports are simulated here, so the example runs anywhere: a runtime puts the real ones in.

use std::error::Error;
use std::sync::Arc;

use lifecycle_tests::simulated::{add_container, boot, config};
use resource_actors::ledger::MemoryStore;
use resource_actors::{ResourceSystem, SandboxSpec};
use sandbox_model::SandboxId;
use simulation::{SimulatedFacts, World, simulated_ports};

/// Runs four sandboxes at once and returns how many were released cleanly.
///
/// # Errors
/// The first that went wrong.
pub(crate) fn run() -> Result<usize, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let world = Arc::new(World::new());
        let system = ResourceSystem::builder(simulated_ports(&world))
            .store(Arc::new(MemoryStore::new("/run/embedded")))
            .facts(Arc::new(SimulatedFacts::default()))
            .threads(2)
            .start()?;
        let mut tasks = Vec::new();
        for n in 0..4 {
            let id = SandboxId::new(format!("pod-{n}"))?;
            let sandbox =
                system.create_sandbox(SandboxSpec { id, config: config().into(), cgroups_path: None }).await?;
            // The handle is `Send`: each sandbox is driven by a task of its own.
            tasks.push(tokio::spawn(async move {
                boot(&sandbox).await?;
                add_container(&sandbox, "web").await?;
                sandbox.stop().await?;
                sandbox.cleanup().await
            }));
        }
        let mut clean = 0;
        for task in tasks {
            clean += usize::from(task.await??.is_clean());
        }
        let left = system.shutdown().await;
        assert!(left.is_empty() && world.list().is_empty(), "{left:?} {:?}", world.list());
        Ok(clean)
    })
}

#[cfg_attr(test, expect(dead_code, reason = "a test runs `run`"))]
fn main() -> Result<(), Box<dyn Error>> {
    println!("{} sandboxes came and went", run()?);
    Ok(())
}
