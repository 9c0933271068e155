//! The first process of a lab.
#![expect(clippy::disallowed_methods, reason = "nobody but its one job waits for this process")]

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::snapshot::{Snapshot, difference, take};
use super::world::keep_private;
use super::{Ended, Job, Outcome, Programs, Strike, When, World};

/// Between two looks at a running program.
const PULSE: Duration = Duration::from_micros(500);
/// The kernel frees some objects (a tap, a mount) a little after their last user has gone.
const SETTLE: Duration = Duration::from_millis(20);
/// Looks at what should be gone before it counts as left behind.
const LOOKS: u32 = 50;
/// Bytes of standard error that are kept.
const WORDS_MAX: u64 = 4000;
/// Where the programs' output lies, without a name.
const OUTPUT: &str = "/dev/shm";

/// Makes the world and serves jobs from standard input until it ends.
///
/// # Errors
/// The world could not be made, or not be looked at.
pub fn serve(name: &str, programs: &str) -> Result<()> {
    let programs: Programs = serde_json::from_str(programs)?;
    let (world, disks) = World::make(name, programs)?;
    let mut out = io::stdout();
    writeln!(out, "{}", serde_json::to_string(&world)?)?;
    let scratch = Scratch::make(name)?;
    let before = look(&world.name)?;
    for line in io::stdin().lock().lines() {
        let job: Job = serde_json::from_str(&line?)?;
        let outcome = perform(&job, &scratch, &before, &world.name)?;
        writeln!(out, "{}", serde_json::to_string(&outcome)?)?;
        out.flush()?;
    }
    drop(disks);
    Ok(())
}

fn look(name: &str) -> Result<Snapshot> {
    reap();
    take(name, &["pod", "pod3"])
}

fn perform(job: &Job, scratch: &Scratch, before: &Snapshot, name: &str) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for words in &job.before {
        let ended = run(words, &[], job.limit_ms, scratch, &mut Outcome::default())?;
        outcome.before.push(ended);
    }
    outcome.run = run(&job.words, &job.strikes, job.limit_ms, scratch, &mut outcome)?;
    for words in &job.repair {
        let ended = run(words, &[], job.limit_ms, scratch, &mut Outcome::default())?;
        outcome.repair.push(ended);
    }
    for _ in 0..LOOKS {
        outcome.difference = difference(before, &look(name)?);
        if outcome.difference.is_empty() {
            break;
        }
        std::thread::sleep(SETTLE);
    }
    Ok(outcome)
}

/// Files that programs write to: a pipe would block them, and outlive those that are killed.
struct Scratch {
    out: File,
    err: File,
}

impl Scratch {
    fn make(name: &str) -> Result<Self> {
        let open = |kind: &str| -> Result<File> {
            let path = Path::new(OUTPUT).join(format!("{name}-{kind}"));
            let file = File::options().create_new(true).read(true).append(true).open(&path)?;
            keep_private(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        };
        Ok(Self { out: open("out")?, err: open("err")? })
    }

    fn clear(&self) -> io::Result<()> {
        self.out.set_len(0)?;
        self.err.set_len(0)
    }

    fn read(mut file: &File, from: u64) -> io::Result<String> {
        file.seek(io::SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn run(words: &[String], strikes: &[Strike], limit_ms: u64, scratch: &Scratch, told: &mut Outcome) -> Result<Ended> {
    scratch.clear()?;
    let (program, arguments) = words.split_first().context("a job names a program")?;
    let begun = Instant::now();
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").stdin(Stdio::null());
    command.stdout(scratch.out.try_clone()?).stderr(scratch.err.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let mut strikes = strikes.iter().peekable();
    let mut last = begun;
    let mut is_late = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if !is_late && begun.elapsed() > Duration::from_millis(limit_ms) {
            is_late = true;
            child.kill()?;
        }
        while let Some(strike) = strikes.next_if(|strike| is_due(&strike.when, begun, last)) {
            last = Instant::now();
            told.struck.push(hit(strike, &child)?);
        }
        std::thread::sleep(PULSE);
    };
    told.after_strike_ms = millis(last);
    let err_bytes = scratch.err.metadata()?.len();
    Ok(Ended {
        code: status.code(),
        signal: status.signal(),
        is_late,
        out: Scratch::read(&scratch.out, 0)?,
        err: Scratch::read(&scratch.err, err_bytes.saturating_sub(WORDS_MAX))?,
        took_ms: millis(begun),
    })
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn is_due(when: &When, begun: Instant, last: Instant) -> bool {
    match when {
        When::After(us) => begun.elapsed() >= Duration::from_micros(*us),
        When::Later(us) => last.elapsed() >= Duration::from_micros(*us),
        When::Lines(path, count) => {
            let text = fs::read(path).unwrap_or_default();
            text.iter().filter(|&&byte| byte == b'\n').count() >= *count
        }
    }
}

/// Sends the signal: whether somebody got it.
fn hit(strike: &Strike, child: &Child) -> Result<bool> {
    let signal = Signal::try_from(strike.signal)?;
    let pids = match &strike.to {
        None => vec![Pid::from_raw(i32::try_from(child.id())?)],
        Some(name) => named(name)?,
    };
    Ok(pids.into_iter().filter(|pid| kill(*pid, signal).is_ok()).count() > 0)
}

/// The processes whose program's name begins so.
pub(super) fn named(name: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    let own = i32::try_from(std::process::id())?;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let called = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if pid != 1 && pid != own && called.starts_with(name) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// Takes the remains of orphans, whose parent this process has become.
fn reap() {
    while waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {}
}
