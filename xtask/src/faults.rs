//! `cargo xtask faults`: proof, tier by tier, that whatever fails nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::mutants;

/// A tier: the same lives in another world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Simulated ports, virtual time: every site, every mode.
    Simulated,
    /// The code broken on purpose: does the simulated tier notice?
    Mutants,
}

/// The tiers, by the names that `--tier` takes.
const TIERS: [(&str, Tier); 2] = [("S", Tier::Simulated), ("mutants", Tier::Mutants)];

/// The begin and end of the table that `--record` writes.
const BEGIN: &str = "<!-- last result, by `cargo xtask faults --record` -->";
const END: &str = "<!-- end of the last result -->";

/// Runs the tiers that the arguments name, or all.
pub(crate) fn faults(arguments: &[String]) -> Result<ExitCode> {
    let mut chosen: Vec<Tier> = Vec::new();
    let (mut quick, mut record) = (false, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--quick" => quick = true,
            "--record" => record = true,
            "--tier" => {
                let name = rest.next().map(String::as_str).unwrap_or_default();
                let tier = TIERS.iter().find(|(known, _)| *known == name);
                let names: Vec<&str> = TIERS.iter().map(|(name, _)| *name).collect();
                chosen.push(tier.with_context(|| format!("--tier takes one of {}", names.join(", ")))?.1);
            }
            other => bail!("{other}: usage: cargo xtask faults [--tier NAME]... [--quick] [--record]"),
        }
    }
    let all = TIERS.map(|(_, tier)| tier);
    let mut results = Vec::new();
    for (name, tier) in TIERS {
        let tiers = if chosen.is_empty() { &all[..] } else { &chosen[..] };
        if tiers.contains(&tier) {
            let result = run(tier, quick)?;
            println!("tier {name}: {result}");
            results.push((name, result));
        }
    }
    if record {
        write_down(&results)?;
    }
    let is_good = results.iter().all(|(_, result)| result.is_good);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a tier came to.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// Whether nothing was left behind and no rule was broken.
    pub(crate) is_good: bool,
    /// Places at which something failed.
    pub(crate) sites: String,
    /// Runs.
    pub(crate) runs: String,
    /// Kinds of faults.
    pub(crate) modes: String,
    /// Runs that left something.
    pub(crate) leaks: String,
    /// Runs in which a rule did not hold, or mutants that were not noticed.
    pub(crate) breaks: String,
    /// Seconds.
    pub(crate) seconds: u64,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sites, runs, modes, leaks, breaks, seconds, .. } = self;
        write!(f, "{sites} sites, {runs} runs, {modes} modes, {leaks} leaks, {breaks} breaks, {seconds} s")
    }
}

fn run(tier: Tier, quick: bool) -> Result<Outcome> {
    match tier {
        Tier::Simulated => simulated(quick),
        Tier::Mutants => mutants::run(),
    }
}

/// The workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// The command that builds and starts the program of the simulated tier.
fn simulated(quick: bool) -> Result<Outcome> {
    let begun = Instant::now();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args(["run", "--release", "-p", "lifecycle-tests", "--bin", "faults", "--"]);
    if quick {
        cargo.arg("--quick");
    }
    // Without a log: each of thousands of failures would have its line.
    let output = cargo.env("RUST_LOG", "off").stderr(Stdio::inherit()).output().context("cargo run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let sum = text.lines().find(|line| line.starts_with("all ")).context("the program printed no sum")?;
    let words: Vec<&str> = sum.split_whitespace().collect();
    let fields: BTreeMap<&str, &str> = words[1..].chunks(2).filter_map(|pair| Some((pair[0], *pair.get(1)?))).collect();
    let field = |name: &str| fields.get(name).map_or_else(|| "?".to_owned(), |value| (*value).to_owned());
    Ok(Outcome {
        is_good: output.status.success(),
        sites: field("sites"),
        runs: field("runs"),
        modes: field("modes"),
        leaks: field("leaks"),
        breaks: field("breaks"),
        seconds: begun.elapsed().as_secs(),
    })
}

/// Puts the results into `docs/faults.md`.
fn write_down(results: &[(&str, Outcome)]) -> Result<()> {
    let path = workspace().join("docs/faults.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).context("docs/faults.md has lost its mark")?;
    let (_, after) = rest.split_once(END).context("docs/faults.md has lost its end mark")?;
    let mut git = Command::new("git");
    let head = git.current_dir(workspace()).args(["rev-parse", "--short", "HEAD"]).output().context("git rev-parse")?;
    let commit = String::from_utf8_lossy(&head.stdout).trim().to_owned();
    let mut table = String::from("\n\n| Tier | Commit | Sites | Runs | Modes | Leaks | Breaks | Seconds |\n");
    table.push_str("|---|---|---|---|---|---|---|---|\n");
    for (name, result) in results {
        let Outcome { sites, runs, modes, leaks, breaks, seconds, .. } = result;
        table.push_str(&format!(
            "| {name} | {commit} | {sites} | {runs} | {modes} | {leaks} | {breaks} | {seconds} |\n"
        ));
    }
    fs::write(&path, format!("{before}{BEGIN}{table}\n{END}{after}")).with_context(|| path.display().to_string())
}
