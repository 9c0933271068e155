//! Threads that enter namespaces and come home.
//!
//! A thread that enters a namespace could fail to leave it, and then everything that runs on it
//! later happens in the wrong place. These do nothing else, and one that did not come home ends.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags};
use sandbox_model::{ErrorKind, PortError, PortResult};
use tokio::sync::{Semaphore, oneshot, watch};

/// How many there are at most.
const THREADS_MAX: usize = 8;

/// Enters and comes home; replies whether it did.
type Job = Box<dyn FnOnce(&OwnedFd) -> bool + Send>;

/// A few threads, made when they are needed. Those that nobody uses are kept for the next.
#[derive(Clone)]
pub(super) struct Threads {
    idle: Arc<watch::Sender<Vec<Sender<Job>>>>,
    places: Arc<Semaphore>,
}

impl Default for Threads {
    fn default() -> Self {
        Self { idle: Arc::new(watch::Sender::new(Vec::new())), places: Arc::new(Semaphore::new(THREADS_MAX)) }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threads({} idle)", self.idle.borrow().len())
    }
}

impl Threads {
    /// Runs `call`, which may enter a namespace, on one of the threads.
    ///
    /// Its future may be dropped; the call then still goes on to its end.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> PortResult<T> + Send + 'static,
    ) -> PortResult<T> {
        // Never closed, so it is always had.
        let place = self.places.clone().acquire_owned().await.ok();
        let thread = match self.take() {
            Some(thread) => thread,
            None => start()?,
        };
        let (tell, told) = oneshot::channel();
        let job = move |home: &OwnedFd| {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
            let is_home = setns(home, CloneFlags::CLONE_NEWNET).is_ok();
            drop(place);
            let _ = tell.send((outcome, is_home));
            is_home
        };
        let lost = |cause: &str| Err(PortError::new(ErrorKind::Refused, "run", "thread enter-netns", cause).doubtful());
        if thread.send(Box::new(job)).is_err() {
            return lost("it has ended");
        }
        let Ok((outcome, is_home)) = actor_shell::to_its_end(told).await else { return lost("it has ended") };
        if is_home {
            self.idle.send_modify(|idle| idle.push(thread));
        }
        outcome.unwrap_or_else(|_| lost("it panicked"))
    }

    fn take(&self) -> Option<Sender<Job>> {
        let mut taken = None;
        self.idle.send_modify(|idle| taken = idle.pop());
        taken
    }
}

/// Starts a thread. It ends when nobody can send it anything any more.
fn start() -> PortResult<Sender<Job>> {
    let (jobs, received) = channel();
    let thread = std::thread::Builder::new().name("enter-netns".to_owned());
    thread.spawn(move || serve(&received)).map_err(|error| PortError::os("clone", "thread enter-netns", error))?;
    Ok(jobs)
}

fn serve(jobs: &Receiver<Job>) {
    // Without a way home there is nothing that it may do.
    let Ok(home) = rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        return;
    };
    while let Ok(job) = jobs.recv() {
        if !job(&home) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, CapabilitySets};

    use super::*;

    fn is_root() -> bool {
        let is_root = nix::unistd::geteuid().is_root();
        assert!(is_root || std::env::var_os("CI").is_none(), "only root may enter a namespace, even its own");
        is_root
    }

    #[tokio::test]
    async fn those_that_come_one_after_the_other_share_a_thread() {
        if !is_root() {
            eprintln!("skipped: it needs root");
            return;
        }
        let threads = Threads::default();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            seen.insert(threads.run(|| Ok(rustix::thread::gettid().as_raw_nonzero())).await.unwrap());
        }
        assert_eq!(seen.len(), 1);
    }

    #[tokio::test]
    async fn a_call_that_panics_is_an_error_and_the_next_is_served() {
        let threads = Threads::default();
        let broken = threads.run(|| -> PortResult<()> { panic!("a defect") }).await;
        assert_eq!(broken.unwrap_err().kind, ErrorKind::Refused);
        assert_eq!(threads.run(|| Ok(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn a_thread_that_does_not_come_home_is_not_used_again() {
        let threads = Threads::default();
        // Without any right it cannot enter a namespace, nor leave one.
        let lost = threads.run(|| Ok(rustix::thread::set_capabilities(None, NO_RIGHTS).is_ok())).await;
        assert!(lost.is_ok_and(|is_lost| is_lost), "the call itself has succeeded");
        assert!(threads.idle.borrow().is_empty());
        assert_eq!(threads.run(|| Ok(7)).await, Ok(7));
    }

    const NO_RIGHTS: CapabilitySets = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
}
