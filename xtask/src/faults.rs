//! `cargo xtask faults`: proof, tier by tier, that whatever fails nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{mutants, packages, run, tool};

/// A tier: the same lives in another world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Simulated ports, virtual time: every site, every mode.
    Simulated,
    /// This kernel: the tier of `fault-tiers` with this letter.
    Linux(&'static str),
    /// Attackers: the security tests, in full.
    Security,
    /// The code broken on purpose: does the simulated tier notice?
    Mutants,
}

/// The tiers, by the names that `--tier` takes.
const TIERS: [(&str, Tier); 6] = [
    ("S", Tier::Simulated),
    ("H", Tier::Linux("H")),
    ("K", Tier::Linux("K")),
    ("V", Tier::Linux("V")),
    ("security", Tier::Security),
    ("mutants", Tier::Mutants),
];

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
            let result = perform(tier, quick)?;
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

fn perform(tier: Tier, quick: bool) -> Result<Outcome> {
    match tier {
        Tier::Simulated => simulated(quick),
        Tier::Linux(letter) => linux(letter, quick),
        Tier::Security => security(quick),
        Tier::Mutants => mutants::run(),
    }
}

/// Builds and runs the program of the simulated tier.
fn simulated(quick: bool) -> Result<Outcome> {
    let mut program = Command::new(build()?.join("faults"));
    // Without a log: each of thousands of failures would have its line.
    program.env("RUST_LOG", "off");
    counted(program, quick)
}

/// Builds and runs a tier on this kernel.
fn linux(letter: &str, quick: bool) -> Result<Outcome> {
    packages::for_tests()?;
    run::prepare()?;
    let mut program = Command::new(build()?.join("fault-tiers"));
    program.arg(letter);
    program.env("RESOURCE_ACTORS_GUEST", tool::target("guest"));
    program.env("RESOURCE_ACTORS_TOOLS", tool::target("tools").join("bin"));
    counted(program, quick)
}

/// Changed inputs that each fuzz target is given.
const FUZZ_ROUNDS: &str = "20000";

/// Builds and runs the security tests. Each is a site; one that fails is a rule that does not hold.
fn security(quick: bool) -> Result<Outcome> {
    packages::for_tests()?;
    let begun = Instant::now();
    let mut tests = tool::cargo();
    tests.arg("test").args(&SELECTION[1..]).args(["--test", "security"]);
    if !quick {
        tests.env("RESOURCE_ACTORS_SECURITY_FULL", "1").env("RESOURCE_ACTORS_FUZZ_ROUNDS", FUZZ_ROUNDS);
    }
    let output = tests.stderr(Stdio::inherit()).output().context("cargo test")?;
    let told = String::from_utf8_lossy(&output.stdout);
    println!("{told}");
    let sum = told.lines().find_map(|line| line.strip_prefix("test result: ")).context("the tests counted nothing")?;
    let words: Vec<&str> = sum.split([' ', ';']).collect();
    let count = |what: &str| {
        let number = words.windows(2).find(|pair| pair[1] == what).map(|pair| pair[0]);
        number.and_then(|number| number.parse::<usize>().ok()).with_context(|| format!("no count of {what} in {sum:?}"))
    };
    let (passed, failed) = (count("passed")?, count("failed")?);
    Ok(Outcome {
        is_good: output.status.success(),
        sites: (passed + failed).to_string(),
        runs: (passed + failed).to_string(),
        modes: "–".to_owned(),
        leaks: "–".to_owned(),
        breaks: failed.to_string(),
        seconds: begun.elapsed().as_secs(),
    })
}

/// What every tier selects, so that they share what cargo has built.
pub(crate) const SELECTION: [&str; 6] = ["build", "--release", "-p", "sandboxctl", "-p", "lifecycle-tests"];

/// Builds the programs of all tiers; where they are.
fn build() -> Result<PathBuf> {
    tool::run(tool::cargo().args(SELECTION).arg("--bins"))?;
    Ok(tool::cargo_target().join("release"))
}

/// Runs a program that tells what it does, line by line, and at the end counts it.
fn counted(mut program: Command, quick: bool) -> Result<Outcome> {
    let begun = Instant::now();
    if quick {
        program.arg("--quick");
    }
    let mut child = program.stdout(Stdio::piped()).spawn().with_context(|| format!("start {program:?}"))?;
    let mut sum = None;
    for line in BufReader::new(child.stdout.take().context("its output")?).lines() {
        let line = line?;
        println!("{line}");
        sum = line.strip_prefix("all ").map(str::to_owned).or(sum);
    }
    let status = child.wait()?;
    let sum = sum.with_context(|| format!("{program:?} counted nothing: {status}"))?;
    let words: Vec<&str> = sum.split_whitespace().collect();
    let fields: BTreeMap<&str, &str> = words.chunks(2).filter_map(|pair| Some((pair[0], *pair.get(1)?))).collect();
    let field = |name: &str| fields.get(name).map_or_else(|| "?".to_owned(), |value| (*value).to_owned());
    Ok(Outcome {
        is_good: status.success(),
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
    let path = tool::workspace().join("docs/faults.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (before, rest) = text.split_once(BEGIN).context("docs/faults.md has lost its mark")?;
    let (old, after) = rest.split_once(END).context("docs/faults.md has lost its end mark")?;
    let mut git = Command::new("git");
    let head =
        git.current_dir(tool::workspace()).args(["rev-parse", "--short", "HEAD"]).output().context("git rev-parse")?;
    let commit = String::from_utf8_lossy(&head.stdout).trim().to_owned();
    let mut table = String::from("\n\n| Tier | Commit | Sites | Runs | Modes | Leaks | Breaks | Seconds |\n");
    table.push_str("|---|---|---|---|---|---|---|---|\n");
    // Those that did not run now keep what their last run came to.
    let last = |name| old.lines().find(|line| line.starts_with(&format!("| {name} |")));
    let mut rows: BTreeMap<usize, String> = BTreeMap::new();
    for (at, (name, _)) in TIERS.into_iter().enumerate() {
        rows.extend(last(name).map(|line| (at, format!("{line}\n"))));
    }
    for (name, result) in results {
        let Outcome { sites, runs, modes, leaks, breaks, seconds, .. } = result;
        let row = format!("| {name} | {commit} | {sites} | {runs} | {modes} | {leaks} | {breaks} | {seconds} |\n");
        rows.extend(TIERS.iter().position(|(known, _)| known == name).map(|at| (at, row)));
    }
    table.extend(rows.into_values());
    fs::write(&path, format!("{before}{BEGIN}{table}\n{END}{after}")).with_context(|| path.display().to_string())
}
