//! Z3: the bytes of a ledger or of a saved state, and the clean-up that follows from them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use resource_actors::ResourceSystem;
use resource_actors::ledger::DirectoryStore;
use sandbox_model::SandboxId;
use sandbox_model::layout::SandboxDir;
use simulation::{SimulatedFacts, World, simulated_ports};

use crate::simulated::{add_container, boot, create, in_virtual_time};
use crate::tamper::seal;

/// What stands in a corpus for the state directory.
pub(super) const PLACE: &str = "@STATE@";

fn system(world: &Arc<World>, state: &Path) -> ResourceSystem {
    let store = Arc::new(DirectoryStore::new(state));
    ResourceSystem::builder(simulated_ports(world)).store(store).facts(Arc::new(SimulatedFacts::default())).here()
}

/// The first byte says what follows: `L` a ledger as it is, `S` one that is summed first (by somebody
/// who knows how), anything else a saved state. Whatever it says, nothing of another sandbox goes.
///
/// # Panics
/// When something of another sandbox is gone.
pub fn z3_ledger(bytes: &[u8]) {
    let Some((kind, content)) = bytes.split_first() else { return };
    let home = tempfile::tempdir().expect("a directory");
    let state = home.path().join("state");
    let place = state.to_str().expect("a path that is text");
    let text = String::from_utf8_lossy(content).replace(PLACE, place);
    let world = Arc::new(World::new());
    let victim = SandboxId::new("victim").expect("a literal id");
    let dir = SandboxDir::new(&state, &victim);
    in_virtual_time(|| async {
        let system = system(&world, &state);
        for name in ["bystander", "victim"] {
            let sandbox = create(&system, name).await.expect("a sandbox");
            boot(&sandbox).await.expect("it boots");
            add_container(&sandbox, name).await.expect("a container");
        }
    });
    let bystanders: Vec<String> = world.list().into_iter().filter(|object| object.contains("bystander")).collect();
    assert!(bystanders.len() > 5, "{bystanders:?}");
    let (path, text) = match kind {
        b'L' => (dir.ledger(), text),
        b'S' => (dir.ledger(), seal(&text.lines().map(str::to_owned).collect::<Vec<_>>())),
        _ => (dir.saved(), text),
    };
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file");
    in_virtual_time(|| async {
        let system = system(&world, &state);
        if let Ok(saved) = system.saved(&victim) {
            assert_eq!(saved.spec.id, victim);
            let _ = system.restore(saved).await;
        }
        let _ = system.cleanup_sandbox(&victim).await;
    });
    let after = world.list();
    let lost: Vec<_> = bystanders.iter().filter(|object| !after.contains(object)).collect();
    assert!(lost.is_empty(), "the bystander lost {lost:#?}");
}
