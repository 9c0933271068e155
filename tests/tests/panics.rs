//! An actor panics over any call that it makes: its sandbox has failed, says why and is released; no
//! other notices.

use std::sync::Arc;

use lifecycle_tests::killed::{At, PANIC, panic_at, process};
use lifecycle_tests::simulated::{add_container, boot, container, create, in_virtual_time, system_on};
use resource_actors::ledger::MemoryStore;
use resource_actors::system::Intercept;
use resource_actors::{ResourceSystem, SandboxError, SandboxHandle};
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::LifecycleState;
use simulation::World;

fn system(world: &Arc<World>, intercept: Option<Intercept>) -> ResourceSystem {
    let for_one = intercept.map(|inner| -> Intercept {
        Arc::new(
            move |sandbox, actor, cause| {
                if sandbox.as_str() == "panics" { inner(sandbox, actor, cause) } else { None }
            },
        )
    });
    system_on(world, &MemoryStore::new("/run/simulated"), None, for_one)
}

async fn life(sandbox: &SandboxHandle) -> Result<(), SandboxError> {
    boot(sandbox).await?;
    add_container(sandbox, "one").await?;
    sandbox.release_container(container("one")).await.map(drop)?;
    sandbox.stop().await
}

#[test]
fn a_panic_over_any_call_fails_one_sandbox_and_leaves_nothing() {
    let (_, calls) = process(None, |intercept| async {
        let sandbox = create(&system(&Arc::new(World::new()), Some(intercept)), "panics").await.unwrap();
        life(&sandbox).await.unwrap();
    });
    assert!(calls > 40, "{calls}");
    let mut failed = 0;
    for at in At::every(calls) {
        in_virtual_time(|| async {
            let world = Arc::new(World::new());
            let system = system(&world, Some(panic_at(at)));
            let other = create(&system, "other").await.unwrap();
            boot(&other).await.unwrap();
            let before = world.list();
            let sandbox = create(&system, "panics").await.unwrap();
            let outcome = life(&sandbox).await;
            let status = sandbox.status();
            if let Err(error) = outcome {
                failed += 1;
                assert!(error.to_string().contains(PANIC), "{at:?}: {error}");
                assert_eq!(status.state, LifecycleState::Failed, "{at:?}");
                assert!(status.failure.as_ref().is_some_and(|why| why.contains(PANIC)), "{at:?}: {status:?}");
            }
            let report = system.cleanup_sandbox(&SandboxId::new("panics").unwrap()).await.unwrap();
            assert!(report.is_clean(), "{at:?}: {report:#?}");
            assert_eq!(world.list(), before, "{at:?}");
            assert_eq!(other.status().state, LifecycleState::Running, "{at:?}");
            add_container(&other, "one").await.unwrap();
            assert!(other.cleanup().await.unwrap().is_clean());
        });
    }
    // A release goes on past an actor's death, and tells of it in its report.
    assert!(failed * 2 > calls, "{failed} of {} points", calls * 2);
}
