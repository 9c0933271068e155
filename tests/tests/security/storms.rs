//! Callers without manners: storms, callers that leave, callers that do everything twice.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actor_shell::Refused;
use lifecycle_tests::simulated::{
    add_container, boot, container, create, in_virtual_time, lifecycle, resources, system,
};
use resource_actors::{ResourceSystem, SandboxError};
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::LifecycleState;
use simulation::World;

/// Messages that may wait for a sandbox, as the documents say.
const MAILBOX: usize = 64;

fn is_busy<T>(outcome: &Result<T, SandboxError>) -> bool {
    matches!(outcome, Err(SandboxError::Refused(Refused::Busy { .. })))
}

/// C2: more requests than a mailbox takes are refused at once; neither they nor their replies pile up.
#[test]
fn a_storm_on_one_sandbox_is_refused_and_harms_no_other() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let (stormy, calm) = (create(&system, "stormy").await.unwrap(), create(&system, "calm").await.unwrap());
        boot(&stormy).await.unwrap();
        boot(&calm).await.unwrap();
        let before = world.list();
        let (mut busy, mut served) = (0, 0);
        for _ in 0..100 {
            let requests = (0..1_000).map(|_| stormy.storages_for_sandbox(1 << 20));
            for outcome in futures::future::join_all(requests).await {
                busy += usize::from(is_busy(&outcome));
                served += usize::from(outcome.is_ok());
            }
            // The neighbour is asked amid the storm.
            assert_eq!(calm.storages_for_sandbox(1 << 20).await.unwrap().len(), 2);
        }
        assert_eq!(busy + served, 100_000, "each request has one answer");
        assert!((100..=100 * MAILBOX).contains(&served), "{served} were served: {MAILBOX} wait at a time");
        assert_eq!(world.list(), before, "what was refused has done nothing");
        assert!(stormy.cleanup().await.unwrap().is_clean() && calm.cleanup().await.unwrap().is_clean());
        assert_eq!(world.list(), Vec::<String>::new());
    });
}

/// Lets a future be polled only so often, then ends with it undone.
struct Polls<F> {
    left: usize,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Polls<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        match self.inner.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// C4: a caller that leaves at any of its waits leaves a sandbox that can be released. It polls once
/// for each wait of a request, so every number of polls is one place to leave at.
#[test]
fn a_caller_may_leave_at_every_wait() {
    let mut finished_after = None;
    for left in 1..200 {
        let is_done = in_virtual_time(|| async {
            let world = Arc::new(World::new());
            let system = system(&world, None, None);
            let sandbox = create(&system, "left").await.unwrap();
            let life = Polls { left, inner: Box::pin(lifecycle(&sandbox)) };
            let is_done = life.await.is_some();
            // What it asked for last may still be under way; it is queryable, and then released.
            let state = sandbox.status().state;
            assert_ne!(state, LifecycleState::Released, "after {left} polls");
            let report = sandbox.cleanup().await.unwrap();
            assert!(report.is_clean(), "after {left} polls, {state}: {report:#?}");
            assert_eq!(world.list(), Vec::<String>::new(), "after {left} polls");
            is_done
        });
        if is_done {
            finished_after = Some(left);
            break;
        }
    }
    let polls = finished_after.expect("a life ends");
    assert!(polls > 10, "a life of {polls} polls has no place to leave at");
}

/// A request that was sent, and whose caller left, is served or not, but never half.
#[test]
fn a_request_whose_caller_left_is_whole() {
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = system(&world, None, None);
        let sandbox = create(&system, "whole").await.unwrap();
        boot(&sandbox).await.unwrap();
        add_container(&sandbox, "one").await.unwrap();
        let before = world.list();
        let _ = Polls { left: 1, inner: Box::pin(add_container(&sandbox, "two")) }.await;
        // Behind it in the mailbox, so it is served when that one is.
        sandbox.storages_for_sandbox(1).await.unwrap();
        let report = sandbox.release_container(container("two")).await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(world.list(), before);
    });
}

/// What two callers who know nothing of each other do to one sandbox.
async fn meddle(system: &ResourceSystem, turn: usize) {
    let id = SandboxId::new("shared").unwrap();
    for step in 0..12 {
        let handle = system.sandbox(&id);
        match ((turn + step * 7) % 6, handle) {
            (0, _) => drop(create(system, "shared").await),
            (1, Some(handle)) => drop(handle.prepare_before_start_vm(resources()).await),
            (2, Some(handle)) => {
                let _ = handle.start_vm().await;
                let _ = handle.setup_after_start_vm().await;
                let _ = add_container(&handle, "c").await;
            }
            (3, Some(handle)) => drop(handle.stop().await),
            (4, Some(handle)) => drop(handle.cleanup().await),
            (5, _) => drop(system.cleanup_sandbox(&id).await),
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// C6: create, start, stop and clean-up from two callers, in many orders, twice each.
#[test]
fn two_callers_who_do_everything_twice_leave_nothing() {
    for seed in 0..60 {
        in_virtual_time(|| async {
            let world = Arc::new(World::new());
            let system = system(&world, None, None);
            futures::join!(meddle(&system, seed), meddle(&system, seed / 6 + 3));
            let id = SandboxId::new("shared").unwrap();
            for handle in system.sandboxes() {
                let report = handle.cleanup().await.unwrap();
                assert!(report.is_clean(), "seed {seed}: {report:#?}");
            }
            assert!(system.sandbox(&id).is_none(), "seed {seed}: it is still known");
            assert_eq!(world.list(), Vec::<String>::new(), "seed {seed}");
        });
    }
}
