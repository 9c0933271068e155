//! Runs the examples, and holds the library to its process contract.

#[path = "../examples/embed_sync.rs"]
mod embed_sync;
#[path = "../examples/embed_tokio.rs"]
mod embed_tokio;
#[path = "../examples/own_hypervisor.rs"]
mod own_hypervisor;

use std::collections::BTreeMap;
use std::fs;

use sandbox_model::lifecycle::LifecycleState;

#[test]
fn a_multi_threaded_tokio_program_embeds_it() {
    assert_eq!(embed_tokio::run().unwrap(), 4);
}

#[test]
fn a_synchronous_program_embeds_it() {
    use LifecycleState::{Created, Released, Running, Stopped};
    assert_eq!(embed_sync::run().unwrap(), [Created, Running, Stopped, Released]);
}

#[test]
fn a_hypervisor_of_the_embedders_own_is_asked_in_order() {
    let expected = ["add vsock", "add network", "add share-fs", "start", "resume", "stop"];
    assert_eq!(own_hypervisor::run().unwrap(), expected);
}

/// What the contract says stays as it was.
fn process_facts() -> BTreeMap<&'static str, String> {
    let status = fs::read_to_string("/proc/self/status").expect("procfs is mounted");
    let field = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let link = |path: &str| fs::read_link(path).expect("procfs is mounted").display().to_string();
    BTreeMap::from([
        ("signal handlers", field("SigCgt")),
        ("ignored signals", field("SigIgn")),
        ("umask", field("Umask")),
        ("network namespace", link("/proc/thread-self/ns/net")),
        ("mount namespace", link("/proc/thread-self/ns/mnt")),
        ("working directory", link("/proc/self/cwd")),
        ("limits", fs::read_to_string("/proc/self/limits").expect("procfs is mounted")),
        ("environment", format!("{:?}", std::env::vars_os().collect::<BTreeMap<_, _>>())),
    ])
}

#[test]
fn the_process_is_left_as_it_was() {
    // The first use of a tokio runtime may register what the standard library and tokio need.
    embed_sync::run().unwrap();
    let before = process_facts();
    embed_sync::run().unwrap();
    assert_eq!(process_facts(), before);
}
