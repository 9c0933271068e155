//! The threads that actors live on.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use actix::{Arbiter, ArbiterHandle, System};
use futures::FutureExt;
use tokio::sync::oneshot;

use crate::LocalFuture;

/// Blocking system calls that one arbiter may have in flight.
const BLOCKING_THREADS_MAX: usize = 8;

/// Why the threads could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system refused a thread or its runtime.
    #[error("cannot start the actors' thread {name}")]
    Thread {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `join` was called outside of a running actor system.
    #[error("there is no running actor system on this thread to join")]
    NoSystem,
}

/// A few threads that run actors.
///
/// An arbiter is one thread: nothing that runs on it may block. Blocking system calls go through
/// [`blocking`].
pub struct Arbiters {
    seats: Vec<Seat>,
}

enum Seat {
    /// A thread of ours.
    Owned(ArbiterHandle, Owned),
    /// A running actor system's.
    Joined(ArbiterHandle),
    /// The `LocalSet` that calls.
    Here,
}

struct Owned {
    system: System,
    ended: oneshot::Receiver<()>,
}

impl fmt::Debug for Arbiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arbiters({})", self.seats.len())
    }
}

impl Arbiters {
    /// Starts `count` threads named `NAME-0`, `NAME-1` and so on, at least one.
    ///
    /// # Errors
    /// [`StartError::Thread`].
    pub fn start(count: usize, name: &str) -> Result<Self, StartError> {
        let seats = (0..count.max(1)).map(|n| Seat::start(format!("{name}-{n}"))).collect::<Result<_, _>>()?;
        Ok(Self { seats })
    }

    /// Uses the actor system that runs on this thread.
    ///
    /// # Errors
    /// [`StartError::NoSystem`].
    pub fn join() -> Result<Self, StartError> {
        let arbiter = Arbiter::try_current().ok_or(StartError::NoSystem)?;
        Ok(Self { seats: vec![Seat::Joined(arbiter)] })
    }

    /// Uses the `LocalSet` from which [`run_on`](Self::run_on) will be called: for simulation and
    /// replay on one thread, in virtual time.
    pub fn here() -> Self {
        Self { seats: vec![Seat::Here] }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.seats.len()
    }

    /// Runs `task` on the arbiter `index` modulo their number, and returns what it made.
    ///
    /// `None`: the arbiter has ended, or the task panicked.
    pub async fn run_on<T, F, Fut>(&self, index: usize, task: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
    {
        let (tell, told) = oneshot::channel();
        let run = move || {
            tokio::task::spawn_local(async move {
                let _ = tell.send(task().await);
            });
        };
        let sent = match &self.seats[index % self.seats.len()] {
            Seat::Owned(arbiter, _) | Seat::Joined(arbiter) => arbiter.spawn_fn(run),
            Seat::Here => {
                run();
                true
            }
        };
        if sent { told.await.ok() } else { None }
    }

    /// Stops the threads that `start` started and waits for their end. Actors that still live are
    /// dropped in the middle of what they do: release sandboxes first.
    pub async fn stop(self) {
        for seat in self.seats {
            if let Seat::Owned(_, owned) = seat {
                owned.system.stop();
                let _ = owned.ended.await;
            }
        }
    }
}

impl Seat {
    fn start(name: String) -> Result<Self, StartError> {
        let failed = |name: &str, source| StartError::Thread { name: name.to_owned(), source };
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name(format!("{name}-blocking"))
            .build()
            .map_err(|source| failed(&name, source))?;
        let thread = thread::Builder::new().name(name.clone());
        let main = move || {
            let runner = System::with_tokio_rt(move || runtime);
            let _ = tell.send((System::current(), Arbiter::current()));
            let _ = runner.run();
            let _ = end.send(());
        };
        thread.spawn(main).map_err(|source| failed(&name, source))?;
        let (system, arbiter) = told.recv().map_err(|error| failed(&name, io::Error::other(error)))?;
        Ok(Self::Owned(arbiter, Owned { system, ended }))
    }
}

thread_local! {
    /// What goes on on behalf of this arbiter's actors although nobody waits for it any more.
    static ABANDONED: RefCell<Vec<LocalFuture<()>>> = const { RefCell::new(Vec::new()) };
}

/// Something that goes on whether or not somebody waits for it.
struct Running<F: Future + Unpin + 'static>(Option<F>);

impl<F: Future + Unpin + 'static> Drop for Running<F> {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            let rest: LocalFuture<()> = Box::pin(running.map(drop));
            ABANDONED.with_borrow_mut(|abandoned| abandoned.push(rest));
        }
    }
}

/// Waits for something that cannot be stopped: a call on another thread.
///
/// This future may be dropped; what it waits for then still goes on to its end, and the actor that
/// dropped it does not go on before it: what a call makes after its undo has looked would stay.
pub async fn to_its_end<T>(running: impl Future<Output = T> + Unpin + 'static) -> T {
    let mut running = Running(Some(running));
    let outcome = match &mut running.0 {
        Some(running) => running.await,
        // It is taken out only below and when this future is dropped.
        None => std::future::pending().await,
    };
    running.0 = None;
    outcome
}

/// Runs a blocking system call beside the arbiter, on its bounded pool, [to its end](to_its_end).
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    told(to_its_end(on_pool(call)).await).await
}

/// As [`blocking`], for a call whose effect is there before it returns: whoever has seen the effect
/// may drop this future and go on, while the kernel goes on waiting for itself.
pub async fn blocking_after_effect<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    told(on_pool(call).await).await
}

type Told<T> = Result<std::thread::Result<T>, oneshot::error::RecvError>;

fn on_pool<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<std::thread::Result<T>> {
    let (tell, told) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let _ = tell.send(catch_unwind(AssertUnwindSafe(call)));
    });
    told
}

async fn told<T>(outcome: Told<T>) -> T {
    match outcome {
        Ok(Ok(value)) => value,
        Ok(Err(payload)) => resume_unwind(payload),
        // The pool only drops a call when its runtime is shutting down, and then nobody polls us.
        Err(_) => std::future::pending().await,
    }
}

/// Waits for what goes on on this arbiter although nobody waits for it any more.
pub(crate) async fn abandoned_calls() {
    while let Some(running) = ABANDONED.with_borrow_mut(Vec::pop) {
        to_its_end(running).await;
    }
}
