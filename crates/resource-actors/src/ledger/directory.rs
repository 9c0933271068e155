//! Ledgers on tmpfs, one directory for each sandbox, mode 0700.
//!
//! A record is one `write(2)` of one line to a file opened with `O_APPEND`: a crash leaves whole
//! lines and at most one cut one. The directory lies on tmpfs, so the system calls here take
//! microseconds and are made on the actors' own thread.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Ledger, UndoItem, UndoReport, Undone};
use sandbox_model::{ErrorKind, PortError, PortResult, SandboxId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::file;
use super::files::{new_of, replace};
use super::own;
use super::{Bounds, DIRECTORY_ENTRY, SandboxStore};
use crate::supervisor::{Progress, SAVED_VERSION, SavedSandbox};
use crate::system::SandboxSpec;

/// Keeps each sandbox in a directory below one state directory.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    state_dir: PathBuf,
}

impl DirectoryStore {
    /// A store below `state_dir`, which is made (mode 0700) when the first sandbox is.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self { state_dir: state_dir.into() }
    }

    fn dir(&self, sandbox: &SandboxId) -> SandboxDir {
        SandboxDir::new(&self.state_dir, sandbox)
    }

    /// Makes the state directory, or finds it. It is `NotFound` if another has taken it away meanwhile.
    fn make_state_dir(&self) -> PortResult<()> {
        match DirBuilder::new().recursive(true).mode(0o700).create(&self.state_dir) {
            // It is there and no directory, or was there a moment ago: the look tells which.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PortError::os("mkdir", self.state_dir.display().to_string(), error));
            }
            _ => {}
        }
        own::directory(&self.state_dir)
    }

    /// Makes a sandbox's directory. Whoever releases the last sandbox takes the state directory along,
    /// perhaps under our hands: then all begins anew.
    fn make_sandbox_dir(&self, dir: &SandboxDir) -> PortResult<()> {
        let make = || {
            self.make_state_dir()?;
            let made = DirBuilder::new().mode(0o700).create(dir.root());
            made.map_err(|error| PortError::os("mkdir", dir.root().display().to_string(), error))
        };
        for _ in 1..MAKE_ATTEMPTS {
            match make() {
                Err(error) if error.kind == ErrorKind::NotFound => {}
                made => return made,
            }
        }
        make()
    }
}

/// How often a sandbox's directory is tried.
const MAKE_ATTEMPTS: usize = 100;

impl SandboxStore for DirectoryStore {
    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    fn create(&self, spec: &SandboxSpec) -> PortResult<Rc<dyn Ledger>> {
        let dir = self.dir(&spec.id);
        self.make_sandbox_dir(&dir)?;
        let created = (|| {
            let bounds = Bounds::new(&self.state_dir, &spec.id);
            let ledger = file::create(dir.ledger(), boot_id()?, bounds)?;
            replace(&dir.spec(), &written(&dir.spec(), &KeptSpec { version: SAVED_VERSION, spec: spec.clone() })?)?;
            Ok(Rc::new(ledger) as Rc<dyn Ledger>)
        })();
        if created.is_err() {
            // Nothing is in it but what this function has just made.
            let _ = remove(&dir, &own_files(&dir));
        }
        created
    }

    fn open(&self, sandbox: &SandboxId) -> PortResult<Rc<dyn Ledger>> {
        let dir = self.dir(sandbox);
        own::directory(&self.state_dir)?;
        own::directory(dir.root())?;
        // A crash may have come before the first record, or after the ledger had gone and before its
        // directory: such a sandbox has nothing, and is released like any other.
        let ledger = file::open(dir.ledger(), boot_id()?, Bounds::new(&self.state_dir, sandbox))?;
        Ok(Rc::new(ledger))
    }

    fn save(&self, sandbox: &SandboxId, progress: Progress) -> PortResult<()> {
        let path = self.dir(sandbox).saved();
        replace(&path, &written(&path, &progress)?).map(drop)
    }

