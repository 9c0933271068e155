//! Records every call of one actor through its ports, and every record that it appends to the
//! ledger.

use std::rc::Rc;
use std::sync::Arc;

use actor_shell::CurrentCause;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Ledger, Record, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::port::{BegunCall, Witness};
use sandbox_model::trace::{Content, Ended, Event, Place, TraceSink, Written};
use sandbox_model::{PortError, PortResult, SandboxId};

/// Who is recorded, and where.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    pub(crate) sandbox: SandboxId,
    pub(crate) actor: ActorName,
    pub(crate) cause: CurrentCause,
    pub(crate) sink: Arc<dyn TraceSink>,
}

impl Recorder {
    /// The message that is served now.
    fn cause(&self) -> Option<u64> {
        Some(self.cause.get()).filter(|seq| *seq != 0)
    }

    fn place(&self, cause: Option<u64>) -> Place {
        Place {
            seq: self.sink.next_seq(),
            cause,
            sandbox: self.sandbox.clone(),
            actor: self.actor,
            generation: self.cause.generation(),
            at_us: self.sink.now_us(),
        }
    }
}

impl Witness for Recorder {
    fn begun(&self, port: &'static str, method: &'static str, request: &dyn Content) -> BegunCall {
        // The message that is served when the call is made, not when it ends.
        let (cause, begun_us) = (self.cause(), self.sink.now_us());
        BegunCall { port, method, request: Written::of(request), cause, begun_us }
    }

    fn ended(&self, call: BegunCall, result: Ended<&dyn Content>) {
        let BegunCall { port, method, request, cause, begun_us } = call;
        let place = self.place(cause);
        let took_us = place.at_us.saturating_sub(begun_us);
        self.sink.record(Event::Called { place, port, method, request: &request, result, took_us });
    }
}

/// A ledger whose records are events of the trace.
#[derive(Debug)]
pub(crate) struct RecordedLedger {
    pub(crate) ledger: Rc<dyn Ledger>,
    pub(crate) recorder: Recorder,
}

impl RecordedLedger {
    fn noted(&self, record: Record, refused: Option<PortError>) {
        let place = self.recorder.place(self.recorder.cause());
        self.recorder.sink.record(Event::Noted { place, record, refused });
    }
}

impl Ledger for RecordedLedger {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> PortResult<EntryId> {
        let drawn = self.ledger.intend(actor, scope.clone(), object.clone());
        let entry = drawn.as_ref().copied().unwrap_or(EntryId(0));
        self.noted(Record::Intent { entry, actor, scope, object }, drawn.as_ref().err().cloned());
        drawn
    }

    fn append(&self, record: Record) -> PortResult<()> {
        let appended = self.ledger.append(record.clone());
        self.noted(record, appended.as_ref().err().cloned());
        appended
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        self.ledger.live()
    }

    fn entry(&self, id: EntryId) -> Option<Arc<Entry>> {
        self.ledger.entry(id)
    }

    fn count(&self) -> usize {
        self.ledger.count()
    }

    fn newest(&self) -> EntryId {
        self.ledger.newest()
    }

    fn is_live(&self, id: EntryId) -> bool {
        self.ledger.is_live(id)
    }

    fn find(&self, test: &dyn Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        self.ledger.find(test)
    }

    fn any(&self, test: &dyn Fn(&Entry) -> bool) -> bool {
        self.ledger.any(test)
    }
}
