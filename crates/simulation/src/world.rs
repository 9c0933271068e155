//! The simulated kernel's objects: what exists, under which identity.

use std::collections::BTreeMap;
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
    objects: BTreeMap<(&'static str, String), u64>,
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

    /// Makes an object and returns its identity, which is never used again.
    ///
    /// # Errors
    /// `Exists`.
    pub fn make(&self, operation: &str, kind: &'static str, name: impl Into<String>) -> PortResult<u64> {
        let mut state = self.state();
        let name = name.into();
        if state.objects.contains_key(&(kind, name.clone())) {
            return Err(PortError::new(ErrorKind::Exists, operation, name, "simulated: exists"));
        }
        state.next_identity += 1;
        let identity = state.next_identity;
        state.objects.insert((kind, name), identity);
        state.revision += 1;
        Ok(identity)
    }

    /// Takes an object away.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn remove(&self, operation: &str, kind: &'static str, name: &str) -> PortResult<()> {
        let mut state = self.state();
        match state.objects.remove(&(kind, name.to_owned())) {
            Some(_) => {
                state.revision += 1;
                Ok(())
            }
            None => Err(PortError::new(ErrorKind::NotFound, operation, name, "simulated: not there")),
        }
    }

    /// The identity of an object, if it exists.
    pub fn identity(&self, kind: &'static str, name: &str) -> Option<u64> {
        self.state().objects.get(&(kind, name.to_owned())).copied()
    }

    /// Takes away all objects of `kind` whose name passes `test`, as a process's end does.
    pub fn remove_where(&self, kind: &'static str, test: impl Fn(&str) -> bool) {
        let mut state = self.state();
        state.objects.retain(|(k, name), _| *k != kind || !test(name));
        state.revision += 1;
    }

    /// Counts the changes.
    pub fn revision(&self) -> u64 {
        self.state().revision
    }

    /// All objects with their identities, in order.
    pub fn objects(&self) -> BTreeMap<(&'static str, String), u64> {
        self.state().objects.clone()
    }

    /// All objects, as `kind name`, in order.
    pub fn list(&self) -> Vec<String> {
        self.state().objects.keys().map(|(kind, name)| format!("{kind} {name}")).collect()
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
