//! What the ledger's records tell of objects: made, gone, left.

use std::collections::BTreeMap;

use sandbox_model::ledger::{EntryId, HostObject, Record};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::trace::Place;

/// A change of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Of its `noted` record.
    pub(crate) seq: u64,
    /// The message that was served.
    pub(crate) cause: Option<u64>,
    pub(crate) actor: ActorName,
    pub(crate) at_us: u64,
    pub(crate) entry: EntryId,
    /// What it is, without the sandbox's own directory.
    pub(crate) object: String,
    pub(crate) change: Change,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is there.
    Born,
    /// It is gone.
    Gone,
    /// It could not be undone; why.
    Left(String),
}

impl Mark {
    /// `▲`, `▼` or `!`.
    pub(crate) fn sign(&self) -> &'static str {
        match self.change {
            Change::Born => "▲",
            Change::Gone => "▼",
            Change::Left(_) => "!",
        }
    }

    /// In one line.
    pub(crate) fn text(&self) -> String {
        match &self.change {
            Change::Born | Change::Gone => format!("{} {}", self.sign(), self.object),
            Change::Left(why) => format!("! {}: {why}", self.object),
        }
    }
}

/// The objects of a sandbox while its records come in.
#[derive(Debug, Default)]
pub(super) struct Objects {
    /// The sandbox's directory with a slash, if the trace says which.
    pub(super) dir: String,
    names: BTreeMap<EntryId, String>,
}

impl Objects {
    /// Takes one record of the ledger; the change that people want to see, if it is one.
    pub(super) fn take(&mut self, place: &Place, record: Record) -> Option<Mark> {
        let (entry, change) = match record {
            Record::Intent { entry, object, .. } => {
                self.names.extend(name(&object, &self.dir).map(|name| (entry, name)));
                return None;
            }
            Record::Done { entry, .. } => (entry, Change::Born),
            Record::Undone { entry } => (entry, Change::Gone),
            Record::UndoFailed { entry, cause } => (entry, Change::Left(cause)),
            _ => return None,
        };
        let object = self.names.get(&entry)?.clone();
        let Place { seq, cause, actor, at_us, .. } = *place;
        Some(Mark { seq, cause, actor, at_us, entry, object, change })
    }
}

/// What an object is called. Holds and shares are entries of the ledger but no objects of the host.
fn name(object: &HostObject, dir: &str) -> Option<String> {
    match object {
        HostObject::Hold { .. } | HostObject::ResourceShare { .. } => None,
        object if dir.is_empty() => Some(object.to_string()),
        object => Some(object.to_string().replace(dir, "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_model::SandboxId;
    use sandbox_model::ledger::{Identity, Scope};

    #[test]
    fn an_object_is_born_when_it_is_there_and_not_when_it_is_planned() {
        let mut objects = Objects { dir: "/run/x/".to_owned(), ..Objects::default() };
        let place = Place {
            seq: 7,
            cause: Some(3),
            sandbox: SandboxId::new("x").unwrap(),
            actor: ActorName::Network,
            generation: 1,
            at_us: 5,
        };
        let entry = EntryId(1);
        let tap = HostObject::Tap { namespace: "/run/x/netns".into(), name: "tap0".into(), alias: "a".into() };
        let intent = Record::Intent { entry, actor: ActorName::Network, scope: Scope::Sandbox, object: tap };
        assert_eq!(objects.take(&place, intent), None);
        let born = objects.take(&place, Record::Done { entry, identity: Identity::Named }).unwrap();
        assert_eq!((born.text().as_str(), born.seq, born.cause), ("▲ tap tap0 in netns", 7, Some(3)));
        let left = objects.take(&place, Record::UndoFailed { entry, cause: "busy".into() }).unwrap();
        assert_eq!(left.text(), "! tap tap0 in netns: busy");
        assert_eq!(objects.take(&place, Record::Undone { entry }).unwrap().sign(), "▼");
        assert_eq!(objects.take(&place, Record::Undone { entry: EntryId(2) }), None, "nobody said what it is");
    }
}
