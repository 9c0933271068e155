//! The file of a ledger: one line for each record, in one `write(2)`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sandbox_model::ledger::Record;
use sandbox_model::{ErrorKind, PortError, PortResult};

use super::files::replace;
use super::{Bounds, LineLedger, Lines, own, read};

/// The largest file that is read. It is never written so large: what a sandbox may have fits.
const BYTES_MAX: u64 = 64 << 20;

/// Lines in a file.
#[derive(Debug)]
pub(super) struct LedgerFile {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines in it.
    whole: u64,
}

/// Makes the ledger of a new sandbox.
pub(super) fn create(path: PathBuf, boot: String, bounds: Bounds) -> PortResult<LineLedger<LedgerFile>> {
    let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(|error| failed("open", &path, error))?;
    LineLedger::create(LedgerFile { file, path, whole: 0 }, bounds, boot)
}

/// Opens the ledger that an earlier process has left.
pub(super) fn open(path: PathBuf, boot: String, bounds: Bounds) -> PortResult<LineLedger<LedgerFile>> {
    let mut file = own::open(&path, true)?;
    let text = own::text(&mut file, &path, BYTES_MAX)?;
    let found = read(&text, &bounds, &boot).map_err(|(line, violation)| {
        let at = format!("{} line {line}", path.display());
        PortError::new(ErrorKind::Invalid, "read", at, violation.to_string())
    })?;
    let whole = found.whole as u64;
    if found.whole < text.len() {
        // The cut line must not become the beginning of the next record.
        file.set_len(whole).map_err(|error| failed("truncate", &path, error))?;
    }
    LineLedger::open(LedgerFile { file, path, whole }, found, bounds, boot)
}

fn failed(operation: &str, path: &Path, error: io::Error) -> PortError {
    PortError::os(operation, path.display().to_string(), error)
}

impl Lines for LedgerFile {
    fn append(&mut self, line: &str, _: &Record) -> PortResult<()> {
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // A full tmpfs takes a part of a line: it must not become the beginning of the next one.
            let cut = self.file.set_len(self.whole);
            let cut = cut.map_or_else(|error| format!("; its torn line stays: {error}"), |()| String::new());
            let mut refused = failed("write", &self.path, error);
            refused.cause.push_str(&cut);
            return Err(refused);
        }
        self.whole += line.len() as u64;
        Ok(())
    }

    fn replace(&mut self, text: &str) -> PortResult<()> {
        (self.file, self.whole) = (replace(&self.path, text.as_bytes())?, text.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sandbox_model::SandboxId;
    use sandbox_model::ledger::{EntryId, HostObject, Identity, Ledger, Scope};
    use sandbox_model::lifecycle::ActorName;

    use super::*;

    fn place(dir: &Path) -> (PathBuf, Bounds) {
        let id = SandboxId::new("pod").unwrap();
        fs::create_dir(dir.join("pod")).unwrap();
        (dir.join("pod/ledger.jsonl"), Bounds::new(dir, &id))
    }

    fn hold(name: &str) -> HostObject {
        HostObject::Hold { object: name.to_owned() }
    }

    #[test]
    fn a_long_life_does_not_make_a_long_file() {
        let temporary = tempfile::tempdir().unwrap();
        let (path, bounds) = place(temporary.path());
        let ledger = create(path.clone(), "b".into(), bounds.clone()).unwrap();
        let stays = ledger.intend(ActorName::Device, Scope::Sandbox, hold("stays")).unwrap();
        ledger.append(Record::Done { entry: stays, identity: Identity::Named }).unwrap();
        let long = "x".repeat(4000);
        let mut largest = 0;
        for _ in 0..2_000 {
            let entry = ledger.intend(ActorName::Device, Scope::Sandbox, hold(&long)).unwrap();
            ledger.append(Record::Refused { entry }).unwrap();
            largest = largest.max(fs::metadata(&path).unwrap().len());
        }
        assert!(largest < (1 << 20) + 8_192, "{largest}");
        let live = ledger.live();
        drop(ledger);
        let again = open(path, "b".into(), bounds).unwrap();
        assert_eq!(again.live(), live);
        let next = again.intend(ActorName::Device, Scope::Sandbox, hold("next")).unwrap();
        assert_eq!(next, EntryId(2_002), "numbers are not used again");
    }

    #[test]
    fn what_is_out_of_bounds_is_not_written_either() {
        let temporary = tempfile::tempdir().unwrap();
        let (path, bounds) = place(temporary.path());
        let ledger = create(path.clone(), "b".into(), bounds).unwrap();
        let before = fs::read(&path).unwrap();
        let outside = HostObject::File { path: "/etc/passwd".into() };
        let error = ledger.intend(ActorName::Device, Scope::Sandbox, outside).unwrap_err();
        assert!(error.cause.contains("none of sandbox pod"), "{error}");
        let long = hold(&"x".repeat(300_000));
        assert!(ledger.intend(ActorName::Device, Scope::Sandbox, long).unwrap_err().cause.contains("too long"));
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(ledger.intend(ActorName::Device, Scope::Sandbox, hold("a")).unwrap(), EntryId(1));
    }

    #[test]
    fn an_earlier_boots_file_is_begun_anew() {
        let temporary = tempfile::tempdir().unwrap();
        let (path, bounds) = place(temporary.path());
        let old = create(path.clone(), "old".into(), bounds.clone()).unwrap();
        old.intend(ActorName::Device, Scope::Sandbox, hold("a")).unwrap();
        let new = open(path.clone(), "new".into(), bounds.clone()).unwrap();
        assert!(new.live().is_empty());
        assert_eq!(new.intend(ActorName::Device, Scope::Sandbox, hold("b")).unwrap(), EntryId(2));
        assert_eq!(open(path, "new".into(), bounds).unwrap().live().len(), 1, "and is of this boot now");
    }
}
