//! The sandbox around the container: made, watched, taken away; whatever happens in between.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use resource_actors::trace::TraceFile;
use resource_actors::{ResourceSystem, SandboxError, SandboxHandle, SandboxSpec};
use sandbox_model::ContainerId;
use sandbox_model::config::SandboxConfig;
use sandbox_model::ledger::UndoReport;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::trace::Header;
use serde_json::json;
use sha2::Digest;
use simulation::SimulatedHost;
use simulation::fault::FaultPlan;
use tokio::task::LocalSet;

use super::container::{Container, Life};
use super::failures::{from_library, undone};
use super::{Job, plan};
use crate::cli::{Global, RunArgs};
use crate::commands::sandboxes::{remains, still_there};
use crate::commands::signals::Enders;
use crate::mode::HostMode;
use crate::output::steps::Steps;
use crate::output::{Code, Exit, Failure};
use crate::{owner, telling, world};

/// Closing a trace takes milliseconds; more than this is for ever.
const TRACE_END: Duration = Duration::from_secs(5);

/// How the container's part ended.
enum End {
    /// By itself.
    Exited(i32),
    /// It could not be run.
    Failed(Failure),
    /// By a signal to us.
    Signal(u8),
    /// By the clock.
    TimedOut,
}

/// Runs the job. The container's exit code comes back.
pub(super) fn start(global: &Global, args: &RunArgs, job: &Job) -> Result<u8, Failure> {
    let is_simulated = job.mode.host == HostMode::Simulated;
    let runtime = if is_simulated { crate::commands::virtual_time()? } else { crate::commands::runtime()? };
    let trace = args.trace.as_ref().map(|path| {
        let what = format!("cannot record {}", path.display());
        TraceFile::bounded(path, header(args, job), args.trace_limit)
            .map_err(|error| Failure::early(Code::TRACE_READ, what, error, "--trace FILE"))
    });
    let trace = trace.transpose()?;
    let (steps, printer) = Steps::start(job.progress, trace.as_ref().map(TraceFile::sink))
        .map_err(|error| Failure::early(Code::HOST, "cannot start a thread", error, "sandboxctl doctor"))?;
    let lived = serve(global, args, job, steps.clone());
    // Simulated actors live on this thread: two of them would have no order that a seed decides.
    let outcome = if is_simulated { LocalSet::new().block_on(&runtime, lived) } else { runtime.block_on(lived) };
    // A thread may still wait for standard input, and everything else is done.
    runtime.shutdown_background();
    steps.finish();
    drop(steps);
    drop(printer.join());
    if let Some(trace) = trace {
        finish(trace);
    }
    outcome
}

/// Closes the trace. It ends only when nobody holds its sink; an actor that did not end would hold it
/// for ever, and us with it.
fn finish(trace: TraceFile) {
    let (done, finished) = std::sync::mpsc::channel();
    let closing = std::thread::Builder::new().name("trace-end".into()).spawn(move || drop(done.send(trace.finish())));
    let problem = match (closing, finished.recv_timeout(TRACE_END)) {
        (Err(error), _) | (Ok(_), Ok(Err(error))) => error.to_string(),
        (Ok(_), Err(error)) => format!("its end does not come: {error}"),
        (Ok(_), Ok(Ok(()))) => return,
    };
    tracing::warn!("the trace may be incomplete: {problem}");
}

fn header(args: &RunArgs, job: &Job) -> Header {
    Header {
        config_digest: digest(&job.config),
        seed: (job.mode.host == HostMode::Simulated).then_some(args.seed),
        ..Header::new(job.mode.vmm.to_string(), job.mode.host.to_string())
    }
}

