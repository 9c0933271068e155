//! Runs a tier of the fault proof: `fault-tiers H|K|V [--quick | --seconds N] [--seed N] | [--named TEXT]`.
//! Without a limit of time it runs all of it; a seed draws what is run within one. `--named` runs what has
//! the text in its place or fault, as a failure prints them. Ends with 1 if anything is left behind.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lifecycle_tests::lab::Programs;
use lifecycle_tests::tiers::{Extent, Report, host, machine, syscalls};

/// How long a quick run of one part takes.
const QUICK: Duration = Duration::from_secs(40);

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str| {
        let value = words.iter().position(|word| word == name).and_then(|at| words.get(at + 1));
        value.map(|value| value.parse::<u64>()).transpose().with_context(|| format!("{name} NUMBER"))
    };
    let quick = words.iter().any(|word| word == "--quick").then_some(QUICK);
    let budget = number("--seconds")?.map(Duration::from_secs).or(quick);
    let seed = number("--seed")?.unwrap_or(1);
    let named = words.iter().position(|word| word == "--named").and_then(|at| words.get(at + 1));
    let extent = match (named, budget) {
        (Some(part), _) => Extent::Named(part.clone()),
        (None, Some(budget)) => Extent::Sample { seed, budget },
        (None, None) => Extent::Full,
    };
    let reports = match words.first().map(String::as_str) {
        Some("H") => vec![host::run(&Programs::stand_ins()?, &host::LIVES, &extent)?],
        Some("K") => vec![syscalls::run(&Programs::stand_ins()?, &extent)?],
        Some("V") => vec![
            machine::run_with_stand_ins(&Programs::stand_ins()?, &extent)?,
            machine::run(&Programs::real()?, &extent)?,
        ],
        _ => bail!("usage: fault-tiers H|K|V [--quick | --seconds N] [--seed N] | [--named TEXT]"),
    };
    if let Extent::Sample { seed, .. } = extent {
        println!("a sample, by seed {seed}");
    }
    let mut sum = Report { tier: "all", ..Report::default() };
    for report in reports {
        println!("{report}");
        for failure in &report.failures {
            println!("  {}", failure.lines().next().unwrap_or_default());
        }
        sum.merge(report);
    }
    println!("{sum}");
    Ok(if sum.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
