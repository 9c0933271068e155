//! I14: whatever part of a ledger is left, it can be read, and what it names is released.

use resource_actors::ResourceSystem;
use simulation::fault::FaultPlan;
use simulation::{Kept, SimulatedHost};

use super::{ground, picture};
use crate::lifecycles::{Act, Command, Lifecycle};
use crate::simulated::in_virtual_time;

/// The ledger of a life just before its clean-up.
pub fn ledger_of(life: &Lifecycle) -> String {
    in_virtual_time(|| async {
        let host = ground(FaultPlan::default());
        let system = host.process(None);
        let sandbox = system.create_sandbox(life.spec.clone()).await.ok();
        for act in &life.acts {
            if let (Act::Ask(command), Some(sandbox)) = (act, &sandbox)
                && !matches!(command, Command::Cleanup | Command::Stop | Command::Release(_))
            {
                // What is refused leaves no record.
                let _ = command.clone().send(sandbox).await;
            }
        }
        host.store.kept(&life.spec.id).map(|kept| kept.ledger).unwrap_or_default()
    })
}

/// Releases a sandbox of which only `ledger` is left: its objects are gone, or were never made.
///
/// # Errors
/// What was left, or why it could not be released.
pub fn release(life: &Lifecycle, ledger: &str) -> Result<(), String> {
    in_virtual_time(|| async {
        let host: SimulatedHost = ground(FaultPlan::default());
        let baseline = host.world.objects();
        host.store
            .put(&life.spec.id, Kept { ledger: ledger.to_owned(), ..Kept::default() })
            .map_err(|error| error.to_string())?;
        let system: ResourceSystem = host.process(None);
        let report = system.cleanup_sandbox(&life.spec.id).await.map_err(|error| error.to_string())?;
        let left = picture(&host.world, &baseline);
        if !report.is_clean() || !left.is_empty() || host.store.kept(&life.spec.id).is_some() {
            return Err(format!("left {left:?}, report {report:?}"));
        }
        Ok(())
    })
}