    fn load(&self, sandbox: &SandboxId) -> PortResult<SavedSandbox> {
        let dir = self.dir(sandbox);
        own::directory(&self.state_dir)?;
        own::directory(dir.root())?;
        let kept: KeptSpec = understood(&dir.spec())?;
        let progress: Progress = understood(&dir.saved())?;
        for (path, version) in [(dir.spec(), kept.version), (dir.saved(), progress.version)] {
            if version != SAVED_VERSION {
                return Err(invalid(&path, format!("version {version} is not {SAVED_VERSION}")));
            }
        }
        if kept.spec.id != *sandbox {
            return Err(invalid(&dir.spec(), format!("it belongs to sandbox {}", kept.spec.id)));
        }
        let saved = SavedSandbox { spec: kept.spec, progress };
        saved.check(&self.state_dir).map(|()| saved)
    }

    fn destroy(&self, sandbox: &SandboxId) -> UndoReport {
        let dir = self.dir(sandbox);
        // The directory goes before the ledger's name would be missed: if it cannot go, the ledger
        // stays for the next clean-up.
        let result = match contents(&dir) {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(Undone::AlreadyGone),
            Err(error) => Err(error),
            Ok((_, strangers)) if !strangers.is_empty() => Err(PortError::new(
                ErrorKind::Busy,
                "rmdir",
                dir.root().display().to_string(),
                format!("still contains {}", strangers.join(", ")),
            )),
            Ok((own, _)) => remove(&dir, &own).map(|()| Undone::Undone),
        };
        // Goes only if it is empty: another sandbox may live in it.
        let _ = fs::remove_dir(&self.state_dir);
        let object = format!("directory {}", dir.root().display());
        UndoReport { items: vec![UndoItem { entry: DIRECTORY_ENTRY, object, result }] }
    }

    fn list(&self) -> PortResult<Vec<SandboxId>> {
        let entries = match fs::read_dir(&self.state_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| PortError::os("readdir", self.state_dir.display().to_string(), error))?,
        };
        let mut sandboxes: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str().and_then(|name| SandboxId::new(name).ok()))
            .collect();
        sandboxes.sort();
        Ok(sandboxes)
    }
}

/// The largest file of a sandbox's own that is read besides its ledger.
const SAVED_BYTES_MAX: u64 = 16 << 20;

/// What a sandbox was created with, as its file says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptSpec {
    version: u32,
    spec: SandboxSpec,
}

fn invalid(path: &Path, cause: String) -> PortError {
    PortError::new(ErrorKind::Invalid, "read", path.display().to_string(), cause)
}

fn written<T: Serialize>(path: &Path, value: &T) -> PortResult<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| invalid(path, error.to_string()))
}

fn understood<T: DeserializeOwned>(path: &Path) -> PortResult<T> {
    let text = own::text(&mut own::open(path, false)?, path, SAVED_BYTES_MAX)?;
    serde_json::from_str(&text).map_err(|error| invalid(path, error.to_string()))
}

/// The ledger's own files in a sandbox's directory, in the order in which they go, and the names of
/// what is none.
fn contents(dir: &SandboxDir) -> PortResult<(Vec<PathBuf>, Vec<String>)> {
    let entries = fs::read_dir(dir.root());
    let entries = entries.map_err(|error| PortError::os("readdir", dir.root().display().to_string(), error))?;
    let found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let ours = own_files(dir);
    let strange = found.iter().filter(|path| !ours.contains(path));
    let strangers = strange.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    Ok((ours.into_iter().filter(|path| found.contains(path)).collect(), strangers))
}

/// The ledger is the last: as long as it is there, a later clean-up finds the sandbox.
fn own_files(dir: &SandboxDir) -> [PathBuf; 6] {
    let (spec, saved, ledger) = (dir.spec(), dir.saved(), dir.ledger());
    [new_of(&saved), saved, new_of(&spec), spec, new_of(&ledger), ledger]
}

