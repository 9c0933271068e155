//! `list`, `cleanup`: sandboxes of whichever process, by their ledgers.

use std::fs;
use std::path::Path;

use resource_actors::ledger::{Bounds, DirectoryStore, LedgerTable, ReadLedger, SandboxStore, read};
use resource_actors::{ResourceSystem, SandboxError};
use sandbox_model::SandboxId;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{UndoItem, UndoReport, Undone};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use super::signals::Enders;
use crate::cli::{CleanupArgs, Global};
use crate::output::table::columns;
use crate::output::{Code, Exit, Failure, data, json as print_json};
use crate::{owner, world};

/// What is known of a sandbox from outside.
pub(super) struct Seen {
    id: SandboxId,
    /// Whether a living process runs it.
    runs: bool,
    /// Whether the host has been booted since: then what it names is gone.
    old_boot: bool,
    pub(super) ledger: LedgerTable,
}

impl Seen {
    /// In words.
    pub(super) fn state(&self) -> &'static str {
        match (self.runs, self.old_boot) {
            (true, _) => "running",
            (false, false) => "left",
            (false, true) => "left by an earlier boot",
        }
    }
}

/// What `list --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct List {
    /// The version of this document: 1.
    v: u32,
    sandboxes: Vec<Listed>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Listed {
    #[schemars(with = "String")]
    id: SandboxId,
    /// `running`, `left` or `left by an earlier boot`.
    state: &'static str,
    /// Open entries of its ledger.
    objects: usize,
}

