//! PID 1 of the test guest: a small guest side of the Kata agent protocol.
//!
//! It stands in for the real agent wherever a test or the quick start boots a VM, and speaks
//! nothing but the agent's protocol on vsock port 1024, so either can take the other's place.
//! The same program has three lives, told apart by its first argument:
//!
//! * none, as `/init` of the initrd ([`boot`]): leaves the initramfs for a tmpfs (from whose
//!   root `pivot_root` is possible) and executes itself again,
//! * `agent` ([`agent`]): mounts the pseudo file systems, loads modules, serves the protocol,
//! * `child` ([`child`]): becomes a container's process; a fresh single-threaded program, so that
//!   namespaces and `fork` hold no surprises.
//!
//! # What a client sees at the edges
//!
//! * End of a stream: `ReadStdout`/`ReadStderr` fail with `INTERNAL` and the text
//!   `read meet eof`, as the real agent's do; there is no typed end of file on this wire.
//! * `WaitProcess` answers the exit code, or 128 + signal; the answer can be had more than once.
//! * An unknown container or process is `INVALID_ARGUMENT`, a failed operation `INTERNAL`, a call
//!   this guest does not know `UNIMPLEMENTED`.
//! * A container always gets its own PID namespace, unless the sandbox's is shared: the host takes
//!   the PID namespace out of the specification and leaves this to the guest.

mod agent;
mod boot;
mod cgroup;
mod child;
mod console;
mod container;
mod copy_file;
mod cpu_memory;
mod guest_stats;
mod hotplug;
mod mount;
mod network;
mod oom;
mod process;
mod readiness;
mod reaper;
mod sandbox;
mod service;
mod storage;

use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some(agent::ARGUMENT) => agent::run(),
        Some(child::ARGUMENT) => child::run(),
        _ => boot::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::say(format_args!("fatal: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
