//! `recover`: what dead processes have left is kept where it runs, and undone where it does not.

use resource_actors::{Recovered, ResourceSystem, SandboxError};
use sandbox_model::SandboxId;
use sandbox_model::ledger::UndoItem;
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::status::SandboxStatus;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::sandboxes::{cannot_start, claim_all, ids, interrupted, left, start, tell_report};
use super::signals::Enders;
use crate::cli::{Global, RecoverArgs};
use crate::output::{Exit, Failure, data, json as print_json};

/// What `recover --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct Recovery {
    /// The version of this document: 1.
    v: u32,
    sandboxes: Vec<Outcome>,
}

/// What became of one sandbox.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
enum Outcome {
    /// Its VM runs, and it goes on.
    Adopted {
        #[schemars(with = "String")]
        id: SandboxId,
        #[schemars(with = "String")]
        state: LifecycleState,
        /// Open entries of its ledger.
        objects: usize,
        /// Containers that hold something.
        containers: usize,
        vmm_pid: Option<i32>,
    },
    /// It was taken away.
    Released {
        #[schemars(with = "String")]
        id: SandboxId,
        why: String,
        /// Whether nothing of it is left.
        clean: bool,
        /// What became of each object.
        objects: Vec<UndoItem>,
    },
    /// Neither could be done.
    Failed {
        #[schemars(with = "String")]
        id: SandboxId,
        error: String,
    },
}

/// Brings every wished sandbox to order, side by side.
pub(crate) fn recover(global: &Global, args: &RecoverArgs) -> Result<(), Failure> {
    let wished = if args.all { ids(global)? } else { args.ids.clone() };
    let runtime = super::runtime()?;
    let (outcomes, signal) = runtime.block_on(async {
        let mut enders = Enders::listen().map_err(|error| cannot_start(&error))?;
        let (system, claims) = (start(global)?, claim_all(global, wished, args.all).await?);
        let each = claims.iter().map(|(id, _)| async { (id.clone(), one(&system, id, args.release).await) });
        let (outcomes, signal) = to_its_end(futures::future::join_all(each), &mut enders).await;
        // What runs goes on without us.
        system.leave().await;
        Ok((outcomes, signal))
    })?;
    tell(&outcomes, args.json.json);
    match outcomes.into_iter().find_map(|(id, outcome)| failure(&id, outcome)) {
        Some(failure) => Err(failure.documented()),
        None => signal.map_or(Ok(()), |signal| Err(interrupted(signal).documented())),
    }
}

async fn one(system: &ResourceSystem, id: &SandboxId, release: bool) -> Result<Recovered, SandboxError> {
    if release {
        let report = system.cleanup_sandbox(id).await?;
        return Ok(Recovered::Released { report, why: "as wished".to_owned() });
    }
    system.recover(id).await
}

/// The first signal lets what has begun come to its end. The second leaves: a recovery that is cut
/// off is taken up by the next, and in haste a sandbox that runs could only be lost.
async fn to_its_end<T>(work: impl Future<Output = T>, enders: &mut Enders) -> (T, Option<u8>) {
    tokio::pin!(work);
    let first = tokio::select! {
        biased;
        done = &mut work => return (done, None),
        signal = enders.next() => signal,
    };
    tokio::select! {
        biased;
        done = &mut work => (done, Some(first)),
        signal = enders.next() => {
            eprintln!("left half way; to go on: sandboxctl recover --all");
            std::process::exit(i32::from(Exit::Signal(signal).number()));
        }
    }
}

fn tell(outcomes: &[(SandboxId, Result<Recovered, SandboxError>)], as_json: bool) {
    if as_json {
        print_json(&json!(Recovery { v: 1, sandboxes: outcomes.iter().map(document).collect() }));
        return;
    }
    for (id, outcome) in outcomes {
        match outcome {
            Ok(Recovered::Adopted(sandbox)) => {
                let status = sandbox.status();
                data(&format!("{id}  {}  {} objects, all confirmed\n", status.state, status.objects));
            }
            Ok(Recovered::Released { report, why }) => {
                data(&format!("{id}  released  {why}\n"));
                tell_report(id, report);
            }
            Err(_) => {}
        }
    }
}

fn document((id, outcome): &(SandboxId, Result<Recovered, SandboxError>)) -> Outcome {
    let id = id.clone();
    match outcome {
        Ok(Recovered::Adopted(sandbox)) => {
            let SandboxStatus { state, objects, containers, vmm_pid, .. } = sandbox.status();
            Outcome::Adopted { id, state, objects, containers, vmm_pid }
        }
        Ok(Recovered::Released { report, why }) => {
            Outcome::Released { id, why: why.clone(), clean: report.is_clean(), objects: report.items.clone() }
        }
        Err(error) => Outcome::Failed { id, error: error.to_string() },
    }
}

fn failure(id: &SandboxId, outcome: Result<Recovered, SandboxError>) -> Option<Failure> {
    match outcome {
        Ok(Recovered::Adopted(_)) => None,
        Ok(Recovered::Released { report, .. }) => left(id, Ok(report)),
        Err(error) => left(id, Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<Recovery>("recover.v1.json");
    }
}