/// SHA-256 of the configuration as JSON.
fn digest(config: &SandboxConfig) -> String {
    let text = serde_json::to_vec(config).unwrap_or_default();
    sha2::Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn serve(global: &Global, args: &RunArgs, job: &Job, steps: Arc<Steps>) -> Result<u8, Failure> {
    let cannot = |error: &dyn std::fmt::Display| Failure::early(Code::HOST, "cannot start", error, "sandboxctl doctor");
    let mut enders = Enders::listen().map_err(|error| cannot(&error))?;
    let system = if job.mode.host == HostMode::Simulated {
        SimulatedHost::new(FaultPlan::default()).delayed_process(args.seed, steps)
    } else {
        let (ports, note) = world::ports(job.mode, nix::unistd::getuid().is_root() && is_first_user_namespace());
        if let Some(note) = note {
            job.progress.note(note);
        }
        let builder = ResourceSystem::builder(ports).state_dir(&global.state_dir).trace(steps);
        builder.start().map_err(|error| cannot(&error))?
    };
    let cgroups_path = job.bundle.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    let cgroups_path = cgroups_path.map(|path| path.display().to_string());
    let spec = SandboxSpec { id: job.id.clone(), config: job.config.clone().into(), cgroups_path };
    let what = format!("cannot create sandbox {}", job.id);
    let created = system.create_sandbox(spec).await;
    let sandbox = match created {
        Ok(sandbox) => sandbox,
        Err(error) => {
            system.shutdown().await;
            return Err(from_library(&what, &error));
        }
    };
    // Held until the directory is gone: nobody cleans up under us. A simulated sandbox has none.
    let claim = (job.mode.host != HostMode::Simulated).then(|| owner::claim(&global.state_dir, &job.id));
    let is_simulated = job.mode.host == HostMode::Simulated;
    let telling = (!is_simulated).then(|| telling::serve(&global.state_dir, &sandbox, job.mode));
    if let Some(Err(error)) = &telling {
        tracing::warn!("`sandboxctl top` will not show this sandbox: {error}");
    }
    let life = Life::default();
    let end = live(&sandbox, args, job, &life, &mut enders).await;
    let outcome = give_back(&sandbox, global, job, &end, &life, &mut enders).await;
    if let Some(Ok(telling)) = telling {
        telling.abort();
    }
    tokio::select! {
        biased;
        _ = system.shutdown() => {}
        signal = enders.next() => leave(global, job, signal),
    }
    drop(claim);
    tell(job, end, outcome)
}

/// Ends the process with the sandbox as it is.
fn leave(global: &Global, job: &Job, signal: u8) -> ! {
    let left = still_there(&global.state_dir, &job.id);
    let list: String = left.iter().map(|object| format!("  {object}\n")).collect();
    eprint!(
        "sandbox {} was left with {} objects:\n{list}to undo them: sandboxctl cleanup {}\n",
        job.id,
        left.len(),
        job.id
    );
    process::exit(i32::from(Exit::Signal(signal).number()));
}

/// In a user namespace root is not the host's root, and has no cgroups.
fn is_first_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2) == Some("4294967295")
}

