//! Looks at everything after every event: a trace sink that keeps nothing and checks all rules.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resource_actors::SandboxHandle;
use sandbox_model::SandboxId;
use sandbox_model::trace::{Event, Told, TraceSink};
use simulation::fault::{Mode, PlannedFault};
use simulation::{Injector, SimulatedHost, SimulatedStore, World};
use tokio::time::Instant;

use crate::invariants::{CHECKS, Memory, Objects, Scene};

/// A rule that did not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Break {
    /// Which (`I9`), or what the run itself must show (`F5`).
    pub rule: &'static str,
    /// How.
    pub what: String,
}

impl std::fmt::Display for Break {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// Breaks of one rule that are kept of one run: more of them say no more.
const BREAKS_MAX: usize = 3;

fn keep(breaks: &mut Vec<Break>, broken: Break) {
    if breaks.iter().filter(|other| other.rule == broken.rule).count() < BREAKS_MAX {
        breaks.push(broken);
    }
}

/// The watch over one run.
#[derive(Debug)]
pub struct Watch {
    world: Arc<World>,
    store: SimulatedStore,
    faults: Arc<Injector>,
    sandbox: SandboxId,
    baseline: Objects,
    seq: AtomicU64,
    begun: Instant,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    memory: Memory,
    handle: Option<SandboxHandle>,
    objects: Objects,
    world: u64,
    ledger: Option<u64>,
    vmm_lied: bool,
    disk_lags: bool,
    breaks: Vec<Break>,
    events: u64,
}

impl Watch {
    /// Over what `host` has and will have of `sandbox`.
    pub fn new(host: &SimulatedHost, sandbox: SandboxId) -> Arc<Self> {
        Arc::new(Self {
            world: host.world.clone(),
            store: host.store.clone(),
            faults: host.faults.clone(),
            sandbox,
            baseline: host.world.objects(),
            seq: AtomicU64::new(0),
            begun: Instant::now(),
            seen: Mutex::new(Seen { world: u64::MAX, ..Seen::default() }),
        })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there was before the sandbox.
    pub fn baseline(&self) -> &Objects {
        &self.baseline
    }

    /// The sandbox that lives now.
    pub fn follow(&self, handle: SandboxHandle) {
        let mut seen = self.seen();
        seen.memory.begin();
        seen.handle = Some(handle);
    }

    /// Another process of ours begins, to clean up or to go on.
    pub fn restart(&self, is_recovering: bool) {
        let mut seen = self.seen();
        seen.memory.restart(is_recovering);
        seen.handle = None;
    }

    /// Another process of ours begins, to take the sandbox over.
    pub fn take_over(&self) {
        let mut seen = self.seen();
        seen.memory.take_over();
        seen.handle = None;
    }

    /// The sandbox was taken over.
    pub fn adopted(&self, handle: SandboxHandle) {
        self.seen().handle = Some(handle);
    }

    /// Lets go of the sandbox, which holds this.
    pub fn leave(&self) {
        self.seen().handle = None;
    }

    /// Notes what a run found beside the rules of the scene.
    pub fn found(&self, rule: &'static str, what: impl Into<String>) {
        keep(&mut self.seen().breaks, Break { rule, what: what.into() });
    }

    /// What did not hold.
    pub fn breaks(&self) -> Vec<Break> {
        self.seen().breaks.clone()
    }

    /// Events that were looked at.
    pub fn events(&self) -> u64 {
        self.seen().events
    }

    fn look(&self, event: &Event) {
        if self.faults.is_down() {
            // What a dead process does is nobody's business.
            return;
        }
        let mut seen = self.seen();
        let seen = &mut *seen;
        seen.events += 1;
        let world = self.world.revision();
        let mut has_changed = seen.world != world;
        if has_changed {
            seen.world = world;
            seen.objects = self.world.objects();
        }
        let lied = |fault: &PlannedFault| fault.mode == Mode::Lie && fault.site.port == "hypervisor";
        let refused =
            |fault: &PlannedFault| fault.site.port == "ledger" && matches!(fault.mode, Mode::Error | Mode::Resource(_));
        seen.vmm_lied = seen.vmm_lied || self.faults.has_struck(lied);
        seen.disk_lags = seen.disk_lags || self.faults.has_struck(refused);
        let found = self.store.with_table(&self.sandbox, |ledger| {
            let revision = ledger.map(|(_, revision)| revision);
            has_changed |= seen.ledger != revision;
            seen.ledger = revision;
            let scene = Scene {
                event,
                sandbox: &self.sandbox,
                objects: &seen.objects,
                baseline: &self.baseline,
                ledger: ledger.map(|(table, _)| table),
                has_changed,
                handle: seen.handle.as_ref(),
                disk_lags: seen.disk_lags,
                vmm_lied: seen.vmm_lied,
            };
            let mut found = Vec::new();
            for check in CHECKS.iter().copied().flatten() {
                if let Err(what) = (check.look)(&scene, &mut seen.memory) {
                    found.push(Break { rule: check.id, what: format!("{what} [after {}]", brief(event)) });
                }
            }
            found
        });
        for broken in found {
            keep(&mut seen.breaks, broken);
        }
    }
}

/// An event in a few words.
fn brief(event: &Event) -> String {
    let place = event.place().map(|place| place.actor.as_str()).unwrap_or_default();
    match event {
        Event::Received { message, .. } => format!("{place} received {message}"),
        Event::Replied { message, .. } => format!("{place} replied to {message}"),
        Event::Called { port, method, .. } => format!("{place} called {port}.{method}"),
        Event::Noted { record, .. } => format!("{place} noted {}", serde_json::to_string(record).unwrap_or_default()),
        _ => place.to_owned(),
    }
}

impl TraceSink for Watch {
    fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn is_recording(&self) -> bool {
        true
    }

    fn record(&self, event: Told<'_>) {
        self.look(&event.into());
    }
}
