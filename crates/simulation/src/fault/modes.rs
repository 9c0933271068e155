//! Which faults make sense where.

use serde_json::{Value, json};

use super::{Errno, Mode, Peer, Site};

/// Ports whose other side is not trusted: it may lie.
const UNTRUSTED: [&str; 2] = ["hypervisor", "guest-agent"];

/// What never waits for the VMM: a process is ended by a signal, its end is seen by its pidfd, and a
/// socket that it shall find is made by us.
const WITHOUT_THE_VMM: [&str; 7] =
    ["stop_vm", "kill_vm", "wait_exit", "last_words", "capabilities", "bind_socket", "remove_socket"];

/// The modes that can happen at a site.
pub fn applicable(site: &Site) -> Vec<Mode> {
    let resources = Errno::ALL.map(Mode::Resource);
    let deaths = Peer::ALL.map(Mode::Dies);
    let mut modes = vec![Mode::Error, Mode::CrashBefore, Mode::CrashAfter];
    match site.port.as_str() {
        // One write of one line to tmpfs: it is refused, or cut by our death.
        "ledger" => {
            modes.extend([Mode::Partial, Mode::Resource(Errno::Enospc)]);
            modes.extend(deaths);
        }
        "store" => modes.push(Mode::Resource(Errno::Enospc)),
        port => {
            let silences = Peer::ALL.map(Mode::Silent);
            modes.extend([Mode::Hang, Mode::HangAfter, Mode::Slow, Mode::Late, Mode::Duplicate]);
            modes.extend([Mode::Malformed, Mode::Partial]);
            modes.extend(deaths);
            modes.extend(silences.into_iter().filter(|mode| matches!(mode, Mode::Silent(peer) if speaks(*peer, site))));
            modes.extend(resources);
            if UNTRUSTED.contains(&port) && lie(port, &site.method).is_some() {
                modes.push(Mode::Lie);
            }
        }
    }
    if site.method == "wait_exit" {
        // It waits for an event: there is no deadline to be slow for.
        modes.retain(|mode| !matches!(mode, Mode::Slow | Mode::Late));
    }
    modes
}

fn speaks(peer: Peer, site: &Site) -> bool {
    silences(peer, &site.port, &site.method)
}

/// Whether a call gets no answer when `peer` has none.
pub(super) fn silences(peer: Peer, port: &str, method: &str) -> bool {
    match peer {
        Peer::Vmm => port == "hypervisor" && !WITHOUT_THE_VMM.contains(&method),
        Peer::Agent => port == "guest-agent" && method != "disconnect",
        Peer::Virtiofsd => port == "share-fs-host" && matches!(method, "start_daemon" | "verify_daemon"),
        Peer::VsockDaemon => {
            (port == "guest-agent" && method != "disconnect")
                || (port == "device-host" && method == "await_vsock_daemon")
        }
    }
}

/// What an untrusted party answers when it has done nothing and says that it did.
pub(super) fn lie(port: &str, method: &str) -> Option<Value> {
    Some(match (port, method) {
        ("hypervisor", "add_device") => json!({ "pci_path": null }),
        ("hypervisor", "remove_device" | "resume_vm") => Value::Null,
        ("hypervisor", "query_devices") => json!([]),
        ("hypervisor", "resize_vcpus") => json!({ "vcpus": 1, "vcpu_threads": [] }),
        ("hypervisor", "resize_memory") => json!({ "memory_mib": 0 }),
        ("guest-agent", "guest_details") => json!({ "memory_block_bytes": 0, "agent_version": "" }),
        ("guest-agent", method) if !RICH_REPLIES.contains(&method) => Value::Null,
        _ => return None,
    })
}

/// Calls of the agent whose reply is more than a nod.
const RICH_REPLIES: [&str; 6] =
    ["wait_process", "read_stdout", "read_stderr", "write_stdin", "oom_event", "guest_details"];
