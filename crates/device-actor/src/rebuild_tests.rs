use std::sync::Arc;

use sandbox_model::ContainerId;
use sandbox_model::device::{Access, DiskFormat, DiskIdentity};
use sandbox_model::ledger::{EntryId, Identity};
use sandbox_model::lifecycle::ActorName;

use super::*;
use crate::table::Phase;

fn entry(id: u64, object: HostObject) -> Arc<Entry> {
    held(id, Scope::Sandbox, object)
}

fn held(id: u64, scope: Scope, object: HostObject) -> Arc<Entry> {
    Arc::new(Entry { id: EntryId(id), actor: ActorName::Device, scope, object, identity: Some(Identity::Named) })
}

fn disk(id: u64, name: &str, slot: u8, inode: u64) -> Arc<Entry> {
    let identity = DiskIdentity::File { device: 1, inode };
    let role = DeviceRole::Disk { identity, access: Access::ReadWrite, format: DiskFormat::Raw, direct: false };
    let device = DeviceId::new(name).unwrap();
    entry(id, HostObject::VmDevice { device, kind: "block".into(), slot: PciSlot { bridge: 0, slot }, role })
}

fn hold(id: u64, name: &str, container: &str) -> Arc<Entry> {
    let scope = Scope::Container(ContainerId::new(container).unwrap());
    held(id, scope, HostObject::Hold { object: name.into() })
}

fn intent(mut entry: Arc<Entry>) -> Arc<Entry> {
    Arc::make_mut(&mut entry).identity = None;
    entry
}

fn has(name: &str, path: &str) -> PresentDevice {
    PresentDevice { id: DeviceId::new(name).unwrap(), pci_path: Some(PciPath(path.into())) }
}

#[test]
fn a_table_comes_back_with_slots_keys_holders_and_numbers() {
    let entries = [disk(1, "blk-3", 2, 7), hold(2, "blk-3", "a"), hold(4, "blk-3", "b")];
    let rebuilt = rebuild(1, 2, &entries, &[has("blk-3", "02/02")]).unwrap();
    let key = DeviceKey::Disk(DiskIdentity::File { device: 1, inode: 7 });
    let device = rebuilt.table.by_key(&key).unwrap();
    assert_eq!((device.phase, device.pci_path.clone()), (Phase::Present, Some(PciPath("02/02".into()))));
    assert_eq!((device.holders.len(), device.slot), (2, PciSlot { bridge: 0, slot: 2 }));
    assert_eq!((rebuilt.table.slots().free(), rebuilt.confirmed, rebuilt.orphans.len()), (29, 1, 0));
    let mut draft = crate::table::Draft::new(std::rc::Rc::new(rebuilt.table));
    let vsock = sandbox_model::device::VsockDevice { cid: 3, backend: sandbox_model::device::VsockBackend::Kernel };
    let (_, slot) = draft.reserve(&sandbox_model::device::DeviceConfig::Vsock(vsock), None).unwrap();
    assert_eq!(slot.slot, 1, "the lowest free slot, as if nothing had happened");
}

#[test]
fn only_an_intent_is_doubtful_whether_the_vm_has_it_or_not() {
    for present in [vec![], vec![has("blk-0", "02/01")]] {
        let rebuilt = rebuild(1, 2, &[intent(disk(1, "blk-0", 1, 7))], &present).unwrap();
        assert_eq!((rebuilt.table.doubtful(), rebuilt.table.slots().free()), (1, 29));
        assert_eq!(rebuilt.confirmed, 0);
    }
}

#[test]
fn what_nobody_holds_is_an_orphan_there_or_not() {
    for present in [vec![], vec![has("blk-0", "02/01")]] {
        let rebuilt = rebuild(1, 2, &[disk(1, "blk-0", 1, 7)], &present).unwrap();
        assert_eq!(rebuilt.orphans.iter().map(|entry| entry.id.0).collect::<Vec<_>>(), [1]);
        let leaving = [disk(1, "blk-0", 1, 7), intent(hold(2, "blk-0", "a"))];
        assert_eq!(rebuild(1, 2, &leaving, &present).unwrap().orphans.len(), 1, "its last holder is about to go");
    }
    let binding = entry(1, HostObject::VfioBinding { bdf: "0000:00:01.0".into(), original_driver: None });
    assert_eq!(rebuild(1, 2, std::slice::from_ref(&binding), &[]).unwrap().orphans.len(), 1);
    let held = [binding, hold(2, "0000:00:01.0", "a")];
    assert_eq!(rebuild(1, 2, &held, &[]).unwrap().orphans.len(), 0);
}

#[test]
fn what_does_not_add_up_or_is_not_confirmed_is_refused() {
    type Case = (&'static str, Vec<Arc<Entry>>, Vec<PresentDevice>);
    let cases: [Case; 8] = [
        ("the VM lost it", vec![disk(1, "blk-0", 1, 7), hold(2, "blk-0", "a")], vec![]),
        ("it sits elsewhere", vec![disk(1, "blk-0", 1, 7), hold(2, "blk-0", "a")], vec![has("blk-0", "02/09")]),
        ("a stranger", vec![], vec![has("blk-0", "02/01")]),
        ("one slot twice", vec![disk(1, "blk-0", 1, 7), disk(2, "blk-1", 1, 8)], vec![]),
        ("one name twice", vec![disk(1, "blk-0", 1, 7), disk(2, "blk-0", 2, 8)], vec![]),
        ("one disk twice", vec![disk(1, "blk-0", 1, 7), disk(2, "blk-1", 2, 7)], vec![]),
        ("no such slot", vec![disk(1, "blk-0", 31, 7)], vec![]),
        ("a hold on nothing", vec![hold(2, "blk-0", "a")], vec![]),
    ];
    for (what, entries, present) in cases {
        assert!(rebuild(1, 2, &entries, &present).is_err(), "{what}");
    }
    let strange = entry(1, HostObject::Tap { namespace: "/n".into(), name: "t".into(), alias: "a".into() });
    assert_eq!(rebuild(1, 2, std::slice::from_ref(&strange), &[]).unwrap_err(), AdoptError::strange(&strange));
}
