//! What this process has used so far.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Usage as Resource, UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// CPU time, wake-ups and memory of this process, with all its threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time of all threads, ended ones included.
    pub cpu: Duration,
    /// How often a thread waited for something and was woken.
    pub wakeups: u64,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Threads that exist.
    pub threads: u64,
}

impl Usage {
    /// Looks now.
    pub fn now() -> Self {
        let (cpu, wakeups) = match getrusage(UsageWho::RUSAGE_SELF) {
            Ok(used) => (cpu(&used), u64::try_from(used.voluntary_context_switches()).unwrap_or(0)),
            Err(_) => (Duration::ZERO, 0),
        };
        Self { cpu, wakeups, resident: status_kib("VmRSS:") << 10, threads: status_kib("Threads:") }
    }

    /// CPU time of the calling thread alone.
    pub fn of_thread() -> Duration {
        getrusage(UsageWho::RUSAGE_THREAD).map(|used| cpu(&used)).unwrap_or_default()
    }
}

fn cpu(used: &Resource) -> Duration {
    let micros = used.user_time().num_microseconds() + used.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A number in `/proc/self/status`; 0 if it is not there.
fn status_kib(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_threads_and_memory() {
        let used = Usage::now();
        assert!(used.threads >= 1 && used.resident > 0, "{used:?}");
    }
}
