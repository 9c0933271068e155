//! What this process has used so far.
#![expect(unsafe_code, reason = "a thread's clock has no safe wrapper here")]

use std::fs;
use std::time::Duration;

use nix::libc;
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

    /// CPU time of the calling thread alone, to the nanosecond: what `getrusage` says of a thread that
    /// runs is as old as the last tick.
    pub fn of_thread() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is a whole `timespec` that the kernel writes.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        let parts = u64::try_from(time.tv_sec).ok().zip(u32::try_from(time.tv_nsec).ok());
        parts.filter(|_| failed == 0).map_or(Duration::ZERO, |(seconds, nanos)| Duration::new(seconds, nanos))
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
