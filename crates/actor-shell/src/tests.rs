//! One test for each guarantee of the crate, in virtual time on one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use sandbox_model::lifecycle::ActorName;
use sandbox_model::{Instant, SandboxId};
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

use crate::{
    Address, Ask, Call, Completion, CurrentCause, Domain, Identity, LocalFuture, NoTrace, Plan, Refused, Request,
    Serve, spawn,
};

/// Sleeps, and writes down what happens to it.
#[derive(Serialize, Deserialize)]
struct Work {
    name: String,
    millis: u64,
    panic_in: Option<Part>,
}

#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
enum Part {
    Plan,
    Perform,
    Settle,
}

impl Request for Work {
    type Reply = String;
    const NAME: &'static str = "Work";
}

#[derive(Default)]
struct Worker {
    log: Rc<RefCell<Vec<String>>>,
    settled: u32,
    grace: Duration,
}

impl Worker {
    fn note(&self, text: String) {
        self.log.borrow_mut().push(text);
    }
}

impl Domain for Worker {
    type Snapshot = u32;

    fn publish(&mut self, snapshot: &mut u32) {
        *snapshot = self.settled;
    }

    fn grace(&self) -> Duration {
        self.grace
    }
}

impl Serve<Work> for Worker {
    type Ticket = Work;
    type Outcome = ();

    fn plan(&mut self, request: Work, _: &Call) -> Plan<Work, String> {
        self.note(format!("plan {}", request.name));
        assert!(request.panic_in != Some(Part::Plan), "planned panic");
        if request.millis == 0 { Plan::Answer("at once".into()) } else { Plan::Perform(request) }
    }

    fn perform(&self, work: &mut Work, _: &Call) -> LocalFuture<()> {
        let (millis, panic_in) = (work.millis, work.panic_in);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            assert!(panic_in != Some(Part::Perform), "performed panic");
        })
    }

    fn settle(&mut self, work: Work, done: Completion<()>) -> String {
        assert!(work.panic_in != Some(Part::Settle), "settled panic");
        self.settled += 1;
        self.note(format!("settle {}", work.name));
        format!("{done:?}")
    }
}

type Log = Rc<RefCell<Vec<String>>>;

fn worker(bound: usize, grace: Duration) -> (Address<Worker>, Log) {
    let log = Log::default();
    let identity = Identity {
        actor: ActorName::Device,
        sandbox: SandboxId::new("test").unwrap(),
        bound,
        sink: Arc::new(NoTrace),
        cause: CurrentCause::default(),
    };
    (spawn(Worker { log: log.clone(), settled: 0, grace }, identity), log)
}

fn work(name: &str, millis: u64) -> Work {
    Work { name: name.into(), millis, panic_in: None }
}

fn within(millis: u64) -> Ask {
    Ask { deadline: Instant::now() + Duration::from_millis(millis), cause: None }
}

/// Runs a scenario on one thread whose clock jumps to the next timer when all is quiet.
fn scenario<F: Future>(body: impl FnOnce() -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async { body().await })
}

#[test]
fn order_and_one_at_a_time() {
    scenario(|| async {
        let (worker, log) = worker(8, Duration::ZERO);
        let asked =
            [("a", 30), ("b", 20), ("c", 10)].map(|(name, millis)| worker.ask(work(name, millis), within(1000)));
        futures::future::join_all(asked).await;
        let expected = ["plan a", "settle a", "plan b", "settle b", "plan c", "settle c"];
        assert_eq!(*log.borrow(), expected);
    });
}

#[test]
fn a_deadline_is_judged_when_the_message_is_taken() {
    scenario(|| async {
        let (worker, log) = worker(8, Duration::ZERO);
        let (slow, late) =
            tokio::join!(worker.ask(work("slow", 50), within(1000)), worker.ask(work("late", 1), within(10)),);
        assert_eq!(slow, Ok("Finished(())".into()));
        assert_eq!(late, Err(Refused::Expired { actor: ActorName::Device }));
        assert_eq!(*log.borrow(), ["plan slow", "settle slow"], "an expired message is never planned");
    });
}

