//! Any sequence of a caller's requests against a model of what a sandbox is and owns.

use std::collections::BTreeSet;
use std::sync::Arc;

use lifecycle_tests::simulated::{add_container, container, create, in_virtual_time, resources, system};
use proptest::prelude::*;
use resource_actors::{SandboxError, SandboxHandle};
use sandbox_model::lifecycle::LifecycleState;
use simulation::World;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Prepare,
    Start,
    SetUp,
    AddContainer(u8),
    ReleaseContainer(u8),
    Save,
    Stop,
    Cleanup,
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let ask = prop_oneof![
        2 => Just(Ask::Prepare),
        2 => Just(Ask::Start),
        2 => Just(Ask::SetUp),
        3 => (0_u8..3).prop_map(Ask::AddContainer),
        2 => (0_u8..3).prop_map(Ask::ReleaseContainer),
        1 => Just(Ask::Save),
        1 => Just(Ask::Stop),
        1 => Just(Ask::Cleanup),
    ];
    // A life in its order, and then anything.
    (0_usize..4, prop::collection::vec(ask, 0..24)).prop_map(|(begun, mut rest)| {
        let order = [Ask::Prepare, Ask::Start, Ask::SetUp];
        rest.splice(0..0, order[..begun.min(3)].iter().copied());
        rest
    })
}

/// The model: where the sandbox stands, and which containers hold something.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    state: LifecycleState,
    containers: BTreeSet<u8>,
}

impl Model {
    /// Whether the request fits, and what follows if it does.
    fn take(&mut self, ask: Ask) -> bool {
        use LifecycleState::{Created, Prepared, Released, Running, Started, Stopped};
        let next = match (ask, self.state) {
            (Ask::Prepare, Created) => Prepared,
            (Ask::Start, Prepared) => Started,
            (Ask::SetUp, Started) => Running,
            (Ask::AddContainer(n), Running) => {
                // A second root file system of one container is refused, and changes nothing.
                if !self.containers.insert(n) {
                    return false;
                }
                Running
            }
            (Ask::ReleaseContainer(n), Running | Stopped) => {
                self.containers.remove(&n);
                self.state
            }
            (Ask::Save, state) if state != Released => state,
            (Ask::Stop, state) if !matches!(state, Released) => Stopped,
            (Ask::Cleanup, _) => {
                self.containers.clear();
                Released
            }
            _ => return false,
        };
        self.state = next;
        true
    }
}

async fn ask(sandbox: &SandboxHandle, ask: Ask) -> Result<(), SandboxError> {
    let name = |n: u8| format!("c{n}");
    match ask {
        Ask::Prepare => sandbox.prepare_before_start_vm(resources()).await,
        Ask::Start => sandbox.start_vm().await,
        Ask::SetUp => sandbox.setup_after_start_vm().await,
        Ask::AddContainer(n) => add_container(sandbox, &name(n)).await,
        Ask::ReleaseContainer(n) => {
            sandbox.release_container(container(&name(n))).await.map(|report| assert!(report.is_clean()))
        }
        Ask::Save => sandbox.save().await.map(drop),
        Ask::Stop => sandbox.stop().await,
        Ask::Cleanup => sandbox.cleanup().await.map(|report| assert!(report.is_clean(), "{report:#?}")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_sandbox_does_what_its_model_says(asks in asks()) {
        in_virtual_time(|| async {
            let world = Arc::new(World::new());
            let system = system(&world, None, None);
            let sandbox = create(&system, "model").await.unwrap();
            let mut model = Model { state: LifecycleState::Created, containers: BTreeSet::new() };
            for each in asks {
                let (before, fits) = (world.list(), model.take(each));
                let outcome = ask(&sandbox, each).await;
                assert_eq!(outcome.is_ok(), fits, "{each:?} of {model:?}: {outcome:?}");
                let status = sandbox.status();
                assert_eq!((status.state, status.containers), (model.state, model.containers.len()), "{each:?}");
                if !fits {
                    assert_eq!(world.list(), before, "{each:?} was refused, and yet did something");
                }
                for n in 0..3 {
                    let name = format!("passthrough/c{n}");
                    let holds = world.list().iter().any(|object| object.contains(&name));
                    assert_eq!(holds, model.containers.contains(&n), "{each:?}: container {n}");
                }
            }
            sandbox.cleanup().await.unwrap();
            assert_eq!(world.list(), Vec::<String>::new());
        });
    }
}