/// What `cleanup --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct CleanUp {
    /// The version of this document: 1.
    v: u32,
    sandboxes: Vec<CleanedUp>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct CleanedUp {
    #[schemars(with = "String")]
    id: SandboxId,
    /// Whether nothing of it is left.
    clean: bool,
    /// What became of each object; absent if there is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    objects: Option<Vec<UndoItem>>,
    /// Why it could not be cleaned up at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prints one line for each sandbox.
pub(crate) fn list(global: &Global, as_json: bool) -> Result<(), Failure> {
    let seen: Result<Vec<_>, _> = ids(global)?.into_iter().map(|id| read_ledger(&global.state_dir, id)).collect();
    let seen = seen?;
    if as_json {
        let row = |one: &Seen| Listed { id: one.id.clone(), state: one.state(), objects: one.ledger.len() };
        print_json(&json!(List { v: 1, sandboxes: seen.iter().map(row).collect() }));
        return Ok(());
    }
    let header = ["SANDBOX", "STATE", "OBJECTS"].map(str::to_owned).to_vec();
    let row = |one: &Seen| vec![one.id.to_string(), one.state().to_owned(), one.ledger.len().to_string()];
    data(&columns(&[header].into_iter().chain(seen.iter().map(row)).collect::<Vec<_>>()));
    Ok(())
}

/// Undoes what dead processes have left.
pub(crate) fn cleanup(global: &Global, args: &CleanupArgs) -> Result<(), Failure> {
    let wished = match &args.id {
        Some(id) => vec![id.clone()],
        None => ids(global)?,
    };
    let runtime = super::runtime()?;
    let (outcomes, signal) = runtime.block_on(async {
        let mut enders = Enders::listen().map_err(|error| cannot_start(&error))?;
        let (system, claims) = (start(global)?, claim_all(global, wished, args.all).await?);
        let hurry = watch::Sender::new(false);
        let each = claims.iter().map(|(id, _)| async { (id.clone(), one(&system, id, hurry.subscribe()).await) });
        let (outcomes, signal) = to_its_end(futures::future::join_all(each), &hurry, &mut enders).await;
        system.shutdown().await;
        Ok((outcomes, signal))
    })?;
    // It goes with its last sandbox, unless a crash has come between the two. Goes only if it is empty.
    let _ = fs::remove_dir(&global.state_dir);
    tell(&outcomes, args.json.json);
    match outcomes.into_iter().find_map(|(id, outcome)| left(&id, outcome)) {
        Some(failure) => Err(failure.documented()),
        None => signal.map_or(Ok(()), |signal| Err(interrupted(signal).documented())),
    }
}

/// Cleans one sandbox up; in haste, once that is asked for.
async fn one(
    system: &ResourceSystem,
    id: &SandboxId,
    mut hurry: watch::Receiver<bool>,
) -> Result<UndoReport, SandboxError> {
    tokio::select! {
        biased;
        outcome = system.cleanup_sandbox(id) => return outcome,
        _ = hurry.wait_for(|hurry| *hurry) => {}
    }
    match system.sandbox(id) {
        Some(sandbox) => sandbox.cleanup_at_once().await,
        None => system.cleanup_sandbox(id).await,
    }
}

/// Waits for clean-ups. The first signal lets them end, the second makes it faster, the third leaves.
async fn to_its_end<T>(
    work: impl Future<Output = T>,
    hurry: &watch::Sender<bool>,
    enders: &mut Enders,
) -> (T, Option<u8>) {
    tokio::pin!(work);
    let mut first = None;
    loop {
        let signal = tokio::select! {
            biased;
            done = &mut work => return (done, first),
            signal = enders.next() => signal,
        };
        if first.replace(first.unwrap_or(signal)).is_some() && hurry.send_replace(true) {
            eprintln!("what remains: sandboxctl list; to undo it: sandboxctl cleanup --all");
            std::process::exit(i32::from(Exit::Signal(signal).number()));
        }
    }
}

/// Takes every sandbox that no living process runs.
pub(super) async fn claim_all(
    global: &Global,
    wished: Vec<SandboxId>,
    skip_running: bool,
) -> Result<Vec<(SandboxId, owner::Claim)>, Failure> {
    let mut claims = Vec::new();
    for id in wished {
        match owner::claim_of_the_dead(&global.state_dir, &id).await {
            Ok(claim) => claims.push((id, claim)),
            Err(owner::Unclaimed::Runs) if skip_running => tracing::info!("{id} is run by a living process"),
            Err(owner::Unclaimed::Runs) => return Err(runs(&id)),
            Err(owner::Unclaimed::Gone) => return Err(unknown(&global.state_dir, &id)),
            Err(owner::Unclaimed::Other(why)) => return Err(store(&id, why)),
        }
    }
    Ok(claims)
}

/// What a sandbox's ledger still names.
pub(super) fn still_there(state_dir: &Path, id: &SandboxId) -> Vec<String> {
    let seen = read_ledger(state_dir, id.clone());
    seen.map(|seen| seen.ledger.entries().map(|entry| entry.object.to_string()).collect()).unwrap_or_default()
}

pub(super) fn interrupted(signal: u8) -> Failure {
    let what = "interrupted, when all had been done";
    let mut failure = Failure::early(Code::INTERRUPTED, what, format!("signal {signal}"), "sandboxctl list");
    failure.state = "nothing was left half done".to_owned();
    failure.exit = Exit::Signal(signal);
    failure
}

pub(super) fn cannot_start(error: &dyn std::fmt::Display) -> Failure {
    Failure::early(Code::HOST, "cannot start", error, "sandboxctl doctor")
}

pub(super) fn start(global: &Global) -> Result<ResourceSystem, Failure> {
    let builder = ResourceSystem::builder(world::real()).state_dir(&global.state_dir);
    builder.start().map_err(|error| Failure::early(Code::HOST, "cannot start threads", error, "sandboxctl doctor"))
}

pub(super) fn ids(global: &Global) -> Result<Vec<SandboxId>, Failure> {
    let listed = DirectoryStore::new(&global.state_dir).list();
    listed.map_err(|error| Failure::early(Code::STORE, "cannot list sandboxes", error, "--state-dir DIR, or sudo"))
}

/// Reads a ledger without taking part in the sandbox.
pub(super) fn read_ledger(state_dir: &Path, id: SandboxId) -> Result<Seen, Failure> {
    let path = SandboxDir::new(state_dir, &id).ledger();
    let text = match fs::read_to_string(&path) {
        // A crash has come before the first record, or after the last.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => {
            String::new()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(unknown(state_dir, &id)),
        Err(error) => return Err(store(&id, format!("read {}: {error}", path.display()))),
        Ok(text) => text,
    };
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let ReadLedger { table: ledger, same_boot, .. } = read(&text, &Bounds::new(state_dir, &id), boot.trim())
        .map_err(|(line, wrong)| store(&id, format!("{} line {line}: {wrong}", path.display())))?;
    let runs = matches!(owner::claim(state_dir, &id), Err(owner::Unclaimed::Runs));
    Ok(Seen { id, runs, old_boot: !same_boot, ledger })
}

fn unknown(state_dir: &Path, id: &SandboxId) -> Failure {
    let why = format!("{} is not there", state_dir.join(id.as_str()).display());
    Failure::early(Code::UNKNOWN, format!("there is no sandbox {id}"), why, "sandboxctl list")
}

fn store(id: &SandboxId, why: String) -> Failure {
    Failure::early(Code::STORE, format!("cannot read sandbox {id}"), why, "sandboxctl help E0106")
}

fn runs(id: &SandboxId) -> Failure {
    let why = "a living process holds its directory";
    let advice = "end that process (Ctrl-C, or SIGTERM): it cleans up by itself";
    Failure::early(Code::EXISTS, format!("sandbox {id} is running"), why, advice)
}

fn tell(outcomes: &[(SandboxId, Result<UndoReport, SandboxError>)], as_json: bool) {
    if as_json {
        let one = |(id, outcome): &(SandboxId, Result<UndoReport, SandboxError>)| CleanedUp {
            id: id.clone(),
            clean: outcome.as_ref().is_ok_and(UndoReport::is_clean),
            objects: outcome.as_ref().ok().map(|report| report.items.clone()),
            error: outcome.as_ref().err().map(ToString::to_string),
        };
        print_json(&json!(CleanUp { v: 1, sandboxes: outcomes.iter().map(one).collect() }));
        return;
    }
    for (id, outcome) in outcomes {
        let Ok(report) = outcome else { continue };
        tell_report(id, report);
    }
}

/// One line for each object.
pub(super) fn tell_report(id: &SandboxId, report: &UndoReport) {
    for item in &report.items {
        let how = match &item.result {
            Ok(Undone::Undone) => "undone".to_owned(),
            Ok(Undone::AlreadyGone) => "already gone".to_owned(),
            Err(error) => format!("LEFT: {error}"),
        };
        data(&format!("{id}  {}  {how}\n", item.object));
    }
}

pub(super) fn left(id: &SandboxId, outcome: Result<UndoReport, SandboxError>) -> Option<Failure> {
    match outcome {
        Ok(report) => remains(id, &report),
        Err(error) => Some(super::run::from_library(&format!("cannot clean up sandbox {id}"), &error)),
    }
}

/// The failure to report if a clean-up left something.
pub(super) fn remains(id: &SandboxId, report: &UndoReport) -> Option<Failure> {
    let left: Vec<_> = report.failed().map(|(item, error)| format!("{}: {error}", item.object)).collect();
    if left.is_empty() {
        return None;
    }
    let what = format!("sandbox {id} could not be cleaned up");
    let mut failure = Failure::early(Code::REMAINS, what, left.join("; "), format!("sandboxctl cleanup {id}"));
    failure.state = format!("{} of {} objects remain", left.len(), report.items.len());
    failure.exit = Exit::Remains;
    Some(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<List>("list.v1.json");
        crate::output::schema::check::<CleanUp>("cleanup.v1.json");
    }
}
