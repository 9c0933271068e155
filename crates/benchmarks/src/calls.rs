//! System calls of this process, counted by `strace`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Runs `body` and returns how many system calls all threads of this process made meanwhile.
///
/// # Errors
/// `strace` is not there or may not look, or what `body` says.
pub(crate) fn counted<T>(body: impl FnOnce() -> Result<T, String>) -> Result<(T, u64), String> {
    let cannot = |error: std::io::Error| format!("strace: {error}");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-U", "calls", "-p"]).arg(std::process::id().to_string());
    let mut strace =
        strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(cannot)?;
    let mut told = BufReader::new(strace.stderr.take().ok_or("strace: no standard error")?).lines();
    // It says so when it has got hold of the threads that exist; later ones it follows.
    let attached = told.next().and_then(Result::ok).unwrap_or_default();
    let done = if attached.contains("attached") { body() } else { Err(format!("strace: {attached}")) };
    // It prints its sums when it is interrupted. Its pid is ours until it is waited for.
    if let Ok(pid) = i32::try_from(strace.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
    }
    // A line for each kind of call, and their sum below.
    let mut lines = told.map_while(Result::ok);
    let sum = lines.find_map(|line| line.trim().strip_suffix(" total")?.trim().parse().ok());
    strace.wait().map_err(cannot)?;
    Ok((done?, sum.ok_or("strace told no sum")?))
}
