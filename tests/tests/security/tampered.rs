//! State that somebody else has written (rule R19, test S8): it is refused with the number of its
//! line, or what it says is not done outside of the sandbox's own objects.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifecycle_tests::simulated::{add_container, boot, create, in_virtual_time};
use lifecycle_tests::tamper::{Tampered, accidents, documents, ledgers};
use resource_actors::ledger::DirectoryStore;
use resource_actors::{ResourceSystem, SandboxError};
use sandbox_model::SandboxId;
use sandbox_model::layout::SandboxDir;
use simulation::{SimulatedFacts, World, simulated_ports};

fn system(world: &Arc<World>, state: &Path) -> ResourceSystem {
    let store = Arc::new(DirectoryStore::new(state));
    ResourceSystem::builder(simulated_ports(world)).store(store).facts(Arc::new(SimulatedFacts::default())).here()
}

fn victim() -> SandboxId {
    SandboxId::new("victim").unwrap()
}

/// Two running sandboxes of a process that has died.
struct Scene {
    _home: tempfile::TempDir,
    state: PathBuf,
    world: World,
    /// What exists of the bystander.
    bystanders: Vec<String>,
    /// The victim's ledger.
    ledger: String,
    saved: String,
}

impl Scene {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let state = home.path().join("state");
        let world = Arc::new(World::new());
        let bystanders = in_virtual_time(|| async {
            let system = system(&world, &state);
            let other = create(&system, "bystander").await.unwrap();
            boot(&other).await.unwrap();
            add_container(&other, "one").await.unwrap();
            let bystanders = world.list();
            let victim = create(&system, "victim").await.unwrap();
            boot(&victim).await.unwrap();
            add_container(&victim, "two").await.unwrap();
            victim.save().await.unwrap();
            bystanders
        });
        let dir = SandboxDir::new(&state, &victim());
        let ledger = fs::read_to_string(dir.ledger()).unwrap();
        let saved = fs::read_to_string(dir.saved()).unwrap();
        Self { _home: home, state, world: world.fork(), bystanders, ledger, saved }
    }

    /// Lets a new process clean the victim up by what `text` says. The world afterwards comes back.
    fn clean_up(&self, text: &str) -> (Vec<String>, Result<bool, SandboxError>) {
        let dir = SandboxDir::new(&self.state, &victim());
        if !dir.root().exists() {
            fs::create_dir(dir.root()).unwrap();
            fs::set_permissions(dir.root(), fs::Permissions::from_mode(0o700)).unwrap();
        }
        fs::write(dir.ledger(), text).unwrap();
        fs::set_permissions(dir.ledger(), fs::Permissions::from_mode(0o600)).unwrap();
        let world = Arc::new(self.world.fork());
        let outcome = in_virtual_time(|| async {
            let report = system(&world, &self.state).cleanup_sandbox(&victim()).await?;
            Ok(report.is_clean())
        });
        (world.list(), outcome)
    }

    fn judge(&self, Tampered { what, text }: &Tampered) -> Option<usize> {
        let (after, outcome) = self.clean_up(text);
        let lost: Vec<_> = self.bystanders.iter().filter(|object| !after.contains(object)).collect();
        assert!(lost.is_empty(), "{what}: the bystander lost {lost:#?}");
        let error = outcome.err()?;
        let text = error.to_string();
        assert_eq!(after, self.world.list(), "{what}: refused ({text}), so nothing may be undone");
        let line = text.split(" line ").nth(1).and_then(|rest| rest.split(':').next()?.parse().ok());
        assert!(line.is_some(), "{what}: {text} names no line");
        line
    }
}

#[test]
fn a_ledger_that_somebody_else_has_written_does_nothing_to_others() {
    let scene = Scene::new();
    let (after, outcome) = scene.clean_up(&scene.ledger);
    assert!(outcome.unwrap(), "as it is, it cleans up");
    assert_eq!(after, scene.bystanders);
    let others = scene.state.join("bystander");
    let others = [others.join("rw"), others.join("netns"), others.join("virtiofsd.sock")];
    let paths = others.map(|path| path.to_str().unwrap().to_owned());
    let strangers: Vec<&str> = paths.iter().map(String::as_str).chain(["bystander", "one", "blk-0"]).collect();
    let all = ledgers(&scene.ledger, &strangers);
    // Every case is a whole clean-up; the full set is for the security tier.
    let every = if std::env::var_os("RESOURCE_ACTORS_SECURITY_FULL").is_some() { 1 } else { 43 };
    let refused = all.iter().step_by(every).filter(|tampered| scene.judge(tampered).is_some()).count();
    assert!(refused > all.len() / every / 2, "{refused} of {}", all.len());
}

#[test]
fn an_accident_is_found_in_the_line_in_which_it_happened() {
    let scene = Scene::new();
    for accident in accidents(&scene.ledger, 97) {
        // What follows the last line break is what a crash leaves.
        let is_cut = !accident.text.ends_with('\n') || accident.what.starts_with("a line cut out");
        let line = scene.judge(&accident);
        assert!(line.is_some() || is_cut, "{}: not found", accident.what);
    }
}

#[test]
fn a_saved_state_that_somebody_else_has_written_is_refused_or_does_nothing_to_others() {
    let scene = Scene::new();
    let dir = SandboxDir::new(&scene.state, &victim());
    let all = documents(&scene.saved, &["bystander", "/run/docker.sock"]);
    let mut refused = 0;
    for Tampered { what, text } in &all {
        fs::write(dir.saved(), text).unwrap();
        let world = Arc::new(scene.world.fork());
        in_virtual_time(|| async {
            let system = system(&world, &scene.state);
            match system.saved(&victim()) {
                Err(_) => refused += 1,
                Ok(saved) => {
                    assert_eq!(saved.spec.id, victim(), "{what}");
                    if let Some(guest_agent::AgentAddress::Hybrid { socket, .. }) = &saved.progress.facts.agent {
                        assert!(socket.starts_with(dir.root()), "{what}: {}", socket.display());
                    }
                }
            }
        });
        assert_eq!(world.list(), scene.world.list(), "{what}: reading changes nothing");
    }
    assert!(refused > all.len() / 2, "{refused} of {}", all.len());
}
