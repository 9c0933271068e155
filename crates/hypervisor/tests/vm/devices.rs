//! A real guest: devices are found at boot, plugged and given back while it runs.

use std::time::Duration;

use hypervisor::{RemoveDevice, ResizeMemory, ResizeVcpus};
use sandbox_model::{ErrorKind, Instant};

use crate::guest::{Guest, ShareLock, disk, nic, share};
use crate::{Guard, id, in_seconds, tap};

#[tokio::test]
async fn a_guest_takes_devices_and_gives_them_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::new(dir.path()) else { return };
    guest.add(disk(&guest.dir, "cold", 1)).await;
    let qemu = guest.boot().await;
    assert!(qemu.holds().len() > 4, "{:?}", qemu.holds());
    guest.add(disk(&guest.dir, "hot", 17)).await;
    guest.remove("hot").await;
    // One that is given back after its deadline: a query finds out, and the place is free.
    // A busy host may look at the answer and the clock at once: then the device is gone in time.
    for patience in [Duration::ZERO, Duration::from_millis(5)] {
        match guest.vm.remove_device(RemoveDevice { id: id("cold") }, Instant::now() + patience).await {
            Ok(()) => break,
            // Gone between the two.
            Err(error) if error.kind == ErrorKind::NotFound && !patience.is_zero() => break,
            Err(error) => assert_eq!(error.kind, ErrorKind::TimedOut),
        }
    }
    while !guest.vm.query_devices((), in_seconds(5)).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    guest.add(disk(&guest.dir, "cold", 1)).await;
    guest.remove("cold").await;
    assert!(guest.vm.query_devices((), in_seconds(5)).await.unwrap().is_empty());
    qemu.let_go().await;
    // The same name and place again.
    guest.add(disk(&guest.dir, "hot", 17)).await;
    let request = ResizeMemory { target_mib: 300, block_mib: 128 };
    assert_eq!(guest.vm.resize_memory(request, in_seconds(5)).await.unwrap().memory_mib, 384);
    assert_eq!(guest.vm.resize_vcpus(ResizeVcpus { target: 2 }, in_seconds(5)).await.unwrap().vcpus, 2);
    guest.stop().await;
}

#[tokio::test]
async fn a_guest_takes_nics_and_a_share_and_gives_them_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::new(dir.path()) else { return };
    let Some(single) = tap::queues(1) else { return eprintln!("skipped: no tap can be made") };
    let _lock = ShareLock::of(&guest.dir);
    let (daemon, device) = share(&guest.dir, 1, &format!("guest-{}/2", std::process::id())).await;
    let _guard = Guard(Some(daemon.identity()));
    guest.add(device).await;
    guest.add(nic("cold", 2, single)).await;
    let qemu = guest.boot().await;
    guest.add(nic("hot", 3, tap::queues(2).unwrap())).await;
    for name in ["cold", "hot", "share"] {
        guest.remove(name).await;
    }
    qemu.let_go().await;
    // It serves one VMM only, and that has let it go.
    let exit = tokio::time::timeout(Duration::from_secs(5), daemon.wait()).await;
    assert_eq!(exit.unwrap().code, Some(0), "{}", daemon.last_words());
    guest.stop().await;
}
