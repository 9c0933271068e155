//! A message through an actor's mailbox, beside the same through a bare tokio task.

use std::sync::Arc;
use std::time::Duration;

use actor_shell::{
    Address, Ask, Call, Completion, CurrentCause, Domain, Identity, LocalFuture, NoTrace, Plan, Request, Serve,
};
use sandbox_model::SandboxId;
use sandbox_model::lifecycle::ActorName;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{Row, Target};
use crate::{Usage, in_turns};

const ROUNDS: usize = 61;
const MESSAGES: u64 = 4000;

#[derive(Debug, Default)]
struct Counter(u64);

/// Answered at once.
#[derive(Debug, Serialize)]
struct Count(u64);

/// Answered after something has been awaited.
#[derive(Debug, Serialize)]
struct Perform(u64);

impl Request for Count {
    type Reply = u64;
    const NAME: &'static str = "Count";
}

impl Request for Perform {
    type Reply = u64;
    const NAME: &'static str = "Perform";
}

impl Domain for Counter {
    type Snapshot = u64;

    fn publish(&mut self, snapshot: &mut u64) {
        *snapshot = self.0;
    }
}

impl Serve<Count> for Counter {
    type Ticket = ();
    type Outcome = ();

    fn plan(&mut self, Count(more): Count, _: &Call) -> Plan<(), u64> {
        self.0 += more;
        Plan::Answer(self.0)
    }

    fn perform(&self, (): &mut (), _: &Call) -> LocalFuture<()> {
        Box::pin(std::future::ready(()))
    }

    fn settle(&mut self, (): (), _: Completion<()>) -> u64 {
        self.0
    }
}

impl Serve<Perform> for Counter {
    type Ticket = u64;
    type Outcome = ();

    fn plan(&mut self, Perform(more): Perform, _: &Call) -> Plan<u64, u64> {
        Plan::Perform(more)
    }

    fn perform(&self, _: &mut u64, _: &Call) -> LocalFuture<()> {
        Box::pin(tokio::task::yield_now())
    }

    fn settle(&mut self, more: u64, _: Completion<()>) -> u64 {
        self.0 += more;
        self.0
    }
}

/// The same counter without any other guarantee than that: a task, a channel, a reply channel with each
/// message, and a deadline for what is awaited.
fn bare(awaits: bool) -> mpsc::Sender<(u64, oneshot::Sender<u64>)> {
    let (sender, mut received) = mpsc::channel::<(u64, oneshot::Sender<u64>)>(64);
    tokio::task::spawn_local(async move {
        let mut count = 0;
        while let Some((more, reply)) = received.recv().await {
            if awaits {
                let deadline = sandbox_model::Instant::now() + Duration::from_secs(60);
                let _ = tokio::time::timeout_at(deadline, tokio::task::yield_now()).await;
            }
            count += more;
            let _ = reply.send(count);
        }
    });
    sender
}

fn counter() -> Address<Counter> {
    let identity = Identity {
        actor: ActorName::Device,
        sandbox: SandboxId::new("bench").expect("a literal id"),
        bound: 64,
        sink: Arc::new(NoTrace),
        cause: CurrentCause::default(),
    };
    actor_shell::spawn(Counter::default(), identity)
}

pub(super) fn run() -> Result<Vec<Row>, String> {
    let answered = compare("message answered at once / bare tokio", false, |address, ask| async move {
        address.ask(Count(1), ask).await.is_ok()
    })?;
    let performed = compare("message that awaits under a deadline / bare tokio", true, |address, ask| async move {
        address.ask(Perform(1), ask).await.is_ok()
    })?;
    Ok(vec![answered, performed])
}

fn compare<F: Future<Output = bool>>(
    what: &str,
    awaits: bool,
    send: impl Fn(Address<Counter>, Ask) -> F,
) -> Result<Row, String> {
    let local = tokio::task::LocalSet::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let (address, channel) = local.block_on(&runtime, async { (counter(), bare(awaits)) });
    let through_the_shell = || {
        local.block_on(&runtime, async {
            let used = Usage::of_thread();
            for _ in 0..MESSAGES {
                let deadline = sandbox_model::Instant::now() + Duration::from_secs(60);
                assert!(send(address.clone(), Ask { deadline, cause: None }).await, "the shell served every message");
            }
            Ok::<_, String>(Usage::of_thread() - used)
        })
    };
    let through_a_channel = || {
        local.block_on(&runtime, async {
            let used = Usage::of_thread();
            for _ in 0..MESSAGES {
                let (reply, replied) = oneshot::channel();
                let sent = channel.clone().send((1, reply)).await;
                assert!(sent.is_ok() && replied.await.is_ok(), "the task served every message");
            }
            Ok::<_, String>(Usage::of_thread() - used)
        })
    };
    let times = in_turns(ROUNDS, through_the_shell, through_a_channel)?;
    let each = |samples: &crate::Samples| samples.median().as_secs_f64() * 1e9 / MESSAGES as f64;
    let detail = format!("{:.0} ns of CPU time, bare {:.0} ns", each(&times.first), each(&times.second));
    Ok(Row::new(what, times.ratio, "", Target::AtMost(1.5), detail))
}
