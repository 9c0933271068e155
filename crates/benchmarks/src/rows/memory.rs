//! What an idle sandbox keeps: our own share, and with it what stands in for kernel and VM.
#![expect(unsafe_code, reason = "mallinfo2 has no safe wrapper")]

use std::sync::Arc;

use nix::libc;
use resource_actors::ResourceSystem;
use resource_actors::ledger::DirectoryStore;
use simulation::{SimulatedFacts, World, simulated_ports};

use super::{Row, Target, on_one_thread, state_dir};
use crate::life::Life;
use crate::load::{self, Load};

/// Each keeps its ledger's file open.
const SANDBOXES: usize = 400;

/// Bytes that the process has allocated and not freed.
fn allocated() -> usize {
    // SAFETY: it takes nothing, and only reads the allocator's own counters, under their locks.
    unsafe { libc::mallinfo2() }.uordblks
}

/// As many idle sandboxes as there shall be: bytes allocated before them, with them, and after the
/// actors have gone and the simulated world has stayed.
fn measure(count: usize) -> Result<[usize; 3], String> {
    let dir = state_dir("bench-memory")?;
    let world = Arc::new(World::new());
    let before = allocated();
    let with_them = on_one_thread(|| async {
        let system = ResourceSystem::builder(simulated_ports(&world))
            .store(Arc::new(DirectoryStore::new(dir.path())))
            .state_dir(dir.path())
            .facts(Arc::new(SimulatedFacts::default()))
            .here();
        let load = Load { sandboxes: count, at_once: 1, rate: None };
        let (handles, outcome) = load::start(&system, |_| Life::simulated(), load, "idle", |_| {}).await;
        let with_them = allocated();
        drop(handles);
        outcome.failures.into_iter().next().map_or(Ok(with_them), Err)
    })??;
    Ok([before, with_them, allocated()])
}

pub(super) fn run() -> Result<Vec<Row>, String> {
    // What is made once in a process is there then.
    measure(10)?;
    let [before, with_them, without_actors] = measure(SANDBOXES)?;
    let each = |bytes: usize| bytes as f64 / SANDBOXES as f64 / 1024.0;
    let ours = each(with_them.saturating_sub(without_actors));
    let all = each(with_them.saturating_sub(before));
    let detail =
        format!("allocated; with the simulated VM and kernel {all:.1} KiB; {SANDBOXES} alive, ledgers on tmpfs");
    Ok(vec![Row::new("memory for each idle sandbox", ours, "KiB", Target::AtMost(32.0), detail)])
}
