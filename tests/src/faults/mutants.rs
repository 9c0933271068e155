//! Wrappers that break a rule on purpose: the suite must notice each.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::future::BoxFuture;
use resource_actors::system::Intercept;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::{PortError, PortResult};
use serde_json::{Value, json};
use simulation::SimulatedHost;

/// A wrapper, the life and fault that show it, and the rules of which one must be broken.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// Its name.
    pub name: &'static str,
    /// The rule that it breaks.
    pub rule: &'static str,
    /// The life in which it shows.
    pub life: &'static str,
    /// The fault with which it shows; empty if none is needed.
    pub fault: &'static str,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    /// The intent is written with the outcome: record after effect.
    RecordAfterEffect,
    /// A record of this kind is not written, and nobody is told.
    Swallow(&'static str),
    /// A record of this kind is written twice.
    Twice(&'static str),
    /// The call is answered with success and does not happen.
    Pretend(&'static str, &'static str),
    /// The call happens and is answered with this.
    Answer(&'static str, &'static str, fn() -> Value),
    /// The request is answered by the reply to the one before.
    Stale(&'static str, &'static str),
}

/// All of them.
pub const MUTANTS: [Mutant; 14] = [
    mutant("record-after-effect", "I9", "L3", "", How::RecordAfterEffect),
    mutant("record-after-effect-crash", "I11", "L3", "share-fs:share-fs-host.attach#2=CA", How::RecordAfterEffect),
    mutant("swallowed-intent", "I9", "L1", "", How::Swallow("intent")),
    mutant("swallowed-undone", "I10", "L2", "", How::Swallow("undone")),
    mutant("undone-early", "I9", "L1", "", How::Twice("undo-intent")),
    mutant("swallowed-unmount", "I9", "L3", "", How::Pretend("share-fs-host", "detach")),
    mutant("swallowed-rmdir", "I9", "L3", "", How::Pretend("share-fs-host", "remove_directory")),
    mutant("swallowed-tap", "I9", "L2", "", How::Pretend("network-host", "remove_tap")),
    mutant("swallowed-qdisc", "I9", "L2", "", How::Pretend("network-host", "remove_redirect")),
    mutant("swallowed-cgroup", "I9", "L1", "", How::Pretend("cgroup-host", "remove_group")),
    mutant("swallowed-daemon", "I9", "L1", "", How::Pretend("device-host", "end_daemon")),
    mutant("swallowed-driver", "I9", "L6", "", How::Pretend("device-host", "give_back_vfio")),
    mutant("wrong-place", "I4", "L5", "", How::Answer("hypervisor", "add_device", || json!({ "pci_path": "1f/1f" }))),
    mutant("stale-reply", "F5", "L4", "", How::Stale("share-fs-host", "attach")),
];

const fn mutant(name: &'static str, rule: &'static str, life: &'static str, fault: &'static str, how: How) -> Mutant {
    Mutant { name, rule, life, fault, how }
}

impl Mutant {
    /// Puts it into a host.
    pub fn put_into(&self, host: &mut SimulatedHost) {
        let how = self.how;
        match how {
            How::RecordAfterEffect | How::Swallow(_) | How::Twice(_) => {
                host.wrap_ledgers(Arc::new(move |ledger| Rc::new(Broken { ledger, how, held: Rc::default() })));
            }
            How::Pretend(..) | How::Answer(..) | How::Stale(..) => {
                let last = Arc::new(std::sync::Mutex::new(None));
                let intercept: Intercept =
                    Arc::new(move |_, _, _| Some(Arc::new(Liar { how, last: last.clone(), calls: AtomicU32::new(0) })));
                host.intercept(intercept);
            }
        }
    }
}

/// A ledger that does not keep its word.
#[derive(Debug)]
struct Broken {
    ledger: Rc<dyn Ledger>,
    how: How,
    /// Intents that are written later.
    held: Rc<std::cell::RefCell<std::collections::BTreeMap<EntryId, Record>>>,
}

const fn kind(record: &Record) -> &'static str {
    match record {
        Record::Header { .. } => "header",
        Record::Intent { .. } => "intent",
        Record::Done { .. } => "done",
        Record::Refused { .. } => "refused",
        Record::UndoIntent { .. } => "undo-intent",
        Record::Undone { .. } => "undone",
        Record::UndoFailed { .. } => "undo-failed",
    }
}

impl Ledger for Broken {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> PortResult<EntryId> {
        let is_late = matches!(self.how, How::RecordAfterEffect | How::Swallow("intent"));
        if !is_late || matches!(object, HostObject::Hold { .. } | HostObject::ResourceShare { .. }) {
            return self.ledger.intend(actor, scope, object);
        }
        let mut held = self.held.borrow_mut();
        let last = self.ledger.live().last().map_or(0, |entry| entry.id.0);
        let entry = EntryId(held.keys().next_back().map_or(last, |id| id.0.max(last)) + 1);
        held.insert(entry, Record::Intent { entry, actor, scope, object });
        Ok(entry)
    }

    fn append(&self, record: Record) -> PortResult<()> {
        if let (How::RecordAfterEffect, Record::Done { entry, .. }) = (self.how, &record) {
            let intent = self.held.borrow_mut().remove(entry);
            if let Some(intent) = intent {
                self.ledger.append(intent)?;
            }
        }
        match self.how {
            How::Swallow(which) if which == kind(&record) => return Ok(()),
            How::Twice(which) if which == kind(&record) => {
                self.ledger.append(record.clone())?;
                if let Record::UndoIntent { entry } = record {
                    return self.ledger.append(Record::Undone { entry });
                }
            }
            _ => {}
        }
        self.ledger.append(record)
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        self.ledger.live()
    }

    fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.ledger.entry(id)
    }
}

/// A port that does not keep its word.
#[derive(Debug)]
struct Liar {
    how: How,
    last: Arc<std::sync::Mutex<Option<Value>>>,
    calls: AtomicU32,
}

impl Interceptor for Liar {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let is_it = |port: &str, method: &str| call.port == port && call.method == method;
        match self.how {
            How::Pretend(port, method) if is_it(port, method) => Box::pin(std::future::ready(Ok(Value::Null))),
            How::Answer(port, method, answer) if is_it(port, method) => Box::pin(std::future::ready(Ok(answer()))),
            How::Stale(port, method) if is_it(port, method) => Box::pin(async move {
                let stale = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                let answer: Result<Value, PortError> = match stale {
                    Some(stale) => Ok(stale),
                    None => inner.await,
                };
                if let Ok(value) = &answer {
                    *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(value.clone());
                }
                answer
            }),
            _ => inner,
        }
    }
}
