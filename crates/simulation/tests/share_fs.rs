//! The share-fs actor on the simulated host: what must hold whatever the kernel says.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../sharefs-actor/tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;

use sandbox_model::device::Access::{ReadOnly, ReadWrite};
use sandbox_model::ledger::Ledger;
use sandbox_model::request::SandboxBindMount;
use sharefs_actor::{ShareFsError, VerifyShare};
use simulation::{SimulatedShareFs, World};
use support::Sandbox;

fn on_simulation<F: Future<Output = ()>>(test: impl FnOnce(Sandbox, Arc<World>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let world = Arc::new(World::new());
        let sandbox = Sandbox::new(Arc::new(SimulatedShareFs::new(world.clone())), Path::new("/run/x"), "pod");
        test(sandbox, world.clone()).await;
        assert_eq!(world.list(), Vec::<String>::new(), "the world is as it was");
    });
}

async fn busy(sandbox: &Sandbox) {
    let bind = SandboxBindMount { source: "/etc/keys".into(), access: ReadOnly };
    sandbox.ask(Sandbox::wish("virtiofsd", vec![bind])).await.unwrap();
    sandbox.ask(VerifyShare {}).await.unwrap();
    sandbox.ask(Sandbox::rootfs("a", "/images/a", ReadWrite)).await.unwrap();
    sandbox.ask(Sandbox::volume("a", "/data", "/data", ReadOnly)).await.unwrap();
    sandbox.ask(Sandbox::volume("b", "/data", "/data", ReadOnly)).await.unwrap();
    sandbox.ask(Sandbox::volume("b", "/hosts.file", "/etc/hosts", ReadWrite)).await.unwrap();
}

#[test]
fn all_is_undone_by_the_actor_that_made_it_and_by_a_fresh_one() {
    on_simulation(|sandbox, _| async move {
        busy(&sandbox).await;
        sandbox.release().await;
    });
    for forget in [false, true] {
        on_simulation(|mut sandbox, _| async move {
            busy(&sandbox).await;
            sandbox.restart(forget);
            sandbox.release().await;
        });
    }
}

#[test]
fn the_last_holder_takes_the_share_along() {
    on_simulation(|sandbox, world| async move {
        busy(&sandbox).await;
        let mounts = || world.list().iter().filter(|line| line.starts_with("mount ")).count();
        let all = mounts();
        assert!(sandbox.undo(sandbox.of_container("a")).await.is_clean());
        assert_eq!(mounts(), all - 1, "the root file system is gone, the volume is b's");
        assert!(sandbox.undo(sandbox.of_container("b")).await.is_clean());
        assert_eq!(mounts(), all - 3);
        sandbox.release().await;
    });
}

#[test]
fn a_step_that_failed_is_undone_and_can_be_repeated() {
    on_simulation(|sandbox, _| async move {
        let missing = SandboxBindMount { source: "/x.missing".into(), access: ReadOnly };
        let error = sandbox.ask(Sandbox::wish("virtiofsd", vec![missing])).await.unwrap_err();
        assert!(matches!(error, ShareFsError::BadSource { .. }), "{error}");
        sandbox.release().await;
        busy(&sandbox).await;
        let again = sandbox.ask(Sandbox::wish("virtiofsd", vec![])).await;
        assert_eq!(again, Err(ShareFsError::AlreadySetUp));

        let last = sandbox.ledger.live().last().unwrap().id;
        let file = sandbox.ask(Sandbox::rootfs("c", "/x.file", ReadOnly)).await;
        assert!(matches!(file, Err(ShareFsError::BadSource { .. })));
        assert!(sandbox.newer_than(last).is_empty());
        sandbox.ask(Sandbox::rootfs("c", "/images/c", ReadOnly)).await.unwrap();
        assert!(sandbox.undo(sandbox.of_container("c")).await.is_clean());
        sandbox.ask(Sandbox::rootfs("c", "/images/c", ReadOnly)).await.unwrap();
        sandbox.release().await;
    });
}