#[test]
fn a_message_being_performed_is_dropped_at_its_deadline_and_settles() {
    scenario(|| async {
        let (worker, log) = worker(8, Duration::ZERO);
        let begun = Instant::now();
        assert_eq!(worker.ask(work("hang", 60_000), within(100)).await, Ok("DeadlinePassed".into()));
        assert_eq!(begun.elapsed(), Duration::from_millis(100));
        assert_eq!(*log.borrow(), ["plan hang", "settle hang"]);
    });
}

#[test]
fn grace_lets_a_message_undo_after_its_deadline() {
    scenario(|| async {
        let (worker, _) = worker(8, Duration::from_millis(500));
        assert_eq!(worker.ask(work("undoing", 400), within(100)).await, Ok("Finished(())".into()));
        assert_eq!(worker.ask(work("hang", 60_000), within(100)).await, Ok("DeadlinePassed".into()));
    });
}

#[test]
fn interruption_reaches_what_hangs_and_what_waits_and_nothing_later() {
    scenario(|| async {
        let (worker, log) = worker(8, Duration::ZERO);
        let interrupting = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            worker.interrupt();
        };
        let (hung, waiting, ()) = tokio::join!(
            worker.ask(work("hung", 60_000), within(100_000)),
            worker.ask(work("waiting", 1), within(100_000)),
            interrupting,
        );
        assert_eq!(hung, Ok("Interrupted".into()));
        assert_eq!(waiting, Err(Refused::Interrupted { actor: ActorName::Device }));
        assert_eq!(worker.ask(work("later", 1), within(100)).await, Ok("Finished(())".into()));
        assert_eq!(*log.borrow(), ["plan hung", "settle hung", "plan later", "settle later"]);
    });
}

#[test]
fn a_dropped_request_is_cancelled_only_before_it_is_taken() {
    scenario(|| async {
        let (worker, log) = worker(8, Duration::ZERO);
        let taken = worker.ask(work("taken", 50), within(1000));
        assert!(tokio::time::timeout(Duration::from_millis(10), taken).await.is_err());
        let untaken = worker.ask(work("untaken", 50), within(1000));
        assert!(tokio::time::timeout(Duration::from_millis(10), untaken).await.is_err());
        worker.ask(work("last", 0), within(1000)).await.unwrap();
        assert_eq!(*log.borrow(), ["plan taken", "settle taken", "plan last"]);
    });
}

#[test]
fn a_panic_ends_its_actor_keeps_its_reason_and_harms_no_neighbour() {
    for part in [Part::Plan, Part::Perform, Part::Settle] {
        scenario(|| async {
            let ((dying, _), (neighbour, _)) = (worker(8, Duration::ZERO), worker(8, Duration::ZERO));
            let fatal = Work { name: "fatal".into(), millis: 5, panic_in: Some(part) };
            let (died, queued) =
                tokio::join!(dying.ask(fatal, within(1000)), dying.ask(work("queued", 1), within(1000)));
            let Err(Refused::Died { reason, .. }) = &died else { panic!("{died:?}") };
            assert!(reason.ends_with("panic"), "{reason}");
            assert_eq!(queued.unwrap_err(), died.clone().unwrap_err());
            assert_eq!(dying.ask(work("later", 1), within(1000)).await.unwrap_err(), died.unwrap_err());
            assert_eq!(dying.death().map(|death| death.actor), Some(ActorName::Device));
            assert_eq!(neighbour.ask(work("well", 1), within(1000)).await, Ok("Finished(())".into()));
        });
    }
}

#[test]
fn an_actor_whose_last_address_is_gone_serves_what_it_was_sent() {
    scenario(|| async {
        let (worker, log) = worker(8, Duration::ZERO);
        let asked = worker.clone().ask(work("first", 20), within(1000)).await;
        drop(worker);
        assert_eq!(asked, Ok("Finished(())".into()));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(Rc::strong_count(&log), 1, "the actor has been dropped");
    });
}

