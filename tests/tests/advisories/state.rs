//! Directories, sockets and state files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use lifecycle_tests::simulated::{boot, create, in_virtual_time};
use lifecycle_tests::tamper::{seal, unsealed};
use resource_actors::ledger::{DirectoryStore, SandboxStore};
use resource_actors::supervisor::{Progress, SAVED_VERSION};
use resource_actors::{ResourceSystem, SandboxSpec};
use sandbox_model::config::SandboxConfig;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::EntryId;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::{ErrorKind, SandboxId};
use simulation::{SimulatedFacts, World, simulated_ports};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn close(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn spec() -> SandboxSpec {
    SandboxSpec { id: id(), config: SandboxConfig::default().into(), cgroups_path: None }
}

fn progress() -> Progress {
    let (state, committed, facts) = (LifecycleState::Created, EntryId(0), Arc::default());
    Progress { version: SAVED_VERSION, state, committed, open: None, facts }
}

fn id() -> SandboxId {
    SandboxId::new("pod").unwrap()
}

/// The directories of the runtime's state could be entered by everybody.
#[test]
fn cve_2024_25621_state_is_closed_to_others_or_not_used() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    let store = DirectoryStore::new(&state);
    store.create(&spec()).unwrap();
    store.save(&id(), progress()).unwrap();
    let dir = SandboxDir::new(&state, &id());
    assert_eq!((mode(&state), mode(dir.root())), (0o700, 0o700));
    assert_eq!((mode(&dir.ledger()), mode(&dir.saved())), (0o600, 0o600));
    for (path, loose, tight) in
        [(state.as_path(), 0o711, 0o700), (dir.root(), 0o755, 0o700), (&dir.ledger(), 0o644, 0o600)]
    {
        close(path, loose);
        assert_eq!(store.open(&id()).unwrap_err().kind, ErrorKind::Denied, "{}", path.display());
        close(path, tight);
    }
    store.open(&id()).unwrap();
}

/// As root, a file was copied into a directory that another user could write to, through a link.
#[test]
fn cve_2026_1386_neither_a_link_nor_a_second_name_is_written_through() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    let store = DirectoryStore::new(&state);
    store.create(&spec()).unwrap();
    let dir = SandboxDir::new(&state, &id());
    let victim = home.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    close(&victim, 0o600);
    symlink(&victim, dir.saved().with_extension("json.new")).unwrap();
    assert!(store.save(&id(), progress()).is_err(), "a link where the state is written");
    fs::remove_file(dir.saved().with_extension("json.new")).unwrap();
    for name in [dir.saved(), dir.ledger()] {
        let _ = fs::remove_file(&name);
        symlink(&victim, &name).unwrap();
    }
    assert!(store.load(&id()).is_err() && store.open(&id()).is_err(), "links");
    for name in [dir.saved(), dir.ledger()] {
        fs::remove_file(&name).unwrap();
        fs::hard_link(&victim, &name).unwrap();
    }
    assert_eq!(store.load(&id()).unwrap_err().kind, ErrorKind::Denied, "a second name");
    assert_eq!(store.open(&id()).unwrap_err().kind, ErrorKind::Denied, "a second name");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
}

/// A checkpoint's devices, mounts and files were believed when it was restored.
#[test]
fn cve_2026_53492_cve_2026_50195_what_was_kept_is_not_believed() {
    let home = tempfile::tempdir().unwrap();
    let state = home.path().join("state");
    let world = Arc::new(World::new());
    let system = |world: &Arc<World>| {
        let store = Arc::new(DirectoryStore::new(&state));
        ResourceSystem::builder(simulated_ports(world)).store(store).facts(Arc::new(SimulatedFacts::default())).here()
    };
    in_virtual_time(|| async {
        let sandbox = create(&system(&world), "pod").await.unwrap();
        boot(&sandbox).await.unwrap();
        sandbox.save().await.unwrap();
    });
    let dir = SandboxDir::new(&state, &id());
    let (ledger, saved) = (fs::read_to_string(dir.ledger()).unwrap(), fs::read_to_string(dir.saved()).unwrap());
    let own = dir.root().to_str().unwrap();
    let before = world.list();
    in_virtual_time(|| async {
        let system = system(&world);
        for (what, changed) in [
            ("another's socket", saved.replace(&format!("{own}/hybrid.sock"), "/run/docker.sock")),
            ("another version", saved.replacen("\"version\":1", "\"version\":7", 1)),
        ] {
            assert_ne!(changed, saved, "{what}");
            fs::write(dir.saved(), changed).unwrap();
            assert!(system.saved(&id()).is_err(), "{what}");
        }
        let lines = unsealed(&ledger);
        let outside: Vec<_> = lines.iter().map(|line| line.replace(&format!("{own}/rw"), "/etc")).collect();
        assert_ne!(outside, lines);
        fs::write(dir.ledger(), seal(&outside)).unwrap();
        let refused = system.cleanup_sandbox(&id()).await.unwrap_err();
        assert!(refused.to_string().contains(" line "), "{refused}");
    });
    assert_eq!(world.list(), before, "nothing was undone on somebody else's word");
}

/// Any process of the same user could connect to a shim's abstract socket.
#[test]
fn cve_2020_15257_every_socket_has_a_name_in_a_closed_directory() {
    let dir = SandboxDir::new(Path::new(sandbox_model::layout::STATE_DIR), &SandboxId::new("x".repeat(64)).unwrap());
    for socket in [dir.virtiofsd_socket(), dir.vsock_socket(), dir.hybrid_socket()] {
        assert!(socket.is_absolute() && socket.starts_with(dir.root()), "{}", socket.display());
        let bytes = socket.as_os_str().len();
        assert!((1..108).contains(&bytes), "{} has {bytes} bytes: unix(7) takes 107", socket.display());
    }
    let home = tempfile::tempdir().unwrap();
    DirectoryStore::new(home.path().join("state")).create(&spec()).unwrap();
    assert_eq!(mode(&home.path().join("state/pod")), 0o700);
}
