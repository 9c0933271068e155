//! S9: what the programs that we start hold and may do, with a real VM on this kernel.

use std::collections::BTreeSet;
use std::fs;

use lifecycle_tests::lab::{Helper, Programs};
use lifecycle_tests::tiers::host::undisturbed;

/// What every helper has: two of its standard streams, and the pipe that we read the third from.
const STREAMS: [&str; 2] = ["/dev/null", "pipe"];
/// What programs make for themselves, and nobody can reach through.
const OWN: [&str; 4] = ["anon_inode:[eventfd]", "anon_inode:[eventpoll]", "anon_inode:[signalfd]", "socket"];

/// What one helper may have.
struct Allowed {
    name: &'static str,
    /// Where its descriptors may lead besides; a `*` ends the beginning of a name.
    descriptors: &'static [&'static str],
    /// Whether it filters its system calls.
    is_filtered: bool,
    /// Capabilities, where it has fewer than we.
    capabilities: u64,
    own_namespaces: &'static [&'static str],
}

/// In the order of their names; virtiofsd is two, of which one waits for the one that is shut in.
const ALLOWED: [Allowed; 4] = [
    Allowed {
        name: "qemu-system-x86",
        // The guest's memory, its disks, its NICs.
        descriptors: &["/memfd:memory-backend-memfd (deleted)", "/run/data/root.vm", "/dev/loop*", "/dev/net/tun"],
        is_filtered: true,
        capabilities: u64::MAX,
        own_namespaces: &[],
    },
    Allowed {
        name: "vhost-device-vs",
        descriptors: &["/memfd:memory-backend-memfd (deleted)"],
        is_filtered: false,
        capabilities: u64::MAX,
        own_namespaces: &[],
    },
    Allowed {
        name: "virtiofsd",
        // Its root, its threads in a `/proc` of its own, and its lock.
        descriptors: &["/", "/1/task", "/run/virtiofsd/*"],
        is_filtered: true,
        // What a server of other users' files needs: chown, dac_override, fowner, fsetid, setgid,
        // setuid, mknod, setfcap.
        capabilities: 0x8800_00db,
        own_namespaces: &["mnt", "net", "pid"],
    },
    Allowed {
        name: "virtiofsd",
        descriptors: &["/run/virtiofsd/*"],
        is_filtered: false,
        capabilities: 0,
        own_namespaces: &["mnt", "net"],
    },
];

fn is_listed(allowed: &Allowed, descriptor: &str) -> bool {
    let is_it = |listed: &str| match listed.strip_suffix('*') {
        Some(begin) => descriptor.starts_with(begin),
        None => descriptor == listed,
    };
    STREAMS.iter().chain(&OWN).chain(allowed.descriptors).any(|listed| is_it(listed))
}

/// Capabilities of this process.
fn ours() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

#[test]
fn every_child_holds_what_is_listed_and_nothing_else() {
    let Some(programs) = Programs::or_skip(Programs::real()) else { return };
    let children: Vec<Helper> = undisturbed(&programs, "L12").unwrap().0.children;
    let names: Vec<&str> = children.iter().map(|child| child.name.as_str()).collect();
    assert_eq!(names, ALLOWED.map(|allowed| allowed.name), "{children:#?}");
    for (child, allowed) in children.iter().zip(&ALLOWED) {
        let more: Vec<_> = child.descriptors.iter().filter(|descriptor| !is_listed(allowed, descriptor)).collect();
        assert!(more.is_empty(), "it holds {more:?} besides: {child:#?}");
        assert!(STREAMS.iter().all(|stream| child.descriptors.contains(*stream)), "{child:#?}");
        assert_eq!(child.variables, BTreeSet::from(["PATH", "RESOURCE_ACTORS_ENTRY"].map(str::to_owned)), "{child:#?}");
        assert_eq!(child.users, "0 0 0 0", "{child:#?}");
        assert_eq!(child.no_new_privileges, "1", "{child:#?}");
        assert!(child.seccomp == "2" || !allowed.is_filtered, "{child:#?}");
        let held = u64::from_str_radix(&child.capabilities, 16).unwrap();
        assert_eq!(held & !(allowed.capabilities & ours()), 0, "{child:#?}");
        assert!(allowed.own_namespaces.iter().all(|name| child.own_namespaces.contains(*name)), "{child:#?}");
    }
}
