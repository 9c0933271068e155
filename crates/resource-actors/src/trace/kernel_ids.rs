//! Numbers that the kernel gives out, replaced by numbers that every run gives out alike.
//!
//! Two runs of the same lifecycle differ in pids, inodes and interface indexes and in nothing else
//! that matters. The trace's writer replaces each by a number of its own, per kind and in the order of
//! first appearance; equal stays equal and different stays different, so a replay is none the worse.

use std::collections::BTreeMap;

use serde_json::Value;

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Processes and threads.
    Process,
    /// Start times of processes, in clock ticks after boot.
    StartTime,
    /// Network interfaces.
    Link,
    Mount,
    Inode,
    /// `st_dev` of file systems.
    FileSystem,
    /// vsock context ids.
    VsockCid,
}

/// The fields that hold such numbers, in requests, replies and ledger records of all actors.
const FIELDS: [(&str, Kind); 17] = [
    ("pid", Kind::Process),
    ("vmm_pid", Kind::Process),
    ("vcpu_threads", Kind::Process),
    ("threads", Kind::Process),
    ("new_threads", Kind::Process),
    ("start_ticks", Kind::StartTime),
    ("index", Kind::Link),
    ("link", Kind::Link),
    ("link_index", Kind::Link),
    ("tap_index", Kind::Link),
    ("mount_id", Kind::Mount),
    ("inode", Kind::Inode),
    ("inodes", Kind::Inode),
    ("namespace_inode", Kind::Inode),
    ("device", Kind::FileSystem),
    ("cid", Kind::VsockCid),
    ("context_id", Kind::VsockCid),
];

/// Calls whose whole reply is such a number.
const REPLIES: [(&str, Kind); 1] = [("create_tap", Kind::Link)];

impl Kind {
    fn of(field: &str) -> Option<Self> {
        FIELDS.iter().find(|(name, _)| *name == field).map(|(_, kind)| *kind)
    }

    /// The first number: 0 to 2 are no guest's context id, and 0 means nothing everywhere.
    fn first(self) -> u64 {
        if self == Self::VsockCid { 3 } else { 1 }
    }
}

/// The numbers given out so far.
#[derive(Debug, Default)]
pub(super) struct KernelIds {
    given: BTreeMap<(Kind, u64), u64>,
    counts: BTreeMap<Kind, u64>,
}

impl KernelIds {
    /// Replaces the kernel's numbers in an event.
    pub(super) fn replace_in_event(&mut self, event: &mut Value) {
        let method = event.get("method").and_then(Value::as_str);
        let kind = REPLIES.iter().find(|(name, _)| Some(*name) == method).map(|(_, kind)| *kind);
        if let Some((kind, reply)) = kind.zip(event.pointer_mut("/result/Ok")) {
            self.replace_as(kind, reply);
        }
        self.replace(event);
    }

    /// Replaces the kernel's numbers in `value`, at any depth.
    pub(super) fn replace(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    match Kind::of(name) {
                        Some(kind) => self.replace_as(kind, value),
                        None => self.replace(value),
                    }
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.replace(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// A field of that name that holds something else than numbers is an ordinary one.
    fn replace_as(&mut self, kind: Kind, value: &mut Value) {
        match value {
            Value::Number(number) => {
                if let Some(id) = number.as_u64().filter(|id| *id != 0) {
                    *value = self.give(kind, id).into();
                }
            }
            Value::Array(items) if items.iter().all(Value::is_number) => {
                items.iter_mut().for_each(|item| self.replace_as(kind, item));
            }
            other => self.replace(other),
        }
    }

    fn give(&mut self, kind: Kind, id: u64) -> u64 {
        let counts = &mut self.counts;
        *self.given.entry((kind, id)).or_insert_with(|| {
            let next = counts.entry(kind).or_insert(kind.first());
            let given = *next;
            *next += 1;
            given
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reply_that_is_nothing_but_a_number_is_the_one_in_the_ledger() {
        let mut ids = KernelIds::default();
        let mut called = json!({"method": "create_tap", "result": {"Ok": 1018}});
        let mut other = json!({"method": "resize_memory", "result": {"Ok": 1018}});
        let mut noted = json!({"record": {"identity": {"link": {"index": 1018}}}});
        [&mut called, &mut other, &mut noted].into_iter().for_each(|event| ids.replace_in_event(event));
        assert_eq!((&called["result"]["Ok"], &other["result"]["Ok"]), (&json!(1), &json!(1018)));
        assert_eq!(noted["record"]["identity"]["link"]["index"], 1);
    }

    #[test]
    fn equal_stays_equal_and_only_the_kernels_numbers_change() {
        let mut ids = KernelIds::default();
        let mut value = json!({
            "process": {"pid": 4711, "start_ticks": 99}, "vcpu_threads": [4713, 4714], "exit": {"pid": 4711},
            "identity": {"link": {"index": 7, "namespace_inode": 4026532}}, "root": {"device": 64, "inode": 4711},
            "device": "disk0", "memory_mib": 4711, "cid": 3405691582_u32, "mount_id": null, "none": {"pid": 0},
        });
        ids.replace(&mut value);
        let expected = json!({
            "process": {"pid": 1, "start_ticks": 1}, "vcpu_threads": [2, 3], "exit": {"pid": 1},
            "identity": {"link": {"index": 1, "namespace_inode": 2}}, "root": {"device": 1, "inode": 1},
            "device": "disk0", "memory_mib": 4711, "cid": 3, "mount_id": null, "none": {"pid": 0},
        });
        // Fields are visited in the order of their names, so the exit's pid comes first.
        assert_eq!(value["process"], expected["process"]);
        assert_eq!(value["exit"], expected["exit"]);
        assert_eq!(value["vcpu_threads"], expected["vcpu_threads"]);
        for unchanged in ["device", "memory_mib", "mount_id", "none", "cid"] {
            assert_eq!(value[unchanged], expected[unchanged], "{unchanged}");
        }
        let inodes = (&value["identity"]["link"]["namespace_inode"], &value["root"]["inode"]);
        assert_ne!(inodes.0, inodes.1);
        let mut again = json!({"inode": 4711, "pid": 5000});
        ids.replace(&mut again);
        assert_eq!(again, json!({"inode": value["root"]["inode"], "pid": 4}));
    }
}
