//! Numbers that the kernel gives out, replaced by numbers that every run gives out alike.
//!
//! Two runs of the same lifecycle differ in pids, inodes and interface indexes and in nothing else
//! that matters. The trace's writer replaces each by a number of its own, per kind and in the order of
//! first appearance; equal stays equal and different stays different, so a replay is none the worse.

use std::collections::BTreeMap;

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

/// The call whose whole reply is such a number, as it stands in its line. A quotation mark within a
/// text stands behind a backslash, so no text can look like this.
const CREATE_TAP: &[u8] = br#""method":"create_tap""#;
const REPLY: &[u8] = br#""result":{"Ok":"#;

impl Kind {
    /// What a field of this name holds, in requests, replies and ledger records of all actors.
    fn of(field: &[u8]) -> Option<Self> {
        Some(match field {
            b"pid" | b"vmm_pid" | b"vcpu_threads" | b"threads" | b"new_threads" => Self::Process,
            b"start_ticks" => Self::StartTime,
            b"index" | b"link" | b"link_index" | b"tap_index" => Self::Link,
            b"mount_id" => Self::Mount,
            b"inode" | b"inodes" | b"namespace_inode" => Self::Inode,
            b"device" => Self::FileSystem,
            b"cid" | b"context_id" => Self::VsockCid,
            _ => return None,
        })
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
    /// Appends an event's line to `out`, with the kernel's numbers replaced. The line is JSON without
    /// white space between its tokens.
    pub(super) fn replace_in_line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let (mut at, mut copied) = (0, 0);
        while let Some(quote) = line[at..].iter().position(|byte| *byte == b'"') {
            let begin = at + quote + 1;
            let end = begin + text_length(&line[begin..]);
            at = (end + 1).min(line.len());
            let is_fields = line[at..].starts_with(b":");
            let value = (at + 1).min(line.len());
            if !is_fields || !matches!(line.get(value), Some(b'0'..=b'9' | b'[')) {
                continue;
            }
            let (field, before) = (&line[begin..end], &line[..value]);
            let is_reply = field == b"Ok" && before.ends_with(REPLY) && contains(before, CREATE_TAP);
            if let Some(kind) = if is_reply { Some(Kind::Link) } else { Kind::of(field) } {
                out.extend_from_slice(&line[copied..value]);
                at = line.len() - self.replace_value(kind, &line[value..], out).len();
                copied = at;
            }
        }
        out.extend_from_slice(&line[copied..]);
    }

    /// Replaces the number, or the list of numbers, that `rest` begins with; returns what comes after.
    /// Something else than numbers is an ordinary value.
    fn replace_value<'a>(&mut self, kind: Kind, rest: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
        let end = match rest.first() {
            Some(b'[') => rest.iter().position(|byte| *byte == b']'),
            Some(b'0'..=b'9') => rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']')),
            _ => None,
        };
        let Some(end) = end else { return rest };
        let (mut value, after) = rest.split_at(end);
        if let Some(items) = value.strip_prefix(b"[") {
            let is_part = |byte: &u8| byte.is_ascii_digit() || b",-+.eE".contains(byte);
            if !items.iter().all(is_part) {
                return rest;
            }
            out.push(b'[');
            value = items;
        }
        for (n, number) in value.split(|byte| *byte == b',').enumerate() {
            if n > 0 {
                out.push(b',');
            }
            match std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()) {
                Some(id) if id != 0 => out.extend_from_slice(self.give(kind, id).to_string().as_bytes()),
                _ => out.extend_from_slice(number),
            }
        }
        after
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

/// How long a text is whose opening quotation mark is before `rest`.
fn text_length(rest: &[u8]) -> usize {
    let mut length = 0;
    while let Some(found) = rest[length..].iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        length += found;
        if rest[length] == b'"' {
            return length;
        }
        // What is behind a backslash belongs to the text.
        length = (length + 2).min(rest.len());
    }
    rest.len()
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(ids: &mut KernelIds, line: &str) -> String {
        let mut out = Vec::new();
        ids.replace_in_line(line.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_reply_that_is_nothing_but_a_number_is_the_one_in_the_ledger() {
        let mut ids = KernelIds::default();
        let mut of = |line| replaced(&mut ids, line);
        let called = of(r#"{"method":"create_tap","request":{"Ok":7},"result":{"Ok":1018}}"#);
        assert_eq!(called, r#"{"method":"create_tap","request":{"Ok":7},"result":{"Ok":1}}"#);
        let other = r#"{"method":"resize_memory","result":{"Ok":1018}}"#;
        assert_eq!(of(other), other);
        let noted = of(r#"{"record":{"identity":{"link":{"index":1018}}}}"#);
        assert_eq!(noted, r#"{"record":{"identity":{"link":{"index":1}}}}"#);
    }

    #[test]
    fn equal_stays_equal_and_only_the_kernels_numbers_change() {
        let mut ids = KernelIds::default();
        let mut of = |line| replaced(&mut ids, line);
        assert_eq!(
            of(r#"{"process":{"pid":4711,"start_ticks":99},"vcpu_threads":[4713,4714],"exit":{"pid":4711}}"#),
            r#"{"process":{"pid":1,"start_ticks":1},"vcpu_threads":[2,3],"exit":{"pid":1}}"#
        );
        assert_eq!(
            of(r#"{"link":{"index":7,"namespace_inode":4026532},"root":{"device":64,"inode":4711}}"#),
            r#"{"link":{"index":1,"namespace_inode":1},"root":{"device":1,"inode":2}}"#
        );
        assert_eq!(of(r#"{"inode":4711,"pid":5000,"cid":3405691582}"#), r#"{"inode":2,"pid":4,"cid":3}"#);
    }

    #[test]
    fn what_is_no_number_of_the_kernels_stays_as_it_is() {
        let mut ids = KernelIds::default();
        for line in [
            r#"{"device":"disk0","memory_mib":4711,"mount_id":null,"none":{"pid":0},"threads":[]}"#,
            r#"{"threads":[{"id":7}],"inodes":[null,7],"pid":-7,"index":1.5,"link":99999999999999999999}"#,
            r#"{"text":"a "pid":4711 \","pid":"4711","args":["pid",4711],"last":"\""}"#,
            "{}
",
            "",
        ] {
            assert_eq!(replaced(&mut ids, line), line);
        }
        assert_eq!(replaced(&mut ids, r#"{"threads":[0,7,7]}"#), r#"{"threads":[0,1,1]}"#);
    }
}
