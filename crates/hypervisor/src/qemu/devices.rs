//! Plugging and unplugging.

use std::time::Duration;

use sandbox_model::device::{PciSlot, PlacedDevice};
use sandbox_model::{ErrorKind, Instant, Outcome, PortError, PortResult};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout_at;

use super::backend::{Backend, Maker, release};
use super::command_line::bridge_name;
use super::qmp::{Command, Event};
use super::vm::Vm;

/// Slots of a bridge that devices may be plugged into (behaviour A8).
const SLOTS: std::ops::RangeInclusive<u8> = 1..=30;
/// How long the last look at what is true may take, once a deadline has passed.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// A device that QEMU has, or may have.
#[derive(Debug)]
pub(super) struct Plugged {
    pub(super) place: PciSlot,
    /// What stands behind it.
    pub(super) backends: Vec<Backend>,
    /// Whether only a query can tell if it is there: the answer to a command on it is missing.
    pub(super) is_doubtful: bool,
}

/// A device that could not be plugged, and what may still stand behind it.
#[derive(Debug)]
pub(super) struct NotPlugged {
    pub(super) error: PortError,
    pub(super) left: Vec<Backend>,
}

/// Whether the place can exist in a VM with so many bridges.
///
/// # Errors
/// `Invalid`, with the place and the rule.
pub(super) fn check_place(device: &PlacedDevice, bridges: u8) -> PortResult<()> {
    let slot = device.slot;
    let cause = if slot.bridge >= bridges {
        format!("no bridge {} among {bridges}", slot.bridge)
    } else if !SLOTS.contains(&slot.slot) {
        format!("slot {} is not between {} and {}", slot.slot, SLOTS.start(), SLOTS.end())
    } else {
        return Ok(());
    };
    Err(PortError::new(ErrorKind::Invalid, "device_add", name(device), cause))
}

/// Plugs a device. On refusal its own halves are taken back.
pub(super) async fn plug(
    vm: &Vm,
    device: &PlacedDevice,
    number: u64,
    deadline: Instant,
) -> Result<Vec<Backend>, NotPlugged> {
    let object = name(device);
    let mut maker = Maker { vm, object: &object, number, deadline, made: Vec::new() };
    match try_plug(&mut maker, device).await {
        Ok(()) => Ok(maker.made),
        Err(error) if error.outcome == Outcome::NotDone => {
            let made = maker.made;
            release(vm, &object, made).await;
            Err(NotPlugged { error, left: Vec::new() })
        }
        // It may exist: its backends stay until it is known not to.
        Err(error) => Err(NotPlugged { error, left: maker.made }),
    }
}

async fn try_plug(maker: &mut Maker<'_>, device: &PlacedDevice) -> PortResult<()> {
    check_place(device, maker.vm.limits.bridges)?;
    let mut properties = maker.make(device).await?;
    properties.insert("id".into(), device.id.as_str().into());
    properties.insert("bus".into(), bridge_name(device.slot.bridge).into());
    // QEMU reads it as hexadecimal.
    properties.insert("addr".into(), format!("{:x}", device.slot.slot).into());
    let command = Command::new("device_add", properties.into());
    maker.vm.execute_on(maker.object, command, maker.deadline).await.map(|_| ())
}

fn name(device: &PlacedDevice) -> String {
    format!("{} {}", device.config.kind(), device.id)
}

/// Asks the guest to let `id` go and waits until QEMU has freed it.
///
/// # Errors
/// `NotFound`; `TimedOut` and doubtful when the guest has not let it go: it still may.
pub(super) async fn unplug(vm: &Vm, id: &str, deadline: Instant) -> PortResult<()> {
    let Some(mut events) = vm.qmp.listen() else { return Err(vm.gone("device_del", id).await) };
    let asked = vm.execute_on(id, Command::new("device_del", json!({ "id": id })), deadline).await;
    match asked {
        Ok(_) => {}
        Err(error) if error.cause.contains("in the process of unplug") => {}
        Err(error) => return Err(error),
    }
    loop {
        match timeout_at(deadline, events.recv()).await {
            Ok(Ok(event)) if is(&event, "DEVICE_UNPLUG_GUEST_ERROR", id) => {
                return Err(PortError::new(ErrorKind::Refused, "device_del", id, "the guest refused"));
            }
            Ok(Ok(event)) if !is(&event, "DEVICE_DELETED", id) => {}
            // An event may be early, and a flood of them may have hidden it: the VMM is asked.
            Ok(Ok(_) | Err(RecvError::Lagged(_))) => {
                if !vm.has_device(id, deadline).await? {
                    return Ok(());
                }
            }
            Ok(Err(RecvError::Closed)) => return Err(vm.gone("device_del", id).await),
            Err(_) => return last_look(vm, id).await,
        }
    }
}

