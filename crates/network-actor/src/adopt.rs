//! Taking over the network of a running sandbox: what the ledger says, compared with a look at the
//! namespace.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::adopt::{AdoptError, Confirmed};
use sandbox_model::ledger::{Entry, HostObject, Identity};

use crate::host::{Inode, OpenNamespace, OpenedNamespace, Want};
use crate::serve::{Held, NetworkActor};
use crate::view::Link;
use crate::{AdoptNetwork, Mark};

/// Where the network is, by the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// The namespace's file.
    path: PathBuf,
    /// The namespace's inode, as far as an object of ours in it was made.
    inode: Option<u64>,
}

/// The one namespace that the network actor's live `entries` speak of; none if there are none.
///
/// # Errors
/// [`AdoptError::Contradiction`]: they speak of two.
pub fn whereabouts(entries: &[Arc<Entry>]) -> Result<Option<Whereabouts>, AdoptError> {
    let mut found: Option<Whereabouts> = None;
    for entry in entries {
        let (path, inode) = match (&entry.object, &entry.identity) {
            (HostObject::File { path }, _) => (path, None),
            (HostObject::NetNamespace { path }, Some(Identity::Inode { inode, .. })) => (path, Some(*inode)),
            (HostObject::NetNamespace { path }, None) => (path, None),
            (
                HostObject::Tap { namespace, .. } | HostObject::IngressQdisc { namespace, .. },
                Some(Identity::Link { namespace_inode, .. }),
            ) => (namespace, Some(*namespace_inode)),
            (HostObject::Tap { namespace, .. } | HostObject::IngressQdisc { namespace, .. }, None) => (namespace, None),
            (HostObject::NetNamespace { .. } | HostObject::Tap { .. } | HostObject::IngressQdisc { .. }, Some(_)) => {
                return Err(AdoptError::contradiction(entry, "has an identity that does not fit it"));
            }
            _ => return Err(AdoptError::strange(entry)),
        };
        let seen = found.get_or_insert_with(|| Whereabouts { path: path.clone(), inode });
        let is_same = seen.path == *path && (seen.inode.is_none() || inode.is_none() || seen.inode == inode);
        if !is_same {
            return Err(AdoptError::contradiction(entry, "is in another namespace than the entries before it"));
        }
        seen.inode = seen.inode.or(inode);
    }
    Ok(found)
}

/// Compares the entries with what the namespace holds, and counts those that it has.
///
/// # Errors
/// [`AdoptError::Unconfirmed`] names those that are gone, or of which another has taken the place.
pub fn confirm(entries: &[Arc<Entry>], place: &Whereabouts, opened: &OpenedNamespace) -> Result<usize, AdoptError> {
    let Inode { inode, .. } = opened.identity;
    let (mut confirmed, mut lost) = (0, Vec::new());
    let link = |name: &str| opened.view.links.iter().find(|link| link.name == name);
    for entry in entries {
        let Some(identity) = &entry.identity else { continue };
        let is_it = |link: &Link| matches!(identity, Identity::Link { index, .. } if *index == link.index);
        let is_there = match &entry.object {
            HostObject::Tap { name, alias, .. } => {
                link(name).is_some_and(|link| is_it(link) && link.alias.as_deref() == Some(alias))
            }
            HostObject::IngressQdisc { link: name, .. } => {
                link(name).is_some_and(|link| is_it(link) && link.has_ingress)
            }
            // The namespace that is mounted on the file hides it, and is looked at instead.
            _ => true,
        };
        if is_there && place.inode.is_none_or(|ours| ours == inode) {
            confirmed += 1;
        } else {
            lost.push(&entry.object);
        }
    }
    AdoptError::unless_all(lost)?;
    Ok(confirmed)
}

impl Serve<AdoptNetwork> for NetworkActor {
    type Ticket = (Vec<Arc<Entry>>, Option<Whereabouts>);
    type Outcome = Result<(Option<Held>, usize), AdoptError>;

    fn plan(&mut self, request: AdoptNetwork, _: &Call) -> Plan<Self::Ticket, Result<Confirmed, AdoptError>> {
        let foreign = request.entries.iter().find(
            |entry| matches!(&entry.object, HostObject::Tap { alias, .. } if *alias != Mark::of(self.sandbox()).alias),
        );
        if let Some(entry) = foreign {
            return Plan::Answer(Err(AdoptError::contradiction(entry, "carries another sandbox's mark")));
        }
        match whereabouts(&request.entries) {
            Ok(place) => Plan::Perform((request.entries, place)),
            Err(error) => Plan::Answer(Err(error)),
        }
    }

