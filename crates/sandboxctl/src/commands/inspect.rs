//! `inspect`: a sandbox's objects, by its ledger and by the kernel.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use sandbox_model::SandboxId;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{Entry, EntryId, Scope};
use sandbox_model::lifecycle::ActorName;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::sandboxes::read_ledger;
use crate::cli::{Global, InspectArgs};
use crate::look::{Look, Sight};
use crate::output::{Code, Failure, data, json as print_json};

/// The kernel tells of changes to the ledger; of its own objects it does not, so it is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its top (ECMA-48: CUP, ED).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// What `inspect --json` prints.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Inspection {
    /// The version of this document: 1.
    v: u32,
    #[schemars(with = "String")]
    id: SandboxId,
    /// `running`, `left`, `left by an earlier boot`; `gone` at the end of `--watch`.
    state: String,
    counts: Counts,
    /// The ledger's entries, oldest first.
    objects: Vec<Object>,
    /// What carries the sandbox's marks and is in no entry.
    strangers: Vec<Stranger>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
struct Counts {
    /// In the ledger and in the kernel.
    there: usize,
    /// Only in the ledger.
    vanished: usize,
    /// Inside of the VM, or only in an actor's table.
    inside: usize,
    /// Not to be seen by this user.
    unclear: usize,
    /// Only in the kernel.
    strangers: usize,
}

#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct Object {
    /// The entry's number.
    #[schemars(with = "u64")]
    entry: EntryId,
    actor: ActorName,
    /// `sandbox`, or which container it goes with.
    #[schemars(with = "Value")]
    scope: Scope,
    /// In words.
    name: String,
    /// What it is and how the kernel knows it, as in the ledger.
    object: Value,
    identity: Value,
    /// `there`, `vanished`, `inside` or `unclear`.
    sight: &'static str,
    /// The same as a sign: `✓`, `!`, `·` or `~`.
    mark: &'static str,
    /// More of it.
    note: String,
}

#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
struct Stranger {
    /// `process`, `tap`, `cgroup`, `mount` or `file`.
    kind: &'static str,
    name: String,
}

