use std::path::Path;

use super::*;
use sandbox_model::ledger::{HostObject, Identity, Scope};
use sandbox_model::lifecycle::ActorName;

fn intent(n: u64) -> Record {
    let object = HostObject::Process { program: "x".into() };
    Record::Intent { entry: EntryId(n), actor: ActorName::Supervisor, scope: Scope::Sandbox, object }
}

fn file(n: u64, path: &str) -> Record {
    let object = HostObject::File { path: path.into() };
    Record::Intent { entry: EntryId(n), actor: ActorName::Network, scope: Scope::Sandbox, object }
}

fn header() -> Record {
    let sandbox = SandboxId::new("s").unwrap();
    Record::Header { version: LEDGER_VERSION, sandbox, boot: "b".into(), last: EntryId(0) }
}

fn lines(records: &[Record]) -> String {
    let mut seal = Seal::default();
    let mut line = |record| {
        let (line, next) = seal.line(record).unwrap();
        seal = next;
        line
    };
    records.iter().map(&mut line).collect()
}

fn bounds() -> Bounds {
    Bounds::new(Path::new("/run/ra"), &SandboxId::new("s").unwrap())
}

#[test]
fn an_entry_goes_from_intent_to_done_to_undone() {
    let mut table = LedgerTable::default();
    let id = EntryId(1);
    table.apply(&intent(1)).unwrap();
    assert_eq!(table.entry(id).unwrap().identity, None);
    table.apply(&Record::Done { entry: id, identity: Identity::Named }).unwrap();
    table.apply(&Record::UndoIntent { entry: id }).unwrap();
    table.apply(&Record::UndoFailed { entry: id, cause: "busy".into() }).unwrap();
    assert_eq!(table.len(), 1, "a failed undo stays for the next clean-up");
    table.apply(&Record::Undone { entry: id }).unwrap();
    assert!(table.is_empty());
}

#[test]
fn no_other_transition_is_allowed() {
    let mut table = LedgerTable::default();
    let id = EntryId(1);
    let done = Record::Done { entry: id, identity: Identity::Named };
    assert_eq!(table.apply(&done), Err(Violation::NotOpen(id)));
    table.apply(&intent(1)).unwrap();
    assert_eq!(table.apply(&intent(1)), Err(Violation::Reused(id)));
    let other = Record::Done { entry: id, identity: Identity::Mount { mount_id: 1 } };
    assert_eq!(table.apply(&other), Err(Violation::Identity(id)));
    table.apply(&done).unwrap();
    assert_eq!(table.apply(&done), Err(Violation::NotOpen(id)));
    table.apply(&Record::Undone { entry: id }).unwrap();
    assert_eq!(table.apply(&Record::Undone { entry: id }), Err(Violation::NotOpen(id)));
    assert_eq!(table.apply(&intent(1)), Err(Violation::Reused(id)), "numbers are not used again");
}

#[test]
fn a_sandbox_has_only_so_many_of_each() {
    let mut table = LedgerTable::default();
    let full = Violation::Full { kind: "processes", limit: 16 };
    for n in 1..=16 {
        table.apply(&intent(n)).unwrap();
    }
    assert_eq!(table.apply(&intent(17)), Err(full.clone()));
    assert_eq!(full.to_string(), "a sandbox has at most 16 processes");
    table.apply(&file(17, "/run/ra/s/x")).unwrap();
    table.apply(&Record::Refused { entry: EntryId(3) }).unwrap();
    table.apply(&intent(18)).unwrap();
    assert_eq!(table.apply(&intent(19)), Err(full));
}

#[test]
fn every_prefix_of_a_ledger_can_be_read() {
    let text = lines(&[header(), intent(1), Record::Done { entry: EntryId(1), identity: Identity::Named }, intent(2)]);
    for end in 0..=text.len() {
        let read = read(&text[..end], &bounds(), "b").unwrap();
        assert!(read.table.len() <= 2 && read.whole <= end);
    }
}

#[test]
fn damage_is_refused_with_its_line() {
    let good = lines(&[header(), intent(1)]);
    let second = good.lines().nth(1).unwrap();
    for (text, line) in [
        (good.replace("process", "proc\u{0}ess"), 2),
        (good.replacen("intent", "indent", 1), 2),
        (format!("{good}{{}}\n"), 3),
        (format!("{good}{second}\n"), 3),
        (format!("{second}\n"), 1),
        (lines(&[intent(1)]), 1),
        (lines(&[header(), header()]), 2),
        (good.replace("\"version\":2", "\"version\":9"), 1),
        (good.replace("\"sandbox\":\"s\"", "\"sandbox\":\"t\""), 1),
        (lines(&[header(), file(1, "/run/ra/s/a"), file(2, "/run/ra/other/a")]), 3),
    ] {
        assert_eq!(read(&text, &bounds(), "b").unwrap_err().0, line, "{text}");
    }
    assert!(!read(&good, &bounds(), "other").unwrap().same_boot);
}

#[test]
fn a_file_of_another_sandbox_or_version_is_named_as_that() {
    let mut other = header();
    if let Record::Header { sandbox, .. } = &mut other {
        *sandbox = SandboxId::new("t").unwrap();
    }
    let (_, violation) = read(&lines(&[other]), &bounds(), "b").unwrap_err();
    assert_eq!(violation.to_string(), "it belongs to sandbox t");
    let mut old = header();
    if let Record::Header { version, .. } = &mut old {
        *version = 1;
    }
    assert_eq!(read(&lines(&[old]), &bounds(), "b").unwrap_err().1, Violation::Version(1));
}
