//! What the library says, in the tool's four lines.

use resource_actors::{Cause, SandboxError};
use sandbox_model::ledger::UndoReport;
use sandbox_model::{ErrorKind, PortError, SandboxId};

use crate::output::{Code, Exit, Failure};

/// A failed request to a sandbox.
pub(in crate::commands) fn from_library(what: &str, error: &SandboxError) -> Failure {
    let code = Code::find(error.code()).unwrap_or(Code::PORT);
    let mut failure = Failure::early(code, what, error, error.hint());
    if let Some(undo) = error.undone() {
        failure.state = undone(undo);
        failure.exit = if undo.is_clean() { Exit::Failed } else { Exit::Remains };
    }
    if lacks_something(error) {
        failure.exit = Exit::HostCannot;
    }
    failure
}

/// A failed call of the guest's agent that the tool itself made.
pub(super) fn from_agent(id: &SandboxId, doing: &str, error: &PortError) -> Failure {
    let what = format!("sandbox {id}: {doing} failed in the guest");
    Failure::early(Code::PORT, what, error, "sandboxctl run --trace FILE …   # records every call")
}

/// A sandbox that failed by itself, for this reason.
pub(super) fn from_sandbox(id: &SandboxId, why: &str) -> Failure {
    Failure::early(
        Code::PORT,
        format!("sandbox {id} failed"),
        why,
        "sandboxctl run --trace FILE …   # records every call",
    )
}

/// `undone 7 of 7`.
pub(super) fn undone(report: &UndoReport) -> String {
    let (all, left) = (report.items.len(), report.failed().count());
    match all {
        0 => "nothing had been made".to_owned(),
        _ => format!("undone {} of {all}", all - left),
    }
}

fn lacks_something(error: &SandboxError) -> bool {
    let SandboxError::Step(step) = error else { return false };
    matches!(&step.cause, Cause::Port(error) if matches!(error.kind, ErrorKind::Unsupported))
}
