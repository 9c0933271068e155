//! Flags of the verbs that load and measure.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Json;

#[derive(Debug, Args)]
pub(crate) struct StressArgs {
    /// Sandboxes in all; they live at the same time
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) sandboxes: u32,
    /// Of which so many are being started or ended at one time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) at_once: u32,
    /// Starts per second [default: as fast as it goes]
    #[arg(long, value_name = "PER SECOND", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Only simulated VMs can be had in such numbers
    #[arg(long, value_enum, default_value_t = StressVmm::Simulated)]
    pub(crate) vmm: StressVmm,
    /// Whose host objects
    #[arg(long, value_enum, default_value_t = StressHost::Simulated)]
    pub(crate) host: StressHost,
    /// Tells every sandbox the commands of a recorded trace, on a simulated host
    #[arg(long, value_name = "FILE", conflicts_with = "host")]
    pub(crate) trace: Option<PathBuf>,
    /// Threads that the actors live on
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) threads: u32,
    /// Seconds to let them idle
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(crate) idle: u64,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// The VMMs that `stress` can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StressVmm {
    /// Simulated VMs and agents
    Simulated,
}

/// The hosts that `stress` can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StressHost {
    /// Nothing real is made
    Simulated,
    /// Real mounts, links and cgroups in throw-away namespaces
    Private,
    /// The host's own
    Real,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Which measurements [default: all]
    #[arg(value_parser = measurement_names())]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) json: Json,
}

fn measurement_names() -> clap::builder::PossibleValuesParser {
    benchmarks::rows::ALL.iter().map(|one| one.name).collect::<Vec<_>>().into()
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.01..=1e6).contains(&rate) => Ok(rate),
        _ => Err("expected a number between 0.01 and 1000000".to_owned()),
    }
}
