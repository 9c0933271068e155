//! Any sequence of records against a model of ten lines, in memory and through a file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use sandbox_model::ledger::{Entry, EntryId, HostObject, Identity, Ledger, Record, Scope};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::{ContainerId, SandboxId};

use super::{Bounds, LedgerTable, file};

/// What the model knows of an entry: whether it is done.
type Model = BTreeMap<u64, bool>;

#[derive(Debug, Clone)]
enum Step {
    Intend(u8),
    Done(u64),
    Refused(u64),
    UndoIntent(u64),
    UndoFailed(u64),
    Undone(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let entry = 1_u64..40;
    let step = prop_oneof![
        4 => any::<u8>().prop_map(Step::Intend),
        3 => entry.clone().prop_map(Step::Done),
        1 => entry.clone().prop_map(Step::Refused),
        2 => entry.clone().prop_map(Step::UndoIntent),
        1 => entry.clone().prop_map(Step::UndoFailed),
        2 => entry.prop_map(Step::Undone),
    ];
    prop::collection::vec(step, 0..120)
}

fn scope(n: u8) -> Scope {
    match n % 3 {
        0 => Scope::Sandbox,
        n => Scope::Container(ContainerId::new(format!("c{n}")).unwrap()),
    }
}

fn record(step: &Step, next: EntryId) -> Record {
    match step {
        Step::Intend(n) => Record::Intent {
            entry: next,
            actor: ActorName::Device,
            scope: scope(*n),
            object: HostObject::Hold { object: format!("blk-{n}") },
        },
        Step::Done(entry) => Record::Done { entry: EntryId(*entry), identity: Identity::Named },
        Step::Refused(entry) => Record::Refused { entry: EntryId(*entry) },
        Step::UndoIntent(entry) => Record::UndoIntent { entry: EntryId(*entry) },
        Step::UndoFailed(entry) => Record::UndoFailed { entry: EntryId(*entry), cause: "busy".into() },
        Step::Undone(entry) => Record::Undone { entry: EntryId(*entry) },
    }
}

/// What the model says of a step: whether it is allowed, and what is open afterwards.
fn expect(model: &mut Model, step: &Step, next: EntryId) -> bool {
    match step {
        Step::Intend(_) => model.insert(next.0, false).is_none(),
        Step::Done(entry) => match model.get_mut(entry) {
            Some(done) => !std::mem::replace(done, true),
            None => false,
        },
        Step::Refused(entry) | Step::Undone(entry) => model.remove(entry).is_some(),
        Step::UndoIntent(entry) | Step::UndoFailed(entry) => model.contains_key(entry),
    }
}

fn open(entries: &[Arc<Entry>]) -> Model {
    entries.iter().map(|entry| (entry.id.0, entry.identity.is_some())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_ledger_does_what_its_model_says_and_its_file_brings_it_back(steps in steps()) {
        let temporary = tempfile::tempdir().unwrap();
        std::fs::create_dir(temporary.path().join("pod")).unwrap();
        let path = temporary.path().join("pod/ledger.jsonl");
        let bounds = Bounds::new(temporary.path(), &SandboxId::new("pod").unwrap());
        let mut ledger = file::create(path.clone(), "boot".into(), bounds.clone()).unwrap();
        let (mut table, mut model) = (LedgerTable::default(), Model::new());
        for (n, step) in steps.iter().enumerate() {
            let record = record(step, table.next_id());
            let allowed = expect(&mut model, step, table.next_id());
            prop_assert_eq!(table.apply(&record).is_ok(), allowed, "{:?}", step);
            prop_assert_eq!(ledger.append(record).is_ok(), allowed, "{:?}", step);
            prop_assert_eq!(open(&ledger.live()), model.clone());
            if n % 11 == 0 {
                // The process dies and another one reads what is there.
                ledger = file::open(path.clone(), "boot".into(), bounds.clone()).unwrap();
            }
        }
        let entries: Vec<Arc<Entry>> = table.shared().cloned().collect();
        prop_assert_eq!(ledger.live(), entries);
    }
}

#[test]
fn the_model_and_the_bounds_agree_on_what_a_device_actor_makes() {
    let bounds = Bounds::new(Path::new("/run/ra"), &SandboxId::new("pod").unwrap());
    let Record::Intent { actor, object, .. } = record(&Step::Intend(1), EntryId(1)) else { unreachable!() };
    bounds.object(actor, &object).unwrap();
}