async fn last_look(vm: &Vm, id: &str) -> PortResult<()> {
    match vm.has_device(id, Instant::now() + LAST_LOOK).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(PortError::timed_out("device_del", id, "the guest has not let it go")),
        Err(error) => Err(PortError::timed_out("device_del", id, error.to_string())),
    }
}

fn is(event: &Event, name: &str, device: &str) -> bool {
    event.name == name && event.data["device"] == device
}

#[cfg(test)]
mod tests {
    use sandbox_model::PassedFd;
    use sandbox_model::device::{Access, BlockDevice, DeviceConfig, DiskFormat, PciSlot};
    use serde_json::Value;

    use super::*;

    const DELETED: &str = r#"{"event": "DEVICE_DELETED", "data": {"device": "d", "path": "/machine/peripheral/d"}}"#;
    const OTHER: &str = r#"{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/cpu-1/lapic"}}"#;
    const REFUSED: &str = r#"{"event": "DEVICE_UNPLUG_GUEST_ERROR", "data": {"device": "d"}}"#;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(100)
    }

    fn list(names: &[&str]) -> Value {
        json!({ "return": names.iter().map(|name| json!({ "name": name, "type": "child<x>" })).collect::<Vec<_>>() })
    }

    /// One line of a script: what the peer says unasked, or how it answers the next command.
    enum Line {
        Event(&'static str),
        Answer(&'static str, Value),
    }

    /// Unplugs `d` from a VM that follows the script.
    async fn scripted(lines: Vec<Line>, deadline: Instant) -> PortResult<()> {
        let (vm, mut peer) = Vm::scripted().await;
        let script = tokio::spawn(async move {
            for line in lines {
                match line {
                    Line::Event(event) => peer.say(event).await,
                    Line::Answer(command, reply) => assert_eq!(peer.answer(reply).await["execute"], command),
                }
            }
            peer
        });
        let result = unplug(&vm, "d", deadline).await;
        script.await.unwrap();
        vm.process.kill().await.unwrap();
        result
    }

    #[tokio::test]
    async fn an_early_event_is_not_believed_and_a_second_one_harms_nobody() {
        let script = vec![
            Line::Event(DELETED),
            Line::Answer("device_del", json!({ "return": {} })),
            Line::Event(OTHER),
            Line::Answer("qom-list", list(&["d", "pci-bridge-0"])),
            Line::Event(DELETED),
            Line::Event(DELETED),
            Line::Answer("qom-list", list(&["pci-bridge-0"])),
        ];
        scripted(script, Instant::now() + Duration::from_secs(20)).await.unwrap();
    }

    #[tokio::test]
    async fn without_an_event_the_vmm_is_asked_what_is_true() {
        let asked = |names: &[&str]| {
            vec![Line::Answer("device_del", json!({ "return": {} })), Line::Answer("qom-list", list(names))]
        };
        scripted(asked(&[]), soon()).await.unwrap();
        let error = scripted(asked(&["d"]), soon()).await.unwrap_err();
        assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::Doubtful));
    }

    #[tokio::test]
    async fn a_guest_may_refuse() {
        let script = vec![Line::Answer("device_del", json!({ "return": {} })), Line::Event(REFUSED)];
        let error = scripted(script, Instant::now() + Duration::from_secs(20)).await.unwrap_err();
        assert_eq!((error.kind, error.outcome), (ErrorKind::Refused, Outcome::NotDone));
    }

    #[tokio::test]
    async fn a_refused_device_leaves_nothing_behind_it() {
        let (vm, mut peer) = Vm::scripted().await;
        let refusal = json!({ "error": { "class": "GenericError", "desc": "no" } });
        let script = tokio::spawn(async move {
            let mut heard = Vec::new();
            for reply in [json!({ "return": { "fdset-id": 7 } }), json!({ "return": {} }), refusal] {
                heard.push(peer.answer(reply).await["execute"].clone());
            }
            // The node is busy at first: the device that was refused is freed a little later.
            let busy = json!({ "error": { "class": "GenericError", "desc": "Node drive-7 is in use" } });
            for reply in [busy, json!({ "return": {} }), json!({ "return": {} })] {
                heard.push(peer.answer(reply).await["execute"].clone());
            }
            heard
        });
        let config = DeviceConfig::Block(BlockDevice {
            path: "/disk".into(),
            access: Access::ReadOnly,
            format: DiskFormat::Raw,
            direct: false,
            serial: None,
        });
        let id = sandbox_model::DeviceId::new("d").unwrap();
        let disk = PassedFd::new(tempfile::tempfile().unwrap().into());
        let device = PlacedDevice { id, slot: PciSlot { bridge: 0, slot: 1 }, config, disk };
        let failed = plug(&vm, &device, 7, Instant::now() + Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(failed.error.to_string(), "device_add block d: no");
        assert!(failed.left.is_empty());
        let heard = script.await.unwrap();
        assert_eq!(heard, ["add-fd", "blockdev-add", "device_add", "blockdev-del", "blockdev-del", "remove-fd"]);
        vm.process.kill().await.unwrap();
    }
}