#[test]
fn one_message_more_than_the_bound_is_refused_at_once_however_many_addresses() {
    scenario(|| async {
        let (worker, _) = worker(3, Duration::ZERO);
        let clones: Vec<_> = (0..5).map(|_| worker.clone()).collect();
        let asked = clones.iter().enumerate().map(|(n, clone)| clone.ask(work(&n.to_string(), 10), within(1000)));
        let answers = futures::future::join_all(asked).await;
        let busy = answers.iter().filter(|a| **a == Err(Refused::Busy { actor: ActorName::Device, bound: 3 })).count();
        assert_eq!((busy, answers.len()), (2, 5));
        assert_eq!(worker.depth(), 0, "permits come back");
    });
}

#[test]
fn figures_show_what_is_served_what_waits_and_what_was_refused() {
    scenario(|| async {
        let (worker, _) = worker(2, Duration::ZERO);
        let figures =
            || worker.0.shared.board.figures().into_iter().find(|one| one.actor == ActorName::Device).unwrap();
        let asked = ["a", "b", "c"].map(|name| worker.ask(work(name, 10), within(1000)));
        let looked = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            figures()
        };
        let (_, seen) = futures::join!(futures::future::join_all(asked), looked);
        let now = seen.now.unwrap();
        // The clock of tests goes by whole milliseconds.
        let is_there = |us: u64| (5_000..=6_000).contains(&us);
        assert!(now.message == Work::NAME && is_there(now.elapsed_us), "{now:?}");
        assert!(seen.waiting == 1 && seen.oldest_us.is_some_and(is_there), "{:?}", seen.oldest_us);
        assert_eq!(seen.refused, 1, "a third is one too many");
        let after = figures();
        assert_eq!((after.now, after.waiting, after.served, after.refused), (None, 0, 2, 1));
        assert!(after.p50_us.is_some_and(|us| (10_000..15_000).contains(&us)));
        drop(worker.ask(work("nobody waits for it", 10), within(1000)));
        assert_eq!(figures().waiting, 0, "a message that was not sent does not wait");
    });
}

#[test]
fn a_snapshot_is_read_while_the_actor_is_busy() {
    scenario(|| async {
        let (worker, _) = worker(8, Duration::ZERO);
        worker.ask(work("first", 10), within(1000)).await.unwrap();
        let busy = worker.ask(work("second", 500), within(1000));
        let look = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            *worker.snapshot().borrow()
        };
        let (_, seen) = tokio::join!(busy, look);
        assert_eq!(seen, 1);
        assert_eq!(*worker.snapshot().borrow(), 2);
    });
}

/// Blocks for real, and says when it has ended.
#[derive(Serialize, Deserialize)]
struct Block {
    millis: u64,
}

impl Request for Block {
    type Reply = bool;
    const NAME: &'static str = "Block";
}

impl Serve<Block> for Worker {
    type Ticket = u64;
    type Outcome = ();

    fn plan(&mut self, request: Block, _: &Call) -> Plan<u64, bool> {
        Plan::Perform(request.millis)
    }

    fn perform(&self, millis: &mut u64, _: &Call) -> LocalFuture<()> {
        let millis = *millis;
        Box::pin(crate::blocking(move || {
            ENDED.store(false, std::sync::atomic::Ordering::SeqCst);
            // A blocking call is what is tested; it runs on the pool, not on the arbiter.
            let (_tell, told) = std::sync::mpsc::channel::<()>();
            let _ = told.recv_timeout(Duration::from_millis(millis));
            std::mem::drop(_tell);
            ENDED.store(true, std::sync::atomic::Ordering::SeqCst);
        }))
    }

    fn settle(&mut self, _: u64, done: Completion<()>) -> bool {
        done == Completion::Finished(())
    }
}

static ENDED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(true);

#[test]
fn nothing_runs_on_behind_an_actors_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (worker, _) = worker(8, Duration::ZERO);
        assert_eq!(worker.ask(Block { millis: 200 }, within(20)).await, Ok(false), "it was given up");
        worker.ask(work("next", 1), within(5000)).await.unwrap();
        assert!(ENDED.load(std::sync::atomic::Ordering::SeqCst), "the next message waited for it");
    });
}
