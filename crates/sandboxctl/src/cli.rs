//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};
use sandbox_model::SandboxId;
use sandbox_model::network::IpNet;

use crate::mode::{HostMode, VmmMode};

mod load;
pub(crate) use load::{BenchArgs, StressArgs, StressHost};

/// Runs OCI bundles in microVM sandboxes and shows what they are made of
#[derive(Debug, Parser)]
#[command(name = "sandboxctl", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Where sandboxes keep their state
    #[arg(long, global = true, value_name = "DIR", env = "SANDBOXCTL_STATE_DIR", value_hint = ValueHint::DirPath,
          default_value = sandbox_model::layout::STATE_DIR)]
    pub(crate) state_dir: PathBuf,
    /// Kata's configuration.toml [default: KATA_CONF_FILE, then Kata's own places]
    #[arg(long, global = true, value_name = "FILE", env = "SANDBOXCTL_CONFIG", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, as hypervisor.default_memory=512; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// More of the log: -v info, -vv debug, -vvv trace
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a bundle in a sandbox of its own, from boot to clean-up
    Run(RunArgs),
    /// List sandboxes
    List(Json),
    /// Show what a sandbox is made of
    Inspect(InspectArgs),
    /// Show what every actor of the running sandboxes is at
    Top(TopArgs),
    /// Undo what a sandbox has left behind
    Cleanup(CleanupArgs),
    /// Bring what dead processes have left to order: keep what runs, undo the rest
    Recover(RecoverArgs),
    /// Work with recorded traces
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Start many sandboxes at once, let them idle, take them away, and tell what that cost
    Stress(StressArgs),
    /// Measure what has a target on this host
    Bench(BenchArgs),
    /// Tell what this host can do, and how to fix what it cannot
    Doctor(Json),
    /// Show, explain or check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands into a directory
    Man {
        /// The directory
        #[arg(value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
    /// Explain an error code, or a command
    Help {
        /// An error code as E0202, or a command
        topic: Option<String>,
    },
}

