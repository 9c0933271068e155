//! `stress`: many sandboxes in one process, and what they cost.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use benchmarks::life::{Life, STEPS, own_network};
use benchmarks::load::{self, Load, Outcome};
use benchmarks::recorded::{self, ByCommand};
use benchmarks::{Samples, Usage};
use resource_actors::ledger::{DirectoryStore, MemoryStore, SandboxStore};
use resource_actors::{Ports, ResourceSystem, ResourceSystemBuilder};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use simulation::rerun::Commands;
use simulation::{SimulatedFacts, World, simulated_ports};

use crate::cli::{Global, StressArgs, StressHost};
use crate::mode::{HostMode, Mode, VmmMode};
use crate::output::table::columns;
use crate::output::{Code, Exit, Failure, data, json as print_json};
use crate::{private, world};

use super::trace::{read, unusable};

/// Failures that are told one by one.
const FAILURES_SHOWN: usize = 5;

/// What `stress --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct Document {
    /// The version of this document: 1.
    v: u32,
    /// `simulated`.
    vmm: &'static str,
    /// `simulated`, `private` or `real`.
    host: String,
    /// How many were to be started.
    sandboxes: usize,
    /// How many were alive at one time.
    alive: usize,
    starts_per_second: f64,
    ends_per_second: f64,
    /// Of all threads, without the time between the starts and the ends.
    cpu_seconds: f64,
    memory_bytes_each: u64,
    threads: u64,
    /// While nothing was asked of anybody.
    wakeups_per_second: f64,
    steps: Vec<Step>,
    /// What failed, each with the sandbox's name.
    failures: Vec<String>,
    /// What is still there that was not before.
    left: Vec<String>,
}

/// How long one step took.
#[derive(Debug, Serialize, JsonSchema)]
struct Step {
    step: String,
    count: usize,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

/// Serves the verb.
pub(crate) fn stress(global: &Global, args: &StressArgs) -> Result<(), Failure> {
    let host = match args.host {
        StressHost::Simulated => None,
        StressHost::Private => Some(HostMode::Private),
        StressHost::Real => Some(HostMode::Real),
    };
    if host == Some(HostMode::Private) {
        // No thread exists yet.
        private::enter(&global.state_dir, &[])?;
    }
    let files = host.map(|_| Files::make(global)).transpose()?;
    let report = match &args.trace {
        Some(trace) => recorded(global, args, trace)?,
        None => run(global, args, host, files.as_ref())?,
    };
    if args.json.json {
        print_json(&json!(report.document(args)));
    } else {
        data(&report.render(args));
    }
    report.verdict()
}

/// What containers on a real host mount.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn make(global: &Global) -> Result<Self, Failure> {
        let dir = global.state_dir.with_file_name(format!("resource-actors-stress-{}", std::process::id()));
        let files = Self { dir };
        for path in files.volumes().iter().chain([&files.rootfs()]) {
            std::fs::create_dir_all(path).map_err(|error| cannot(&format!("mkdir {}: {error}", path.display())))?;
        }
        Ok(files)
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    fn volumes(&self) -> Vec<PathBuf> {
        ["data", "config", "secrets"].map(|name| self.dir.join(name)).to_vec()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in self.volumes().iter().chain([&self.rootfs(), &self.dir]) {
            if let Err(error) = std::fs::remove_dir(path) {
                tracing::warn!("rmdir {}: {error}", path.display());
            }
        }
    }
}

fn cannot(why: &dyn std::fmt::Display) -> Failure {
    Failure::early(Code::HOST, "cannot stress this host", why, "sandboxctl doctor")
}

/// What a stress came to.
struct Report {
    started: Outcome,
    ended: Outcome,
    /// How long each step took, by its name.
    steps: Vec<(String, Samples)>,
    alive: usize,
    /// Bytes of resident memory that each sandbox has added.
    memory: u64,
    threads: u64,
    /// Per second, all sandboxes together, when nothing was asked of them.
    wakeups: f64,
    left: Vec<String>,
}

fn builder(global: &Global, host: Option<HostMode>, simulated: &Arc<World>) -> ResourceSystemBuilder {
    let is_root = nix::unistd::getuid().is_root();
    match host {
        None => on_simulated_host(global, simulated_ports(simulated), SimulatedFacts::default()),
        Some(host) => {
            let (ports, _) = world::ports(Mode { vmm: VmmMode::Simulated, host }, is_root);
            ResourceSystem::builder(ports).state_dir(&global.state_dir)
        }
    }
}

fn on_simulated_host(global: &Global, ports: Ports, facts: SimulatedFacts) -> ResourceSystemBuilder {
    let store = MemoryStore::new(&global.state_dir);
    ResourceSystem::builder(ports).store(Arc::new(store)).facts(Arc::new(facts))
}