/// Serves the verb.
pub(crate) fn inspect(global: &Global, args: &InspectArgs) -> Result<(), Failure> {
    let runtime = super::runtime()?;
    let look = || runtime.block_on(Inspection::look(&global.state_dir, &args.id));
    let first = look()?;
    if !args.watch {
        if args.json.json {
            print_json(&json!(first))
        } else {
            data(&first.text(&global.state_dir))
        }
        return Ok(());
    }
    let changes = Changes::of(&SandboxDir::new(&global.state_dir, &args.id))?;
    let mut shown = first;
    show(&shown, global, args);
    loop {
        changes.wait();
        let next = match look() {
            Ok(next) => next,
            Err(failure) if failure.code == Code::UNKNOWN => {
                show(&Inspection::gone(&args.id), global, args);
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
        // Figures of processes change all the time: on a terminal they are drawn, and are no record.
        let is_news = if std::io::stdout().is_terminal() { next != shown } else { next.outline() != shown.outline() };
        if is_news {
            show(&next, global, args);
            shown = next;
        }
    }
}

/// Draws again on a terminal; elsewhere each change is a record of its own.
fn show(inspection: &Inspection, global: &Global, args: &InspectArgs) {
    if args.json.json {
        data(&format!("{}\n", json!(inspection)));
    } else if std::io::stdout().is_terminal() {
        data(&format!("{CLEAR}{}", inspection.text(&global.state_dir)));
    } else {
        data(&format!("{}\n", inspection.text(&global.state_dir)));
    }
}

/// Wakes when a ledger changes, and every second.
struct Changes(OwnedFd);

impl Changes {
    fn of(dir: &SandboxDir) -> Result<Self, Failure> {
        let failed = |errno: rustix::io::Errno| {
            Failure::early(Code::HOST, format!("cannot watch {}", dir.root().display()), errno, "without --watch")
        };
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
        let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::DELETE_SELF;
        inotify::add_watch(&inotify, dir.root(), what).map_err(failed)?;
        Ok(Self(inotify))
    }

    fn wait(&self) {
        let mut watched = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::NONE);
        // An interrupted wait is one more look; what has changed is seen by looking.
        let _ = poll(&mut watched, timeout);
        while rustix::io::read(&self.0, &mut [0; 4096]).is_ok_and(|length| length > 0) {}
    }
}

impl Inspection {
    async fn look(state_dir: &Path, id: &SandboxId) -> Result<Self, Failure> {
        let seen = read_ledger(state_dir, id.clone())?;
        let dir = SandboxDir::new(state_dir, id);
        let Look { entries, strangers } = Look::at(id, dir.root(), &seen.ledger).await;
        let mut counts = Counts { strangers: strangers.len(), ..Counts::default() };
        for (_, sight) in &entries {
            *match sight {
                Sight::There(_) => &mut counts.there,
                Sight::Vanished(_) => &mut counts.vanished,
                Sight::Inside => &mut counts.inside,
                Sight::Unclear(_) => &mut counts.unclear,
            } += 1;
        }
        Ok(Self {
            v: 1,
            id: id.clone(),
            state: seen.state().to_owned(),
            counts,
            objects: entries.into_iter().map(|(entry, sight)| Object::new(entry, &sight)).collect(),
            strangers: strangers.into_iter().map(|one| Stranger { kind: one.kind, name: one.name }).collect(),
        })
    }

    /// What makes two looks differ: which objects there are, and whether they are there.
    fn outline(&self) -> (&str, Vec<(EntryId, &str)>, &[Stranger]) {
        let objects = self.objects.iter().map(|object| (object.entry, object.sight));
        (&self.state, objects.collect(), &self.strangers)
    }

    fn gone(id: &SandboxId) -> Self {
        let (objects, strangers) = (Vec::new(), Vec::new());
        Self { v: 1, id: id.clone(), state: "gone".to_owned(), counts: Counts::default(), objects, strangers }
    }

    /// A tree for people: one branch for each actor.
    fn text(&self, state_dir: &Path) -> String {
        let Self { id, state, counts, objects, strangers, .. } = self;
        let mut text = format!("{id}  {state}  {} objects: {}\n", objects.len(), counts.text());
        let prefix = format!("{}/", SandboxDir::new(state_dir, id).root().display());
        let short = |name: &str| name.replace(&prefix, "");
        let mut branches = Vec::new();
        for actor in ActorName::ALL {
            let lines: Vec<_> =
                objects.iter().filter(|object| object.actor == actor).map(|object| object.line(&short)).collect();
            branches.push((actor.to_string(), lines));
        }
        let lines = strangers.iter().map(|one| format!("? {} {}", one.kind, short(&one.name)));
        branches.push(("not in the ledger".to_owned(), lines.collect()));
        branches.retain(|(_, lines)| !lines.is_empty());
        let count = branches.len();
        for (index, (name, lines)) in branches.into_iter().enumerate() {
            let (joint, stem) = if index + 1 == count { ("└─", "  ") } else { ("├─", "│ ") };
            text += &format!("{joint} {name}\n");
            for (n, line) in lines.iter().enumerate() {
                let joint = if n + 1 == lines.len() { "└─" } else { "├─" };
                text += &format!("{stem} {joint} {line}\n");
            }
        }
        text
    }
}

impl Counts {
    fn text(&self) -> String {
        let parts = [
            (self.there, "✓"),
            (self.vanished, "! vanished"),
            (self.strangers, "? not in the ledger"),
            (self.inside, "· inside"),
            (self.unclear, "~ unclear"),
        ];
        let shown = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let shown: Vec<_> = shown.collect();
        if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
    }
}

impl Object {
    fn new(entry: Entry, sight: &Sight) -> Self {
        let intent = if entry.identity.is_none() { "perhaps made" } else { "" };
        let notes: Vec<_> =
            [intent, sight.note()].into_iter().filter(|note| !note.is_empty()).map(str::to_owned).collect();
        Self {
            entry: entry.id,
            actor: entry.actor,
            name: entry.object.to_string(),
            object: json!(entry.object),
            identity: json!(entry.identity),
            scope: entry.scope,
            sight: sight.word(),
            mark: sight.mark(),
            note: notes.join(", "),
        }
    }

    fn line(&self, short: &impl Fn(&str) -> String) -> String {
        let mark = self.mark;
        let container = match &self.scope {
            Scope::Sandbox => String::new(),
            Scope::Container(container) => format!("  of container {container}"),
        };
        let note = if self.note.is_empty() { String::new() } else { format!("  ({})", self.note) };
        format!("{mark} {} {}{container}{note}", self.entry, short(&self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::schema;

    #[test]
    fn the_schema_is_that_of_the_document() {
        schema::check::<Inspection>("inspect.v1.json");
    }

    #[test]
    fn a_tree_has_a_branch_for_each_actor_and_one_for_strangers() {
        let object = |entry: u64, actor, name: &str, sight: Sight| Object {
            entry: EntryId(entry),
            actor,
            scope: Scope::Sandbox,
            name: name.to_owned(),
            object: Value::Null,
            identity: Value::Null,
            sight: sight.word(),
            mark: sight.mark(),
            note: sight.note().to_owned(),
        };
        let there = Sight::There("2 links".to_owned());
        let vanished = Sight::Vanished("no such link of ours".to_owned());
        let inspection = Inspection {
            v: 1,
            id: SandboxId::new("pod").unwrap(),
            state: "running".to_owned(),
            counts: Counts { there: 1, vanished: 1, strangers: 1, inside: 1, unclear: 0 },
            objects: vec![
                object(1, ActorName::Network, "network namespace /run/x/pod/netns", there),
                object(2, ActorName::Network, "tap tap0 in /run/x/pod/netns", vanished),
                object(3, ActorName::Device, "network device net-0", Sight::Inside),
            ],
            strangers: vec![Stranger { kind: "mount", name: "/run/x/pod/ro".to_owned() }],
        };
        let expected = "\
pod  running  3 objects: 1 ✓, 1 ! vanished, 1 ? not in the ledger, 1 · inside
├─ device
│  └─ · #3 network device net-0
├─ network
│  ├─ ✓ #1 network namespace netns  (2 links)
│  └─ ! #2 tap tap0 in netns  (no such link of ours)
└─ not in the ledger
   └─ ? mount ro
";
        assert_eq!(inspection.text(Path::new("/run/x")), expected);
    }
}
