//! `stress`: many sandboxes in one process, and what they cost.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benchmarks::Usage;
use benchmarks::life::{Life, STEPS, Times, own_network};
use benchmarks::load::{self, Load, Outcome};
use resource_actors::ledger::{DirectoryStore, MemoryStore, SandboxStore};
use resource_actors::{ResourceSystem, ResourceSystemBuilder};
use serde_json::{Value, json};
use simulation::{SimulatedFacts, World, simulated_ports};

use crate::cli::{Global, StressArgs, StressHost};
use crate::mode::{HostMode, Mode, VmmMode};
use crate::output::table::columns;
use crate::output::{Code, Exit, Failure, data, json as print_json};
use crate::{private, world};

/// Failures that are told one by one.
const FAILURES_SHOWN: usize = 5;

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
    let report = run(global, args, host, files.as_ref())?;
    if args.json.json {
        print_json(&report.to_json(args));
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
        None => ResourceSystem::builder(simulated_ports(simulated))
            .store(Arc::new(MemoryStore::new(&global.state_dir)))
            .facts(Arc::new(SimulatedFacts::default())),
        Some(host) => {
            let (ports, _) = world::ports(Mode { vmm: VmmMode::Simulated, host }, is_root);
            ResourceSystem::builder(ports).state_dir(&global.state_dir)
        }
    }
}

fn run(global: &Global, args: &StressArgs, host: Option<HostMode>, files: Option<&Files>) -> Result<Report, Failure> {
    let runtime = super::runtime()?;
    let simulated = Arc::new(World::new());
    let threads = usize::try_from(args.threads).unwrap_or(1);
    let system = builder(global, host, &simulated).threads(threads).start().map_err(|error| cannot(&error))?;
    let life = match files {
        None => Life::simulated(),
        Some(files) => {
            Life { network: own_network(), rootfs: files.rootfs(), volumes: files.volumes(), ..Life::simulated() }
        }
    };
    let (sandboxes, at_once) = (args.sandboxes as usize, args.at_once as usize);
    let load = Load { sandboxes, at_once, rate: args.rate };
    let progress = Progress::new(global.quiet || args.json.json);
    let (handles, started, before, grown) = runtime.block_on(async {
        let before = Usage::now();
        let tell = |count| progress.tell("started", count, sandboxes);
        let (handles, started) = load::start(&system, |_| life.clone(), load, "stress", tell).await;
        (handles, started, before, Usage::now())
    });
    progress.end();
    let alive = handles.len();
    let wakeups = idle(Duration::from_secs(args.idle));
    let ended = runtime.block_on(async {
        let ended = load::end(handles, &life, at_once, |count| progress.tell("ended", count, alive)).await;
        // What failed half-way is still known to the system.
        system.shutdown().await;
        ended
    });
    progress.end();
    Ok(Report {
        memory: grown.resident.saturating_sub(before.resident) / u64::try_from(alive.max(1)).unwrap_or(1),
        threads: grown.threads,
        wakeups,
        left: left(global, host, &simulated),
        started,
        ended,
        alive,
    })
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
    fn times(&self) -> Times {
        let mut times = self.started.times.clone();
        times.extend(&self.ended.times);
        times
    }

    fn failures(&self) -> impl Iterator<Item = &String> {
        self.started.failures.iter().chain(&self.ended.failures)
    }

    fn render(&self, args: &StressArgs) -> String {
        let times = self.times();
        let named = STEPS.iter().copied().zip(&times.steps).chain([("whole start", &times.starts)]);
        let header = ["STEP", "COUNT", "P50", "P99", "MAX"].map(str::to_owned).to_vec();
        let rows = named.map(|(name, samples)| {
            let at = |percent| format!("{:.2?}", samples.percentile(percent));
            vec![name.to_owned(), samples.count().to_string(), at(50.0), at(99.0), at(100.0)]
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

    fn to_json(&self, args: &StressArgs) -> Value {
        let times = self.times();
        let micros = |samples: &benchmarks::Samples, percent| samples.percentile(percent).as_secs_f64() * 1e6;
        let steps = STEPS.iter().copied().zip(&times.steps).chain([("whole start", &times.starts)]);
        let steps: Vec<_> = steps
            .map(|(name, samples)| {
                json!({
                    "step": name, "count": samples.count(), "p50_us": micros(samples, 50.0),
                    "p99_us": micros(samples, 99.0), "max_us": micros(samples, 100.0),
                })
            })
            .collect();
        json!({
            "v": 1, "vmm": "simulated", "host": format!("{:?}", args.host).to_lowercase(), "sandboxes": args.sandboxes,
            "alive": self.alive, "starts_per_second": self.started.rate(args.sandboxes as usize),
            "ends_per_second": self.ended.rate(self.alive),
            "cpu_seconds": (self.started.cpu + self.ended.cpu).as_secs_f64(),
            "memory_bytes_each": self.memory, "threads": self.threads, "wakeups_per_second": self.wakeups,
            "steps": steps, "failures": self.failures().collect::<Vec<_>>(), "left": self.left,
        })
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