fn start(args: &StressArgs, builder: ResourceSystemBuilder) -> Result<ResourceSystem, Failure> {
    builder.threads(usize::try_from(args.threads).unwrap_or(1)).start().map_err(|error| cannot(&error))
}

fn load_of(args: &StressArgs) -> Load {
    Load { sandboxes: args.sandboxes as usize, at_once: args.at_once as usize, rate: args.rate }
}

fn each(grown: Usage, before: Usage, count: usize) -> u64 {
    grown.resident.saturating_sub(before.resident) / u64::try_from(count.max(1)).unwrap_or(1)
}

/// The commands of a trace, for every sandbox. What a trace names is on no real host.
fn recorded(global: &Global, args: &StressArgs, trace: &Path) -> Result<Report, Failure> {
    let (_, events) = read(trace)?;
    let commands = Commands::of(&events).map_err(|error| unusable(trace, error))?;
    let (runtime, local) = (super::runtime()?, tokio::task::LocalSet::new());
    let (simulated, load) = (Arc::new(World::new()), load_of(args));
    let (ports, facts) = commands.surroundings(&simulated, load.sandboxes);
    let given: BTreeSet<_> = simulated.list().into_iter().collect();
    let system = start(args, on_simulated_host(global, ports, facts))?;
    let progress = Progress::new(global.quiet || args.json.json);
    let mut times = ByCommand::new();
    let before = Usage::now();
    let tell = |count| progress.tell("started", count, load.sandboxes);
    let (begun, started) = local.block_on(&runtime, recorded::start(&system, &commands, load, &mut times, tell));
    let grown = Usage::now();
    progress.end();
    let (copies, alive) = (begun.len(), begun.iter().flat_map(|copy| copy.sandboxes()).count());
    let wakeups = idle(Duration::from_secs(args.idle));
    let tell = |count| progress.tell("ended", count, copies);
    let ended = local.block_on(&runtime, recorded::end(&system, &commands, begun, load.at_once, &mut times, tell));
    runtime.block_on(system.shutdown());
    progress.end();
    let left = simulated.list().into_iter().filter(|object| !given.contains(object)).collect();
    let (steps, memory, threads) = (times.into_iter().collect(), each(grown, before, alive), grown.threads);
    Ok(Report { started, ended, steps, alive, memory, threads, wakeups, left })
}

fn run(global: &Global, args: &StressArgs, host: Option<HostMode>, files: Option<&Files>) -> Result<Report, Failure> {
    let runtime = super::runtime()?;
    let simulated = Arc::new(World::new());
    let system = start(args, builder(global, host, &simulated))?;
    let life = match files {
        None => Life::simulated(),
        Some(files) => {
            Life { network: own_network(), rootfs: files.rootfs(), volumes: files.volumes(), ..Life::simulated() }
        }
    };
    let load = load_of(args);
    let progress = Progress::new(global.quiet || args.json.json);
    let (handles, started, before, grown) = runtime.block_on(async {
        let before = Usage::now();
        let tell = |count| progress.tell("started", count, load.sandboxes);
        let (handles, started) = load::start(&system, |_| life.clone(), load, "stress", tell).await;
        (handles, started, before, Usage::now())
    });
    progress.end();
    let alive = handles.len();
    let wakeups = idle(Duration::from_secs(args.idle));
    let ended = runtime.block_on(async {
        let ended = load::end(handles, &life, load.at_once, |count| progress.tell("ended", count, alive)).await;
        // What failed half-way is still known to the system.
        system.shutdown().await;
        ended
    });
    progress.end();
    Ok(Report {
        memory: each(grown, before, alive),
        steps: steps(&started, &ended),
        threads: grown.threads,
        wakeups,
        left: left(global, host, &simulated),
        started,
        ended,
        alive,
    })
}

fn steps(started: &Outcome, ended: &Outcome) -> Vec<(String, Samples)> {
    let mut times = started.times.clone();
    times.extend(&ended.times);
    let named = STEPS.iter().copied().zip(times.steps).chain([("whole start", times.starts)]);
    named.map(|(name, samples)| (name.to_owned(), samples)).collect()
}

/// Wake-ups per second while nothing is asked of anybody.
fn idle(time: Duration) -> f64 {
    if time.is_zero() {
        return 0.0;
    }
    let before = Usage::now();
    #[expect(clippy::disallowed_methods, reason = "the main thread, on which nobody else waits")]
    std::thread::sleep(time);
    // Our own sleep is one of them.
    let woken = Usage::now().wakeups.saturating_sub(before.wakeups + 1);
    f64::from(u32::try_from(woken).unwrap_or(u32::MAX)) / time.as_secs_f64()
}

