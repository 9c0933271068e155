//! What a journal says when its ledger cannot be written.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use futures::executor::block_on;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Identity, Journal, Ledger, Record, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ErrorKind, Outcome, PortError};

/// A ledger that takes so many records and no more.
#[derive(Debug, Default)]
struct Narrow {
    room: Cell<usize>,
    records: RefCell<Vec<Record>>,
}

impl Ledger for Narrow {
    fn intend(&self, actor: ActorName, scope: Scope, object: HostObject) -> Result<EntryId, PortError> {
        let entry = EntryId(1);
        self.append(Record::Intent { entry, actor, scope, object })?;
        Ok(entry)
    }

    fn append(&self, record: Record) -> Result<(), PortError> {
        let left = self.room.get().checked_sub(1).ok_or_else(|| refused("the ledger is full"))?;
        self.room.set(left);
        self.records.borrow_mut().push(record);
        Ok(())
    }

    fn live(&self) -> Vec<Arc<Entry>> {
        Vec::new()
    }

    fn entry(&self, _: EntryId) -> Option<Arc<Entry>> {
        None
    }
}

fn refused(cause: &str) -> PortError {
    PortError::new(ErrorKind::Refused, "make", "object", cause)
}

/// Makes an object with a ledger of so much room: what comes back, and how many records there are.
fn make(room: usize, effect: Result<(), PortError>) -> (Result<(), PortError>, usize) {
    let ledger = Rc::new(Narrow { room: Cell::new(room), ..Narrow::default() });
    let journal = Journal::new(ledger.clone(), ActorName::Device);
    let object = HostObject::File { path: "/run/x".into() };
    let effect = |_| std::future::ready(effect.map(|()| ((), Identity::Named)));
    let made = block_on(journal.make(Scope::Sandbox, object, effect)).map(|_| ());
    (made, ledger.records.borrow().len())
}

#[test]
fn what_is_made_and_not_recorded_is_doubtful() {
    let (made, records) = make(1, Ok(()));
    let error = made.unwrap_err();
    assert_eq!((error.cause.as_str(), error.outcome, records), ("the ledger is full", Outcome::Doubtful, 1));
    assert_eq!(make(2, Ok(())), (Ok(()), 2));
    assert_eq!(make(0, Ok(())).0.unwrap_err().outcome, Outcome::NotDone);
}

#[test]
fn a_refusal_is_told_whether_it_can_be_recorded_or_not() {
    for room in [1, 2] {
        let (made, records) = make(room, Err(refused("no")));
        let error = made.unwrap_err();
        assert_eq!((error.cause.as_str(), error.outcome, records), ("no", Outcome::NotDone, room));
    }
}