fn remove(dir: &SandboxDir, files: &[PathBuf]) -> PortResult<()> {
    for path in files {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PortError::os("unlink", path.display().to_string(), error));
            }
            _ => {}
        }
    }
    fs::remove_dir(dir.root()).map_err(|error| PortError::os("rmdir", dir.root().display().to_string(), error))
}

/// Read once: a process does not outlive its boot.
fn boot_id() -> PortResult<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    static READ: OnceLock<String> = OnceLock::new();
    if let Some(id) = READ.get() {
        return Ok(id.clone());
    }
    let id = fs::read_to_string(PATH).map_err(|error| PortError::os("read", PATH, error))?;
    Ok(READ.get_or_init(|| id.trim().to_owned()).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::{Facts, OpenStep};
    use sandbox_model::config::SandboxConfig;
    use sandbox_model::ledger::{EntryId, HostObject, Identity, Record, Scope};
    use sandbox_model::lifecycle::{ActorName, LifecycleState};

    fn spec(name: &str) -> SandboxSpec {
        SandboxSpec { id: SandboxId::new(name).unwrap(), config: SandboxConfig::default().into(), cgroups_path: None }
    }

    fn progress() -> Progress {
        let facts = Facts::default().into();
        Progress {
            version: SAVED_VERSION,
            state: LifecycleState::Running,
            committed: EntryId(3),
            open: Some(OpenStep::Cleanup),
            facts,
        }
    }

    fn process() -> HostObject {
        HostObject::Process { program: "x".into() }
    }

    #[test]
    fn a_state_directory_that_is_a_file_is_refused_for_what_it_is() {
        let temporary = tempfile::tempdir().unwrap();
        std::fs::write(temporary.path().join("state"), "").unwrap();
        let error = DirectoryStore::new(temporary.path().join("state")).create(&spec("one")).unwrap_err();
        assert_eq!((error.kind, error.cause.as_str()), (ErrorKind::Denied, "it is not a directory"), "{error}");
    }

    #[test]
    fn what_was_recorded_is_there_after_a_crash() {
        let temporary = tempfile::tempdir().unwrap();
        let store = DirectoryStore::new(temporary.path().join("state"));
        let id = SandboxId::new("one").unwrap();
        let ledger = store.create(&spec("one")).unwrap();
        let entry = ledger.intend(ActorName::Supervisor, Scope::Sandbox, process()).unwrap();
        ledger.append(Record::Done { entry, identity: Identity::Named }).unwrap();
        ledger.intend(ActorName::Device, Scope::Sandbox, process()).unwrap();
        assert_eq!(store.create(&spec("one")).unwrap_err().kind, ErrorKind::Exists);
        drop(ledger);

        let path = SandboxDir::new(store.state_dir(), &id).ledger();
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"record\":\"inte");
        fs::write(&path, text).unwrap();
        let ledger = store.open(&id).unwrap();
        assert_eq!(ledger.live().len(), 2);
        assert_eq!(ledger.live()[1].identity, None, "only the intent is known");
        ledger.intend(ActorName::Device, Scope::Sandbox, process()).unwrap();
        assert_eq!(store.open(&id).unwrap().live().len(), 3, "the cut line has gone");
    }

    #[test]
    fn a_crash_around_the_first_and_the_last_record_leaves_a_sandbox_with_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let store = DirectoryStore::new(temporary.path().join("state"));
        let id = SandboxId::new("one").unwrap();
        assert_eq!(store.open(&id).unwrap_err().kind, ErrorKind::NotFound);
        for left in [None, Some(""), Some("{\"record\":\"hea")] {
            drop(store.create(&spec("one")).unwrap());
            let path = SandboxDir::new(store.state_dir(), &id).ledger();
            match left {
                None => fs::remove_file(&path).unwrap(),
                Some(text) => fs::write(&path, text).unwrap(),
            }
            let ledger = store.open(&id).unwrap();
            assert_eq!(ledger.live(), []);
            ledger.intend(ActorName::Device, Scope::Sandbox, process()).unwrap();
            drop(ledger);
            assert_eq!(store.open(&id).unwrap().live().len(), 1, "{left:?}: it is a ledger like any other");
            assert!(store.destroy(&id).is_clean());
            assert_eq!(store.list().unwrap(), []);
        }
    }

    #[test]
    fn a_directory_with_a_strangers_file_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let store = DirectoryStore::new(temporary.path());
        fs::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let id = SandboxId::new("one").unwrap();
        store.create(&spec("one")).unwrap();
        store.save(&id, progress()).unwrap();
        let stranger = temporary.path().join("one/stranger");
        fs::write(&stranger, "data").unwrap();
        assert!(!store.destroy(&id).is_clean());
        assert_eq!(fs::read(&stranger).unwrap(), b"data");
        assert!(store.open(&id).is_ok(), "the ledger stays for the next clean-up");
        fs::remove_file(&stranger).unwrap();
        assert!(store.destroy(&id).is_clean());
        assert!(store.destroy(&id).is_clean(), "gone already is success");
        assert_eq!(store.list().unwrap(), []);
    }

    #[test]
    fn a_state_directory_of_others_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        fs::set_permissions(temporary.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let error = DirectoryStore::new(temporary.path()).create(&spec("one")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
    }

    #[test]
    fn what_was_kept_is_read_back_and_nothing_else_is_believed() {
        let temporary = tempfile::tempdir().unwrap();
        let store = DirectoryStore::new(temporary.path().join("state"));
        let id = SandboxId::new("one").unwrap();
        store.create(&spec("one")).unwrap();
        assert_eq!(store.load(&id).unwrap_err().kind, ErrorKind::NotFound);
        store.save(&id, progress()).unwrap();
        let dir = SandboxDir::new(store.state_dir(), &id);
        let good = fs::read_to_string(dir.saved()).unwrap();
        assert_eq!(store.load(&id).unwrap(), SavedSandbox { spec: spec("one"), progress: progress() });
        for (bad, kind) in [
            (good.replace("\"version\":1", "\"version\":2"), ErrorKind::Invalid),
            (good.replacen('{', "{\"more\":1,", 1), ErrorKind::Invalid),
            (good[..good.len() / 2].to_owned(), ErrorKind::Invalid),
        ] {
            fs::write(dir.saved(), bad).unwrap();
            assert_eq!(store.load(&id).unwrap_err().kind, kind);
        }
        fs::write(dir.saved(), &good).unwrap();
        let foreign = fs::read_to_string(dir.spec()).unwrap().replace("\"id\":\"one\"", "\"id\":\"two\"");
        let own = fs::read_to_string(dir.spec()).unwrap();
        fs::write(dir.spec(), foreign).unwrap();
        assert_eq!(store.load(&id).unwrap_err().kind, ErrorKind::Invalid, "another sandbox's");
        fs::write(dir.spec(), own).unwrap();
        assert!(store.load(&id).is_ok());

        let second = temporary.path().join("second");
        fs::hard_link(dir.saved(), &second).unwrap();
        assert_eq!(store.load(&id).unwrap_err().kind, ErrorKind::Denied, "a second name");
        fs::remove_file(second).unwrap();
        fs::set_permissions(dir.saved(), std::os::unix::fs::PermissionsExt::from_mode(0o620)).unwrap();
        assert_eq!(store.load(&id).unwrap_err().kind, ErrorKind::Denied, "others may write it");
        fs::set_permissions(dir.ledger(), std::os::unix::fs::PermissionsExt::from_mode(0o620)).unwrap();
        assert_eq!(store.open(&id).unwrap_err().kind, ErrorKind::Denied, "others may write it");
        assert!(store.destroy(&id).is_clean());
    }
}