/// The flag of every verb that reads.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Json {
    /// One JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Directory with config.json and the root file system
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) bundle: PathBuf,
    /// Name of sandbox and container [default: made up]
    #[arg(long)]
    pub(crate) id: Option<SandboxId>,
    /// Network namespace that somebody has filled [default: that of the bundle]
    #[arg(long, value_name = "PATH", conflicts_with = "address", value_hint = ValueHint::FilePath)]
    pub(crate) netns: Option<PathBuf>,
    /// An address of the guest on a network of its own, as 10.0.0.2/24; may be repeated
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    pub(crate) address: Vec<IpNet>,
    /// A real VM, or a simulated one [default: qemu if this host can]
    #[arg(long, value_enum)]
    pub(crate) vmm: Option<VmmMode>,
    /// The host's own objects, throw-away namespaces, or none at all [default: real with qemu, else
    /// private]
    #[arg(long, value_enum)]
    pub(crate) host: Option<HostMode>,
    /// Seed of a run with --vmm simulated --host simulated
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// End the container after so long; the exit code is then 124
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub(crate) timeout: Option<u64>,
    /// Set a variable of the container's environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) env: Vec<String>,
    /// Record every message and host operation in a file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) trace: Option<PathBuf>,
    /// Bytes that the trace may take on the disk, as 64M; the oldest part goes first
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = bytes, requires = "trace")]
    pub(crate) trace_limit: u64,
    /// Progress, output and result as JSON lines on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Which sandbox
    pub(crate) id: SandboxId,
    /// Show it again whenever something changes, until it is gone
    #[arg(short, long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Which sandboxes [default: all]
    pub(crate) ids: Vec<SandboxId>,
    /// Show it once and end
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Which sandbox
    #[arg(required_unless_present = "all")]
    pub(crate) id: Option<SandboxId>,
    /// Every sandbox whose process is gone
    #[arg(long, conflicts_with = "id")]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Which sandboxes
    #[arg(required_unless_present = "all")]
    pub(crate) ids: Vec<SandboxId>,
    /// Every sandbox whose process is gone
    #[arg(long, conflicts_with = "ids")]
    pub(crate) all: bool,
    /// Undo what runs, too
    #[arg(long)]
    pub(crate) release: bool,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    /// Do once more what a trace says was done, and compare
    ///
    /// Without flags its messages go through the real actors on recorded answers, in virtual time, and
    /// every output must be the recorded one. A trace of a run with `--host simulated` is made again from
    /// its seed too, and must be the same to the byte. With any of the flags the commands are driven in
    /// the simulation instead, and the rules are checked: every command is answered, no actor dies, every
    /// sandbox is released, nothing is left.
    #[command(after_help = "Examples:\n  sandboxctl trace replay pod.jsonl\n  \
        sandboxctl trace replay pod.jsonl --sandboxes 50 --speed 100 --faults 7")]
    Replay(ReplayArgs),
    /// Compare two traces, step by step
    ///
    /// Steps of the same command and actor are put side by side; what is only in the first is marked -,
    /// what is only in the second +, and what differs in its request or answer ~. The exit code is 5 if
    /// they differ.
    #[command(after_help = "Examples:\n  sandboxctl trace diff good.jsonl bad.jsonl\n  \
        sandboxctl trace diff good.jsonl bad.jsonl --all --json")]
    Diff {
        /// The one trace
        #[arg(value_hint = ValueHint::FilePath)]
        one: PathBuf,
        /// The other trace
        #[arg(value_hint = ValueHint::FilePath)]
        other: PathBuf,
        /// Show steps that are alike, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Draw a trace: who did what when, and what waited for whom
    Timeline(TimelineArgs),
    /// Tell in words what led to a record, what it waited for and what it made
    Explain {
        /// What `run --trace` wrote
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// The number of a record, as the timeline shows it
        seq: u64,
        #[command(flatten)]
        json: Json,
    },
    /// Look for the fewest commands and faults of a trace that still break a rule
    #[command(
        visible_alias = "minimize",
        after_help = "Examples:\n  sandboxctl trace minimise pod.jsonl --faults 7 -o least.jsonl\n  \
            sandboxctl trace replay least.jsonl"
    )]
    Minimise {
        #[command(flatten)]
        stress: ReplayArgs,
        /// Where the trace of the least run goes
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("target").required(true).multiple(true).args(["output", "svg", "chrome"])))]
pub(crate) struct TimelineArgs {
    /// What `run --trace` wrote
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Write a page for a browser; it needs nothing else
    #[arg(short, long, value_name = "HTML", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Write the picture of one sandbox
    #[arg(long, value_name = "SVG", value_hint = ValueHint::FilePath)]
    pub(crate) svg: Option<PathBuf>,
    /// Which sandbox the SVG shows [default: the first]
    #[arg(long, value_name = "ID", requires = "svg")]
    pub(crate) sandbox: Option<SandboxId>,
    /// Write Chrome's trace format, for ui.perfetto.dev
    #[arg(long, value_name = "JSON", value_hint = ValueHint::FilePath)]
    pub(crate) chrome: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// What `run --trace` wrote
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Let port calls fail, hang, or answer late, as this seed says
    #[arg(long, value_name = "SEED")]
    pub(crate) faults: Option<u64>,
    /// Drive the commands for so many copies of the trace's sandboxes at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) sandboxes: Option<u32>,
    /// Send the commands so many times as fast as recorded
    #[arg(long, value_name = "X", value_parser = speed)]
    pub(crate) speed: Option<f64>,
    /// Seed of the delays in the simulation [default: 1]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) json: Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the effective configuration with the origin of each value
    Show(Json),
    /// Explain a key, as hypervisor.default_memory
    Explain {
        /// The key
        key: String,
    },
    /// Check a file, or what would be used
    Check {
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
}

/// `64M`, as most tools read it.
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']).map(|digits| (digits, 10)) {
        Some(kilo) => kilo,
        None => text.strip_suffix(['m', 'M']).map(|digits| (digits, 20)).unwrap_or((text, 0)),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(1 << unit));
    bytes.filter(|bytes| *bytes >= 64 << 10).ok_or_else(|| "expected at least 64K bytes, as 64M".to_owned())
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse::<f64>().ok().filter(|speed| *speed > 0.0 && *speed <= 1e9);
    speed.ok_or_else(|| "expected a number above 0, as 10 or 0.5".to_owned())
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}
