//! Doubts, and how they are settled: neither a name nor a place is used again before QEMU was asked.

use std::time::Duration;

use sandbox_model::PassedFd;
use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat};
use serde_json::{Value, json};

use super::super::backend::Backend;
use super::super::qmp::peer::Peer;
use super::*;

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(100)
}

async fn keeper() -> (Keeper, Peer) {
    let (vm, peer) = Vm::scripted().await;
    let name = SandboxId::new("pod").unwrap();
    let paths = Paths::of(Path::new("/nowhere"));
    (Keeper::new(name, KvmProbe::default(), paths, watch::Sender::new(Some(Arc::new(vm)))), peer)
}

async fn end(keeper: &Keeper) {
    keeper.running().unwrap().process.kill().await.unwrap();
}

fn disk() -> PlacedDevice {
    let config = DeviceConfig::Block(BlockDevice {
        path: "/disk".into(),
        access: Access::ReadWrite,
        format: DiskFormat::Raw,
        direct: false,
        serial: None,
    });
    let disk = PassedFd::new(tempfile::tempfile().unwrap().into());
    PlacedDevice { id: DeviceId::new("d").unwrap(), slot: PciSlot { bridge: 0, slot: 1 }, config, disk }
}

fn done() -> Value {
    json!({ "return": {} })
}

/// What QEMU has, when it is asked.
fn has(names: &[&str]) -> Value {
    json!({ "return": names.iter().map(|name| json!({ "name": name, "type": "child<x>" })).collect::<Vec<_>>() })
}

/// Answers commands one after the other; each must be the one that is expected.
async fn answer(peer: &mut Peer, script: Vec<(&str, Value)>) {
    for (command, reply) in script {
        assert_eq!(peer.answer(reply).await["execute"], command);
    }
}

fn plugging() -> Vec<(&'static str, Value)> {
    vec![("add-fd", done()), ("blockdev-add", done()), ("device_add", done())]
}

fn releasing() -> Vec<(&'static str, Value)> {
    vec![("blockdev-del", done()), ("remove-fd", done())]
}

#[tokio::test]
async fn a_plug_without_an_answer_is_settled_before_the_next() {
    let (mut keeper, mut peer) = keeper().await;
    let asked = async {
        answer(&mut peer, vec![("add-fd", done()), ("blockdev-add", done())]).await;
        peer.hear().await
    };
    let (added, unanswered) = tokio::join!(keeper.add(disk(), soon()), asked);
    let error = added.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::Doubtful), "{error}");
    assert_eq!(unanswered["arguments"]["drive"], "drive-1");

    // It was made after all: the name stays taken.
    let late = json!({ "return": {}, "id": unanswered["id"] });
    peer.say(&late.to_string()).await;
    let (added, ()) = tokio::join!(keeper.add(disk(), later()), answer(&mut peer, vec![("qom-list", has(&["d"]))]));
    assert_eq!(added.unwrap_err().kind, ErrorKind::Exists);
    // It has gone: so does what stood behind it, and other names are used.
    let script = [vec![("qom-list", has(&[]))], releasing(), plugging()].concat();
    let (added, ()) = tokio::join!(keeper.add(disk(), later()), answer(&mut peer, script));
    assert_eq!(added.unwrap().pci_path.unwrap().0, "02/01");
    assert_eq!(keeper.plugged.values().next().unwrap().backends, [Backend::FdSet(2), Backend::Node("drive-2".into())]);
    end(&keeper).await;
}

#[tokio::test]
async fn an_unplug_without_an_end_is_settled_before_the_next_plug() {
    let (mut keeper, mut peer) = keeper().await;
    let (added, ()) = tokio::join!(keeper.add(disk(), later()), answer(&mut peer, plugging()));
    added.unwrap();
    let id = DeviceId::new("d").unwrap();
    // No DEVICE_DELETED, and QEMU still has it.
    let script = vec![("device_del", done()), ("qom-list", has(&["d"]))];
    let (removed, ()) = tokio::join!(keeper.remove(id.clone(), soon()), answer(&mut peer, script));
    assert_eq!(removed.unwrap_err().outcome, Outcome::Doubtful);
    // The guest let it go meanwhile, and the event comes twice, for nobody.
    let event = r#"{"event": "DEVICE_DELETED", "data": {"device": "d", "path": "/machine/peripheral/d"}}"#;
    peer.say(event).await;
    peer.say(event).await;
    let script = [vec![("qom-list", has(&[]))], releasing(), plugging()].concat();
    let (added, ()) = tokio::join!(keeper.add(disk(), later()), answer(&mut peer, script));
    added.unwrap();
    // Nothing is in doubt any more, so nothing is asked.
    let (removed, ()) = tokio::join!(keeper.remove(id, later()), async {
        peer.say(event).await;
        answer(&mut peer, [vec![("device_del", done())], vec![("qom-list", has(&["d"]))]].concat()).await;
        peer.say(event).await;
        answer(&mut peer, [vec![("qom-list", has(&[]))], releasing()].concat()).await;
    });
    removed.unwrap();
    assert!(keeper.plugged.is_empty());
    end(&keeper).await;
}
