use proptest::prelude::*;
use sandbox_model::device::VfioDevice;

use super::*;
use crate::slots::{SLOT_MAX, SLOT_MIN};

fn function(n: u32) -> DeviceConfig {
    DeviceConfig::Vfio(VfioDevice { bdf: format!("0000:00:{n:02x}.0"), group: n })
}

fn key(n: u32) -> DeviceKey {
    DeviceKey::Function(format!("0000:00:{n:02x}.0"))
}

/// One message that plugs one device, and how it ended.
fn attach(table: &mut Rc<DeviceTable>, n: u32, end: impl FnOnce(DeviceId) -> Option<Change>) -> Option<DeviceId> {
    let mut draft = Draft::new(table.clone());
    let id = draft.reserve(&function(n), Some(key(n))).map(|(id, _)| id);
    if let Some(change) = id.clone().and_then(end) {
        draft.note(change);
    }
    let changes = draft.into_changes();
    Rc::make_mut(table).fold(changes);
    id
}

#[test]
fn what_was_under_way_when_a_message_was_cut_off_is_doubtful_and_keeps_id_and_slot() {
    let mut table = Rc::new(DeviceTable::new(1, []));
    let id = attach(&mut table, 0, |_| None).unwrap();
    assert_eq!(table.get(&id).unwrap().phase, Phase::Doubtful);
    assert_eq!((table.doubtful(), table.slots().free()), (1, 29));
    let next = attach(&mut table, 1, |id| Some(Change::Plugged(id, None))).unwrap();
    assert_eq!((next.as_str(), table.get(&next).unwrap().slot.slot), ("vfio-1", 2));
    Rc::make_mut(&mut table).fold(vec![Change::Removing(id.clone()), Change::Gone(id)]);
    assert_eq!((table.doubtful(), table.slots().free()), (0, 29));
    let third = attach(&mut table, 0, |id| Some(Change::Plugged(id, None))).unwrap();
    assert_eq!((third.as_str(), table.get(&third).unwrap().slot.slot), ("vfio-2", 1));
}

#[test]
fn a_removal_that_was_cut_off_is_doubtful() {
    let mut table = Rc::new(DeviceTable::new(1, []));
    let id = attach(&mut table, 0, |id| Some(Change::Plugged(id, None))).unwrap();
    Rc::make_mut(&mut table).fold(vec![Change::Removing(id.clone())]);
    assert_eq!(table.get(&id).unwrap().phase, Phase::Doubtful);
}

#[test]
fn a_message_sees_what_it_has_done_itself() {
    let mut table = Rc::new(DeviceTable::new(1, []));
    let mut draft = Draft::new(table.clone());
    let (first, _) = draft.reserve(&function(0), Some(key(0))).unwrap();
    draft.note(Change::Plugged(first.clone(), None));
    draft.note(Change::Held(first.clone(), Scope::Sandbox));
    let (second, slot) = draft.reserve(&function(1), Some(key(1))).unwrap();
    assert_eq!((second.as_str(), slot.slot), ("vfio-1", 2));
    let found = draft.find(&key(0)).unwrap();
    assert_eq!((found.id.clone(), found.phase), (first.clone(), Phase::Present));
    assert!(draft.is_held(&first, &Scope::Sandbox) && !draft.is_held(&second, &Scope::Sandbox));
    draft.note(Change::Refused(second.clone()));
    assert!(draft.find(&key(1)).is_none());
    let (third, slot) = draft.reserve(&function(2), None).unwrap();
    assert_eq!((third.as_str(), slot.slot), ("vfio-2", 2), "the slot comes back, the id does not");
    Rc::make_mut(&mut table).fold(draft.into_changes());
    assert_eq!(table.by_key(&key(0)).unwrap().holders.len(), 1);
}

#[test]
fn ids_of_an_earlier_life_are_not_used_again() {
    let used = [DeviceId::new("vfio-6").unwrap(), DeviceId::new("root").unwrap()];
    let mut table = Rc::new(DeviceTable::new(1, &used));
    assert_eq!(attach(&mut table, 0, |_| None).unwrap().as_str(), "vfio-7");
}