/// What is still there that was not before.
fn left(global: &Global, host: Option<HostMode>, simulated: &World) -> Vec<String> {
    if host.is_none() {
        return simulated.list();
    }
    let ours = |line: &&str| line.contains(&*global.state_dir.to_string_lossy());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // A private host has its state directory on a mount of its own.
    let below = format!("{}/", global.state_dir.display());
    let mounts = mounts.lines().filter(ours).filter(|line| line.contains(&below)).map(str::to_owned);
    let sandboxes = DirectoryStore::new(&global.state_dir).list().unwrap_or_default();
    sandboxes.iter().map(|id| format!("sandbox {id}")).chain(mounts).collect()
}

/// A line on standard error that is written over and over.
struct Progress {
    is_quiet: bool,
    is_terminal: bool,
    told: std::cell::Cell<Option<Instant>>,
}

impl Progress {
    fn new(is_quiet: bool) -> Self {
        Self { is_quiet, is_terminal: std::io::stderr().is_terminal(), told: std::cell::Cell::new(None) }
    }

    /// Says so at most ten times a second, or once a second where lines stay.
    fn tell(&self, what: &str, count: usize, of: usize) {
        let pause = Duration::from_millis(if self.is_terminal { 100 } else { 1000 });
        let is_due = self.told.get().is_none_or(|told| told.elapsed() >= pause);
        if self.is_quiet || !(is_due || count == of) {
            return;
        }
        self.told.set(Some(Instant::now()));
        let (before, after) = if self.is_terminal { ("\r", "") } else { ("", "\n") };
        drop(write!(std::io::stderr(), "{before}{count} of {of} sandboxes {what}{after}"));
    }

    fn end(&self) {
        if self.is_terminal && !self.is_quiet {
            eprintln!();
        }
    }
}

impl Report {
    fn failures(&self) -> impl Iterator<Item = &String> {
        self.started.failures.iter().chain(&self.ended.failures)
    }

    fn render(&self, args: &StressArgs) -> String {
        let header = ["STEP", "COUNT", "P50", "P99", "MAX"].map(str::to_owned).to_vec();
        let rows = self.steps.iter().map(|(name, samples)| {
            let at = |percent| format!("{:.2?}", samples.percentile(percent));
            vec![name.clone(), samples.count().to_string(), at(50.0), at(99.0), at(100.0)]
        });
        let mut text = columns(&[header].into_iter().chain(rows).collect::<Vec<_>>());
        text += &format!(
            "\n{:.0} starts per second, {:.0} ends per second, {:.2?} of CPU time\n\
             {} alive: {:.1} KiB of memory each, {} threads, {:.1} wake-ups per second in all\n",
            self.started.rate(args.sandboxes as usize),
            self.ended.rate(self.alive),
            self.started.cpu + self.ended.cpu,
            self.alive,
            self.memory as f64 / 1024.0,
            self.threads,
            self.wakeups,
        );
        for failure in self.failures().take(FAILURES_SHOWN) {
            text += &format!("failed: {failure}\n");
        }
        text + &format!("{} failed, {} objects left behind\n", self.failures().count(), self.left.len())
    }

    fn document(&self, args: &StressArgs) -> Document {
        let micros = |samples: &Samples, percent| samples.percentile(percent).as_secs_f64() * 1e6;
        let step = |(name, samples): &(String, Samples)| Step {
            step: name.clone(),
            count: samples.count(),
            p50_us: micros(samples, 50.0),
            p99_us: micros(samples, 99.0),
            max_us: micros(samples, 100.0),
        };
        Document {
            v: 1,
            vmm: "simulated",
            host: format!("{:?}", args.host).to_lowercase(),
            sandboxes: args.sandboxes as usize,
            alive: self.alive,
            starts_per_second: self.started.rate(args.sandboxes as usize),
            ends_per_second: self.ended.rate(self.alive),
            cpu_seconds: (self.started.cpu + self.ended.cpu).as_secs_f64(),
            memory_bytes_each: self.memory,
            threads: self.threads,
            wakeups_per_second: self.wakeups,
            steps: self.steps.iter().map(step).collect(),
            failures: self.failures().cloned().collect(),
            left: self.left.clone(),
        }
    }

    fn verdict(&self) -> Result<(), Failure> {
        let failed = self.failures().count();
        let why = self.left.first().or(self.failures().next()).cloned().unwrap_or_default();
        if !self.left.is_empty() {
            let mut failure =
                Failure::early(Code::REMAINS, format!("{} objects were left", self.left.len()), why, "sandboxctl list");
            failure.exit = Exit::Remains;
            return Err(failure.state("something remains".to_owned()).documented());
        }
        if failed == 0 {
            return Ok(());
        }
        let what = format!("{failed} sandboxes failed");
        Err(Failure::early(Code::PORT, what, why, "sandboxctl doctor").state("all is undone".to_owned()).documented())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<Document>("stress.v1.json");
    }
}
