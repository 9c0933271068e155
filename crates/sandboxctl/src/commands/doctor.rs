//! `doctor`.

use crate::cli::Global;
use crate::doctor::{Check, Report, State};
use crate::output::table::columns;
use crate::output::{Failure, data, json};
use crate::settings;

/// Prints the report. What is missing is a finding, not a failure.
pub(crate) fn doctor(global: &Global, as_json: bool) -> Result<(), Failure> {
    let loaded = settings::effective(global)?;
    settings::warn(&loaded);
    let report = Report::new(&loaded.config);
    if as_json {
        json(&serde_json::to_value(&report).unwrap_or_default());
    } else {
        data(&render(&report));
    }
    Ok(())
}

fn render(report: &Report) -> String {
    let row = |check: &Check| {
        let state = match check.state {
            State::Ok => "ok",
            State::Optional => "optional",
            State::Missing => "MISSING",
        };
        vec![state.to_owned(), check.name.to_owned(), check.found.clone()]
    };
    let mut text = columns(&report.checks.iter().map(row).collect::<Vec<_>>());
    let fixes: Vec<_> =
        report.checks.iter().filter_map(|check| Some(vec![format!("  {}", check.name), check.fix.clone()?])).collect();
    if !fixes.is_empty() {
        text += &format!("\nFixes:\n{}", columns(&fixes));
    }
    let mode = report.default_mode;
    text + &format!("\n`sandboxctl run` would use --vmm {} --host {}\n", mode.vmm, mode.host)
}