    fn perform(&self, (entries, place): &mut Self::Ticket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (host, deadline) = (self.host(), call.deadline);
        let (entries, place) = (entries.clone(), place.clone());
        Box::pin(async move {
            // Where nothing is known to have been made there is nothing to confirm: an undo looks.
            let Some(place) = place.filter(|place| place.inode.is_some()) else { return Ok((None, 0)) };
            let open = OpenNamespace { path: place.path.clone(), want: Want::View };
            let opened = host.open_namespace(open, deadline).await?;
            let confirmed = confirm(&entries, &place, &opened)?;
            Ok((Some(held(&place.path, opened)), confirmed))
        })
    }

    fn settle(&mut self, _: Self::Ticket, done: Completion<Self::Outcome>) -> Result<Confirmed, AdoptError> {
        let (held, objects) = match done {
            Completion::Finished(result) => result?,
            Completion::DeadlinePassed => return Err(AdoptError::DeadlinePassed),
            Completion::Interrupted => return Err(AdoptError::Interrupted),
        };
        self.hold(held);
        Ok(Confirmed { objects, orphans: Vec::new() })
    }
}

/// The taps' own descriptors went with the process that made them; the VMM has copies.
fn held(path: &Path, opened: OpenedNamespace) -> Held {
    let OpenedNamespace { identity, socket, .. } = opened;
    Held { path: path.to_owned(), inode: identity.inode, socket, tuns: Vec::new(), queue_pairs: 0 }
}

#[cfg(test)]
mod tests {
    use sandbox_model::ledger::{EntryId, Scope};
    use sandbox_model::lifecycle::ActorName;

    use super::*;
    use crate::view::NamespaceView;

    fn entry(object: HostObject, identity: Option<Identity>) -> Arc<Entry> {
        Arc::new(Entry { id: EntryId(1), actor: ActorName::Network, scope: Scope::Sandbox, object, identity })
    }

    fn tap(namespace: &str, index: Option<u32>) -> Arc<Entry> {
        let object = HostObject::Tap {
            namespace: namespace.into(),
            name: "tap0_kata".into(),
            alias: "resource-actors:p".into(),
        };
        entry(object, index.map(|index| Identity::Link { index, namespace_inode: 9 }))
    }

    fn qdisc(index: u32) -> Arc<Entry> {
        let object = HostObject::IngressQdisc { namespace: "/ns".into(), link: "eth0".into() };
        entry(object, Some(Identity::Link { index, namespace_inode: 9 }))
    }

    fn seen(inode: u64, alias: &str, has_ingress: bool) -> OpenedNamespace {
        let tap = Link { index: 3, name: "tap0_kata".into(), alias: Some(alias.into()), ..Link::default() };
        let eth0 = Link { index: 2, name: "eth0".into(), has_ingress, ..Link::default() };
        let view = NamespaceView { links: vec![eth0, tap], ..NamespaceView::default() };
        OpenedNamespace { identity: Inode { device: 0, inode }, view, ..OpenedNamespace::default() }
    }

    #[test]
    fn entries_speak_of_one_namespace_or_contradict_each_other() {
        assert_eq!(whereabouts(&[]).unwrap(), None);
        let file = entry(HostObject::File { path: "/ns".into() }, None);
        let place = whereabouts(&[file, tap("/ns", Some(3))]).unwrap().unwrap();
        assert_eq!((place.path.as_path(), place.inode), (Path::new("/ns"), Some(9)));
        let own = entry(HostObject::NetNamespace { path: "/ns".into() }, Some(Identity::Inode { device: 0, inode: 8 }));
        for entries in [
            vec![tap("/ns", None), tap("/other", None)],
            vec![own, tap("/ns", Some(3))],
            vec![entry(
                HostObject::Tap { namespace: "/ns".into(), name: "t".into(), alias: "a".into() },
                Some(Identity::Named),
            )],
            vec![entry(HostObject::Process { program: "x".into() }, None)],
        ] {
            assert!(whereabouts(&entries).is_err(), "{entries:?}");
        }
    }

    #[test]
    fn each_object_is_recognised_or_missed() {
        let entries = [tap("/ns", Some(3)), qdisc(2)];
        let place = whereabouts(&entries).unwrap().unwrap();
        assert_eq!(confirm(&entries, &place, &seen(9, "resource-actors:p", true)).unwrap(), 2);
        assert_eq!(confirm(&[tap("/ns", None)], &place, &seen(9, "", false)).unwrap(), 0, "a step's that was cut off");
        for (what, opened) in [
            ("another namespace", seen(8, "resource-actors:p", true)),
            ("another's tap", seen(9, "resource-actors:q", true)),
            ("no redirect", seen(9, "resource-actors:p", false)),
        ] {
            assert!(confirm(&entries, &place, &opened).is_err(), "{what}");
        }
        let later = [tap("/ns", Some(4))];
        assert!(confirm(&later, &place, &seen(9, "resource-actors:p", true)).is_err(), "a later tap of that name");
    }
}