/// What happens to the table, with a number that picks a function or one of the devices.
#[derive(Debug, Clone, Copy)]
enum Step {
    Plug(u32),
    Refuse(u32),
    Cut(u32),
    Remove(usize),
    CutRemoval(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..200_u32).prop_map(Step::Plug),
        1 => (0..200_u32).prop_map(Step::Refuse),
        1 => (0..200_u32).prop_map(Step::Cut),
        4 => any::<usize>().prop_map(Step::Remove),
        1 => any::<usize>().prop_map(Step::CutRemoval),
    ];
    prop::collection::vec(step, 0..200)
}

fn run(table: &mut Rc<DeviceTable>, step: Step) -> Option<DeviceId> {
    let pick = |table: &DeviceTable, n: usize| {
        let ids: Vec<_> = table.iter().map(|device| device.id.clone()).collect();
        (!ids.is_empty()).then(|| ids[n % ids.len()].clone())
    };
    let is_known = |table: &DeviceTable, n| table.by_key(&key(n)).is_some();
    match step {
        Step::Plug(n) | Step::Refuse(n) | Step::Cut(n) if is_known(table, n) => None,
        Step::Plug(n) => attach(table, n, |id| Some(Change::Plugged(id, None))),
        Step::Refuse(n) => attach(table, n, |id| Some(Change::Refused(id))),
        Step::Cut(n) => attach(table, n, |_| None),
        Step::Remove(n) => {
            let id = pick(table, n)?;
            Rc::make_mut(table).fold(vec![Change::Removing(id.clone()), Change::Gone(id)]);
            None
        }
        Step::CutRemoval(n) => {
            let id = pick(table, n)?;
            Rc::make_mut(table).fold(vec![Change::Removing(id)]);
            None
        }
    }
}

proptest! {
    #[test]
    fn ids_are_never_reused_and_slots_are_lowest_free(steps in steps(), bridges in 1_u8..=5) {
        let mut table = Rc::new(DeviceTable::new(bridges, []));
        let (mut seen, mut peak) = (BTreeSet::new(), 0);
        for step in steps {
            let lowest = table.slots().lowest_free();
            let made = run(&mut table, step);
            let count = table.iter().count();
            peak = peak.max(count);
            if let Some(id) = made {
                prop_assert!(seen.insert(id.clone()), "{} was used before", id);
                if let Some(device) = table.get(&id) {
                    prop_assert_eq!(Some(device.slot), lowest);
                }
            }
            let slots: BTreeSet<_> = table.iter().map(|device| device.slot).collect();
            prop_assert_eq!(slots.len(), count, "one device per slot");
            prop_assert_eq!(table.slots().free(), table.slots().total() - count);
            // The n-th lowest slot is only used once n devices were there at the same time.
            let index = |slot: &PciSlot| usize::from(slot.bridge) * 30 + usize::from(slot.slot) - 1;
            prop_assert!(slots.iter().all(|slot| index(slot) < peak));
            prop_assert!(slots.iter().all(|slot| (SLOT_MIN..=SLOT_MAX).contains(&slot.slot) && slot.bridge < bridges));
            prop_assert!(table.iter().all(|d| matches!(d.phase, Phase::Present | Phase::Doubtful)));
            prop_assert_eq!(table.iter().filter(|d| d.phase == Phase::Doubtful).count(), table.doubtful());
        }
    }

    #[test]
    fn adding_and_removing_is_the_identity(steps in steps(), n in 200_u32..220) {
        let mut table = Rc::new(DeviceTable::new(2, []));
        for step in steps {
            run(&mut table, step);
        }
        let before: Vec<_> = table.iter().cloned().collect();
        let slots = *table.slots();
        for _ in 0..100 {
            if let Some(id) = attach(&mut table, n, |id| Some(Change::Plugged(id, None))) {
                Rc::make_mut(&mut table).fold(vec![Change::Removing(id.clone()), Change::Gone(id)]);
            }
        }
        prop_assert_eq!(before, table.iter().cloned().collect::<Vec<_>>());
        prop_assert_eq!(slots, *table.slots());
    }
}
