//! The simulated kernel's objects: what exists, under which identity.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use sandbox_model::{ErrorKind, PortError, PortResult, SandboxId};

use crate::agent::Guest;
use crate::vmm::Machine;

/// Everything that exists in the simulation. Shared by all simulated ports; a sandbox that has been
/// released must leave it as it was.
#[derive(Debug, Default)]
pub struct World {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// The identities of all objects.
    alive: BTreeSet<u64>,
    next_identity: u64,
    /// VMs that have started, by the tag of their process. They live whoever holds a client of them.
    machines: BTreeMap<String, Arc<Machine>>,
    /// What runs in them.
    guests: BTreeMap<SandboxId, Arc<Mutex<Guest>>>,
    revision: u64,
}

impl World {
    /// An empty world.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic of one simulated port is a finding of its own and must not hide behind this.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The same objects in a world of their own: what becomes of one does not touch the other. VMs
    /// are there as objects only, so they can be ended and not adopted.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.state();
        let (objects, next_identity) = (state.objects.clone(), state.next_identity);
        Self { state: Mutex::new(State { objects, next_identity, ..State::default() }) }
    }

    /// Makes an object and returns its identity, which is never used again.
    ///
    /// # Errors
    /// `Exists`.
    pub fn make(&self, operation: &str, kind: &'static str, name: impl Into<String>) -> PortResult<u64> {
        let mut state = self.state();
        let (name, identity) = (name.into(), state.next_identity + 1);
        match state.objects.entry(kind).or_default().entry(name) {
            Entry::Occupied(taken) => {
                return Err(PortError::new(ErrorKind::Exists, operation, taken.key(), "simulated: exists"));
            }
            Entry::Vacant(free) => free.insert(identity),
        };
        state.next_identity = identity;
        state.alive.insert(identity);
        state.revision += 1;
        Ok(identity)
    }

    /// Takes an object away.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, operation: &str, kind: &'static str, name: &str) -> PortResult<()> {
        let mut state = self.state();
        match state.objects.get_mut(kind).and_then(|objects| objects.remove(name)) {
            Some(identity) => {
                state.alive.remove(&identity);
                state.revision += 1;
                Ok(())
            }
            None => Err(PortError::new(ErrorKind::NotFound, operation, name, "simulated: not there")),
        }
    }

    /// The identity of an object, if it exists.
    pub fn identity(&self, kind: &'static str, name: &str) -> Option<u64> {
        self.state().objects.get(kind)?.get(name).copied()
    }

    /// Whether the object of that identity exists.
    pub fn is_alive(&self, identity: u64) -> bool {
        self.state().alive.contains(&identity)
    }

    /// The names of `kind` that begin with `prefix`.
    pub fn names_below(&self, kind: &'static str, prefix: &str) -> Vec<String> {
        self.state().objects.get(kind).map(|objects| below(objects, prefix).cloned().collect()).unwrap_or_default()
    }

    /// An object of any kind whose name begins with `prefix`, as `kind name`.
    pub fn any_below(&self, prefix: &str) -> Option<String> {
        let state = self.state();
        state
            .objects
            .iter()
            .find_map(|(kind, objects)| below(objects, prefix).next().map(|name| format!("{kind} {name}")))
    }

    /// Takes away all objects of `kind` whose name begins with `prefix`, as a process's end does.
    pub fn remove_below(&self, kind: &'static str, prefix: &str) {
        let mut state = self.state();
        let State { objects, alive, revision, .. } = &mut *state;
        let Some(objects) = objects.get_mut(kind) else { return };
        let names: Vec<String> = below(objects, prefix).cloned().collect();
        for name in names {
            *revision += 1;
            if let Some(identity) = objects.remove(&name) {
                alive.remove(&identity);
            }
        }
    }

    /// Counts the changes.
    pub fn revision(&self) -> u64 {
        self.state().revision
    }

    /// All objects with their identities, in order.
    pub fn objects(&self) -> BTreeMap<(&'static str, String), u64> {
        let state = self.state();
        let of = |(kind, objects): (&&'static str, &BTreeMap<String, u64>)| {
            let kind = *kind;
            objects.iter().map(|(name, identity)| ((kind, name.clone()), *identity)).collect::<Vec<_>>()
        };
        state.objects.iter().flat_map(of).collect()
    }

    /// All objects, as `kind name`, in order.
    pub fn list(&self) -> Vec<String> {
        let state = self.state();
        let all =
            state.objects.iter().flat_map(|(kind, objects)| objects.keys().map(move |name| format!("{kind} {name}")));
        all.collect()
    }

    pub(crate) fn keep_machine(&self, tag: &str, machine: Arc<Machine>) {
        self.state().machines.insert(tag.to_owned(), machine);
    }

    pub(crate) fn machine(&self, tag: &str) -> Option<Arc<Machine>> {
        self.state().machines.get(tag).cloned()
    }

    pub(crate) fn machines_of(&self, sandbox: &SandboxId) -> Vec<Arc<Machine>> {
        let prefix = format!("{sandbox}/");
        let of = |(tag, machine): (&String, &Arc<Machine>)| tag.starts_with(&prefix).then(|| machine.clone());
        self.state().machines.iter().filter_map(of).collect()
    }

    /// The guest of `sandbox`, which boots when somebody first asks for it.
    pub(crate) fn guest(&self, sandbox: &SandboxId) -> Arc<Mutex<Guest>> {
        self.state().guests.entry(sandbox.clone()).or_default().clone()
    }

    /// A VM ends: its guest goes with it.
    pub(crate) fn forget_vm(&self, tag: &str, sandbox: &SandboxId) {
        let mut state = self.state();
        state.machines.remove(tag);
        state.guests.remove(sandbox);
    }
}

fn below<'a>(objects: &'a BTreeMap<String, u64>, prefix: &'a str) -> impl Iterator<Item = &'a String> {
    let from = (Bound::Included(prefix), Bound::Unbounded);
    objects.range::<str, _>(from).map(|(name, _)| name).take_while(move |name| name.starts_with(prefix))
}
