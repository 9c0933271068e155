//! Runs that follow from a seed, and what they add up to.

use futures::future::join;
use resource_actors::trace::{LineSink, events_of, file_of};
use sandbox_model::trace::{Event, Header};
use sha2::{Digest, Sha256};
use simulation::SimulatedHost;
use simulation::fault::FaultPlan;

use crate::simulated::{create, in_virtual_time, lifecycle};

/// The header of a run in which all is simulated.
///
/// # Panics
/// Never: a plan is made of texts.
pub fn header(seed: u64, plan: &FaultPlan) -> Header {
    let faults = serde_json::to_value(plan).expect("a plan is made of texts");
    Header { seed: Some(seed), faults: Some(faults), ..Header::new("simulated", "simulated") }
}

/// Two sandboxes side by side, from `Created` to `Released`, unless a fault ends them earlier: the lines
/// of what happened.
fn recorded(seed: u64, plan: &FaultPlan) -> Vec<u8> {
    let sink = LineSink::in_memory();
    let told = sink.clone();
    in_virtual_time(|| async {
        let system = SimulatedHost::new(plan.clone()).delayed_process(seed, told);
        let live = async |name: &str| {
            let sandbox = create(&system, name).await.expect("nothing of that name is there");
            let _ = lifecycle(&sandbox).await;
            sandbox.cleanup().await.expect("an answer");
        };
        join(live("one"), live("two")).await;
    });
    sink.take_lines()
}

/// The events of a run.
///
/// # Panics
/// When a sandbox cannot be created or does not answer.
pub fn lived(seed: u64, plan: &FaultPlan) -> Vec<Event> {
    events_of(&recorded(seed, plan)).expect("a line is an event")
}

/// The trace of a run, as a file has it.
///
/// # Panics
/// When a sandbox cannot be created or does not answer.
pub fn lines(seed: u64, plan: &FaultPlan) -> Vec<u8> {
    file_of(&header(seed, plan), &recorded(seed, plan))
}

/// SHA-256 of the traces of `seeds`.
pub fn digest(seeds: std::ops::RangeInclusive<u64>) -> String {
    let mut digest = Sha256::new();
    for seed in seeds {
        digest.update(lines(seed, &FaultPlan::default()));
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
