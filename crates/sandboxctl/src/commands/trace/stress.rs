//! `trace replay` under stress, and `trace minimise`.

use std::fs;
use std::path::Path;

use sandbox_model::lifecycle::LifecycleState;
use serde_json::json;
use simulation::rerun::{self, Stress, StressReport, stress};

use super::{read, unusable};
use crate::cli::ReplayArgs;
use crate::output::{Code, Failure, data, json as print_json};

/// Whether a flag asks for more than a comparison.
pub(super) fn is_wanted(args: &ReplayArgs) -> bool {
    args.faults.is_some() || args.sandboxes.is_some() || args.speed.is_some() || args.seed.is_some()
}

fn wished(args: &ReplayArgs) -> Stress {
    let usual = Stress::default();
    Stress {
        seed: args.seed.unwrap_or(usual.seed),
        sandboxes: args.sandboxes.map_or(usual.sandboxes, |count| count as usize),
        speed: args.speed.unwrap_or(usual.speed),
        faults: args.faults,
    }
}

pub(super) fn replay(args: &ReplayArgs) -> Result<(), Failure> {
    let (_, events) = read(&args.file)?;
    let wished = wished(args);
    let report = stress(&events, &wished).map_err(|error| unusable(&args.file, error))?;
    if args.json.json {
        print_json(&json!({
            "v": 1, "vmm": "simulated", "host": "simulated", "seed": wished.seed, "sandboxes": wished.sandboxes,
            "commands": report.commands, "succeeded": report.succeeded, "events": report.events.len(),
            "faults": report.faults, "struck": report.struck, "states": report.states,
            "violations": report.violations,
        }));
    } else {
        data(&render(&wished, &report));
    }
    broken(args, &wished, &report)
}

fn render(wished: &Stress, report: &StressReport) -> String {
    let mut text = format!(
        "vmm simulated, host simulated, seed {}: {} commands for {} sandboxes, {} succeeded; {} events\n",
        wished.seed,
        report.commands,
        report.states.len(),
        report.succeeded,
        report.events.len()
    );
    if !report.faults.faults.is_empty() {
        text += &format!("{} of {} faults struck: {}\n", report.struck, report.faults.faults.len(), report.faults);
    }
    let released = report.states.values().filter(|state| **state == LifecycleState::Released).count();
    text += &format!("{released} of {} sandboxes were released\n", report.states.len());
    for violation in &report.violations {
        text += &format!("broken: {violation}\n");
    }
    if report.violations.is_empty() { text + "no rule was broken\n" } else { text }
}

fn broken(args: &ReplayArgs, wished: &Stress, report: &StressReport) -> Result<(), Failure> {
    let Some(first) = report.violations.first() else { return Ok(()) };
    let mut again = format!(
        "sandboxctl trace minimise {} --seed {} --sandboxes {} --speed {}",
        args.file.display(),
        wished.seed,
        wished.sandboxes,
        wished.speed
    );
    if let Some(seed) = wished.faults {
        again += &format!(" --faults {seed}");
    }
    let what = match report.violations.len() {
        1 => "a rule was broken".to_owned(),
        count => format!("{count} rules were broken"),
    };
    // The rest of it stands in the report.
    let why = first.lines().next().unwrap_or_default();
    Err(Failure::early(Code::RULE_BROKEN, what, why, again).documented())
}

pub(super) fn minimise(args: &ReplayArgs, output: Option<&Path>) -> Result<(), Failure> {
    let (_, events) = read(&args.file)?;
    let least = rerun::minimise(&events, &wished(args)).map_err(|error| unusable(&args.file, error))?;
    let Some(least) = least else {
        if args.json.json {
            print_json(&json!({"v": 1, "failed": false}));
        } else {
            data("no rule is broken: there is nothing to reduce\n");
        }
        return Ok(());
    };
    if let Some(output) = output {
        fs::write(output, least.report.file()).map_err(|error| {
            Failure::early(Code::TRACE_READ, format!("cannot write {}", output.display()), error, "-o FILE")
        })?;
    }
    if args.json.json {
        print_json(&json!({
            "v": 1, "failed": true, "vmm": "simulated", "host": "simulated",
            "commands": {"before": least.commands.0, "after": least.commands.1},
            "faults": {"before": least.faults.0, "after": least.faults.1, "plan": least.report.faults},
            "sandboxes": least.sandboxes, "seed": least.report.header.seed, "runs": least.runs,
            "violations": least.report.violations,
        }));
    } else {
        let mut text = format!(
            "{} of {} commands and {} of {} faults are enough ({} runs)\n",
            least.commands.1, least.commands.0, least.faults.1, least.faults.0, least.runs
        );
        if !least.report.faults.faults.is_empty() {
            text += &format!("faults: {}\n", least.report.faults);
        }
        for violation in &least.report.violations {
            text += &format!("broken: {violation}\n");
        }
        data(&text);
    }
    Ok(())
}
