//! `top`: what every actor of the running sandboxes is at.

use std::io::IsTerminal;
use std::time::Duration;

use resource_actors::Figures;
use sandbox_model::SandboxId;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::sandboxes;
use crate::cli::{Global, TopArgs};
use crate::output::table::columns;
use crate::output::{Failure, data, json as print_json};
use crate::story::time;
use crate::telling::{self, Told};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its top (ECMA-48: CUP, ED).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What `top --json` prints, once or as one line for each look.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Top {
    /// The version of this document: 1.
    v: u32,
    sandboxes: Vec<Told>,
    /// Sandboxes whose process did not answer, with the reason.
    silent: Vec<Silent>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Silent {
    #[schemars(with = "String")]
    id: SandboxId,
    why: String,
}

/// Serves the verb.
pub(crate) fn top(global: &Global, args: &TopArgs) -> Result<(), Failure> {
    let is_terminal = std::io::stdout().is_terminal();
    let runtime = super::runtime()?;
    loop {
        let top = look(global, args)?;
        match (args.json.json, args.once) {
            (true, true) => print_json(&json!(top)),
            (true, false) => data(&format!("{}\n", json!(top))),
            (false, true) => data(&top.text()),
            (false, false) if is_terminal => data(&format!("{CLEAR}{}", top.text())),
            (false, false) => data(&format!("{}\n", top.text())),
        }
        if args.once {
            return Ok(());
        }
        runtime.block_on(async { tokio::time::sleep(EVERY).await });
    }
}

fn look(global: &Global, args: &TopArgs) -> Result<Top, Failure> {
    let ids = if args.ids.is_empty() { sandboxes::ids(global)? } else { args.ids.clone() };
    let mut top = Top { v: 1, sandboxes: Vec::new(), silent: Vec::new() };
    for id in ids {
        match telling::ask(&global.state_dir, &id) {
            Ok(told) => top.sandboxes.push(told),
            Err(error) => top.silent.push(Silent { id, why: error.to_string() }),
        }
    }
    Ok(top)
}

impl Top {
    fn text(&self) -> String {
        let mut text = String::new();
        for told in &self.sandboxes {
            let Told { id, vmm, host, state, objects, containers, pid, .. } = told;
            let step = told.step.as_ref().map(|step| format!(" · {step}")).unwrap_or_default();
            text += &format!(
                "{id}  {state}{step} · {objects} objects, {containers} containers · vmm {vmm}, host {host}, pid {pid}\n"
            );
            let header =
                ["  ACTOR", "NOW", "FOR/DEADLINE", "WAIT", "OLDEST", "P50", "P99", "SERVED", "REFUSED", "RESTARTED"];
            let rows = std::iter::once(header.map(str::to_owned).to_vec()).chain(told.mailboxes.iter().map(row));
            text += &columns(&rows.collect::<Vec<_>>());
        }
        for silent in &self.silent {
            text += &format!("{}  no process tells of it: {}\n", silent.id, silent.why);
        }
        if text.is_empty() { "no sandboxes\n".to_owned() } else { text }
    }
}

fn row(figures: &Figures) -> Vec<String> {
    let or_dash = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), time);
    let now = figures.now.as_ref();
    vec![
        format!("  {}", figures.actor),
        now.map_or_else(|| "idle".to_owned(), |now| now.message.clone()),
        now.map_or_else(|| "-".to_owned(), |now| format!("{}/{}", time(now.elapsed_us), time(now.deadline_us))),
        figures.waiting.to_string(),
        or_dash(figures.oldest_us),
        or_dash(figures.p50_us),
        or_dash(figures.p99_us),
        figures.served.to_string(),
        figures.refused.to_string(),
        figures.restarted.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use resource_actors::InFlight;
    use sandbox_model::lifecycle::{ActorName, LifecycleState};

    #[test]
    fn the_schema_is_that_of_the_document() {
        crate::output::schema::check::<Top>("top.v1.json");
    }

    #[test]
    fn what_is_served_and_what_waits_is_shown() {
        let figures = |actor, now| Figures {
            actor,
            now,
            waiting: 2,
            oldest_us: Some(1_500),
            served: 40,
            p50_us: Some(767),
            p99_us: None,
            refused: 1,
            restarted: 0,
        };
        let now = InFlight { message: "AttachDevice".into(), elapsed_us: 12_000, deadline_us: 5_000_000 };
        let told = Told {
            id: SandboxId::new("pod").unwrap(),
            pid: 7,
            vmm: "simulated".into(),
            host: "real".into(),
            state: LifecycleState::Running,
            step: Some("SetUpDevices: its devices".into()),
            objects: 3,
            containers: 1,
            mailboxes: vec![figures(ActorName::Device, Some(now)), figures(ActorName::Cpu, None)],
        };
        let silent = vec![Silent { id: SandboxId::new("left").unwrap(), why: "refused".into() }];
        let text = Top { v: 1, sandboxes: vec![told], silent }.text();
        let expected = "\
pod  running · SetUpDevices: its devices · 3 objects, 1 containers · vmm simulated, host real, pid 7
  ACTOR   NOW           FOR/DEADLINE    WAIT  OLDEST   P50     P99  SERVED  REFUSED  RESTARTED
  device  AttachDevice  12.0 ms/5.00 s  2     1.50 ms  767 µs  -    40      1        0
  cpu     idle          -               2     1.50 ms  767 µs  -    40      1        0
left  no process tells of it: refused
";
        assert_eq!(text, expected);
    }
}
