//! Which containers ran out of memory, as `GetOOMEvent` tells it.

use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::sync::{Mutex, mpsc};

use crate::cgroup::Cgroup;
use crate::console::say;
use crate::readiness;

const FILE: &str = "memory.events";

/// A queue of container ids, one for each time the kernel killed a process for memory.
pub(crate) struct OomEvents {
    sender: mpsc::UnboundedSender<String>,
    receiver: Arc<Mutex<mpsc::UnboundedReceiver<String>>>,
}

impl OomEvents {
    /// An empty queue.
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver: Arc::new(Mutex::new(receiver)) }
    }

    /// Watches a container for as long as its cgroup is there.
    pub(crate) fn watch(&self, container: &str, cgroup: &Cgroup) {
        let (container, cgroup, sender) = (container.to_owned(), cgroup.clone(), self.sender.clone());
        tokio::spawn(async move {
            if let Err(error) = follow(&container, &cgroup, &sender).await {
                say(format_args!("memory events of {container}: {error:#}"));
            }
        });
    }

    /// Waits for the next container.
    pub(crate) async fn next(&self) -> Result<String> {
        self.receiver.lock().await.recv().await.context("no more events")
    }
}

async fn follow(container: &str, cgroup: &Cgroup, sender: &mpsc::UnboundedSender<String>) -> Result<()> {
    let path = cgroup.file(FILE);
    if !path.exists() {
        return Ok(());
    }
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&events, &path, WatchFlags::MODIFY)?;
    let events = readiness::register(events)?;
    let (mut seen, mut buffer) = (0, [0; 4096]);
    while path.exists() {
        let killed = kills(&cgroup.read(FILE));
        if killed > seen {
            say(format_args!("container {container} ran out of memory"));
            sender.send(container.to_owned())?;
        }
        seen = killed;
        // Removal of the cgroup is an event, too (`IN_IGNORED`).
        let mut ready = events.readable().await?;
        let _ = ready.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), &mut buffer)?));
    }
    Ok(())
}

fn kills(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_apart_from_other_events() {
        assert_eq!(kills("low 0\noom 7\noom_kill 3\noom_group_kill 0\n"), 3);
        assert_eq!(kills(""), 0);
    }
}