/// From preparation to the container's end, whichever way that comes.
async fn live(sandbox: &SandboxHandle, args: &RunArgs, job: &Job, life: &Life, enders: &mut Enders) -> End {
    let limit = async {
        match args.timeout {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        outcome = run(sandbox, args, job, life) => match outcome {
            Ok(code) => End::Exited(code),
            Err(failure) => End::Failed(failure),
        },
        signal = enders.next() => End::Signal(signal),
        () = limit => End::TimedOut,
    }
}

async fn run(sandbox: &SandboxHandle, args: &RunArgs, job: &Job, life: &Life) -> Result<i32, Failure> {
    let failed = |error: resource_actors::SandboxError| from_library(&format!("sandbox {} failed", job.id), &error);
    let resources = plan::resources(&job.config, &job.bundle.spec, args.netns.as_deref(), &args.address);
    sandbox.prepare_before_start_vm(resources).await.map_err(failed)?;
    sandbox.start_vm().await.map_err(failed)?;
    sandbox.setup_after_start_vm().await.map_err(failed)?;
    if let Err(error) = sandbox.save().await {
        // Only a later process would miss it.
        tracing::warn!("{error}");
    }
    Container { sandbox, job, variables: &args.env }.run(life).await
}

/// Gives everything back. A signal makes that faster, another one lets it be. One that comes when the
/// container has ended by itself asks for what is being done already.
async fn give_back(
    sandbox: &SandboxHandle,
    global: &Global,
    job: &Job,
    end: &End,
    life: &Life,
    enders: &mut Enders,
) -> Result<UndoReport, SandboxError> {
    let is_told = matches!(end, End::Signal(_));
    let impatience = async {
        if !is_told {
            enders.next().await;
        }
        enders.next().await
    };
    tokio::select! {
        biased;
        report = take_away(sandbox, job, end, life) => return report,
        _ = impatience => {}
    }
    job.progress.note("in haste: whatever does not end at once is ended by force");
    tokio::select! {
        biased;
        report = sandbox.cleanup_at_once() => report,
        signal = enders.next() => leave(global, job, signal),
    }
}

/// Ends the container, then the VM, then the sandbox.
async fn take_away(sandbox: &SandboxHandle, job: &Job, end: &End, life: &Life) -> Result<UndoReport, SandboxError> {
    if let (End::Signal(_) | End::TimedOut, Some(process)) = (end, life.process()) {
        let grace = Duration::from_millis(job.config.runtime.deadlines.term_ms);
        process.end(if let End::Signal(signal) = end { *signal } else { 15 }, grace).await;
    }
    if let Ok(container) = ContainerId::new(job.id.as_str())
        && matches!(end, End::Exited(_))
        && let Err(error) = sandbox.release_container(container).await
    {
        tracing::warn!("{error}");
    }
    // A sandbox that has failed knows only clean-up, which ends its VM too.
    if sandbox.status().state != LifecycleState::Failed
        && let Err(error) = sandbox.stop().await
    {
        tracing::warn!("{error}");
    }
    sandbox.cleanup().await
}

/// Decides how the run is told.
fn tell(job: &Job, end: End, outcome: Result<UndoReport, SandboxError>) -> Result<u8, Failure> {
    let report = outcome.map_err(|error| from_library(&format!("cannot clean up sandbox {}", job.id), &error))?;
    let state = undone(&report);
    let mut left = remains(&job.id, &report);
    if job.mode.host == HostMode::Private
        && let Some(left) = left.take()
    {
        tracing::warn!("{}: {}; it vanishes with this process", left.what, left.why);
    }
    if let (End::Exited(code), None) = (&end, &left) {
        job.progress.event(json!({
            "event": "exit", "id": job.id, "code": code, "vmm": job.mode.vmm, "host": job.mode.host, "state": state,
        }));
        // A guest says what it likes; of its number the low byte counts, as with wait(2).
        return Ok((code & 0xff) as u8);
    }
    Err(match (end, left) {
        (End::Failed(failure), None) => failure.state(state),
        (End::Failed(failure), Some(left)) => {
            Failure { state: format!("{}: {}", left.state, left.why), advice: left.advice, ..failure }
        }
        (_, Some(left)) => left,
        (End::Signal(signal), None) => {
            ended(job, Code::INTERRUPTED, Exit::Signal(signal), format!("signal {signal}"), state)
        }
        (_, None) => {
            ended(job, Code::TIMEOUT, Exit::TimedOut, "the container had not ended by itself".to_owned(), state)
        }
    })
}

fn ended(job: &Job, code: Code, exit: Exit, why: String, state: String) -> Failure {
    let advice = if code == Code::TIMEOUT { "--timeout SECONDS" } else { "sandboxctl help E0502" };
    let mut failure = Failure::early(code, format!("sandbox {} was ended", job.id), why, advice).state(state);
    failure.exit = exit;
    failure
}
