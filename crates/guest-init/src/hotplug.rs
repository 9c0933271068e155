//! Waiting for what the host plugs in: the kernel's own device events, with a deadline.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::readiness;

/// The first PCI bus of the machine.
const PCI_ROOT: &str = "/sys/devices/pci0000:00";

/// Wakes whoever waits for a device.
#[derive(Clone)]
pub(crate) struct Hotplug {
    events: watch::Receiver<u64>,
    timeout: Duration,
}

impl Hotplug {
    /// Starts listening to the kernel's device events.
    pub(crate) fn start(timeout: Duration) -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        // Group 1 is the kernel's own announcements.
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        let socket = readiness::register(socket)?;
        let (sender, events) = watch::channel(0);
        tokio::spawn(count_events(socket, sender));
        Ok(Self { events, timeout })
    }

    /// Calls `find` at once and after every device event, until it finds something or the
    /// deadline passes.
    pub(crate) async fn wait_for<T>(&self, what: &str, mut find: impl FnMut() -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + self.timeout;
        let mut events = self.events.clone();
        loop {
            // Marked as seen before looking: an event that comes while looking wakes us.
            events.mark_unchanged();
            if let Some(found) = find() {
                return Ok(found);
            }
            let Ok(changed) = timeout_at(deadline, events.changed()).await else {
                bail!("{what} did not appear within {:?}", self.timeout);
            };
            changed.context("device events ended")?;
        }
    }

    /// The device node of the disk at a PCI path such as `02/05`.
    pub(crate) async fn block_device(&self, pci_path: &str) -> Result<PathBuf> {
        let slots = parse_pci_path(pci_path)?;
        self.wait_for(&format!("a disk at PCI path {pci_path}"), || {
            let node = Path::new("/dev").join(class_device(&slots, "block")?);
            is_live(&node).then_some(node)
        })
        .await
    }

    /// The name of the network interface at a PCI path.
    pub(crate) async fn network_device(&self, pci_path: &str) -> Result<String> {
        let slots = parse_pci_path(pci_path)?;
        self.wait_for(&format!("a network interface at PCI path {pci_path}"), || class_device(&slots, "net")).await
    }

    /// A device node that is named directly.
    pub(crate) async fn node(&self, path: &Path) -> Result<()> {
        self.wait_for(&path.display().to_string(), || is_live(path).then_some(())).await
    }
}

/// Whether a node's device answers. A disk has its node before it can be opened, and still has it
/// when the disk before it in its slot is on its way out: both are ENXIO until the next event.
fn is_live(node: &Path) -> bool {
    OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(node).is_ok()
}

/// What the virtio device behind these slots is called in a class of the kernel's.
fn class_device(slots: &[u8], class: &str) -> Option<String> {
    let device = pci_device(Path::new(PCI_ROOT), slots)?;
    let virtio = child(&device, |name| name.starts_with("virtio"))?;
    let entry = child(&virtio.join(class), |_| true)?;
    Some(entry.file_name()?.to_str()?.to_owned())
}

async fn count_events(socket: AsyncFd<OwnedFd>, sender: watch::Sender<u64>) {
    let mut buffer = [0; 8192];
    while let Ok(mut ready) = socket.readable().await {
        // An overrun loses events, but says so by an error: that counts as one, too.
        let received =
            ready.try_io(|fd| recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(std::io::Error::from));
        if received.is_ok() {
            sender.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// The slots of a PCI path, outermost first; each is two hexadecimal digits below 20.
fn parse_pci_path(path: &str) -> Result<Vec<u8>> {
    let slots = path
        .split('/')
        .map(|slot| {
            ensure!(slot.len() == 2, "`{path}` is not a PCI path");
            let slot = u8::from_str_radix(slot, 16).with_context(|| format!("PCI path {path}"))?;
            ensure!(slot < 32, "a slot of `{path}` is out of range");
            Ok(slot)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(slots)
}

/// Walks down from the root: the bus number of each level is whatever the guest made it.
fn pci_device(root: &Path, slots: &[u8]) -> Option<PathBuf> {
    slots.iter().try_fold(root.to_owned(), |bridge, slot| {
        let suffix = format!(":{slot:02x}.0");
        child(&bridge, |name| name.starts_with("0000:") && name.ends_with(&suffix))
    })
}

fn child(directory: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    entries.flatten().find(|entry| entry.file_name().to_str().is_some_and(&wanted)).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_paths_are_checked() {
        assert_eq!(parse_pci_path("02/1f").ok(), Some(vec![2, 31]));
        for wrong in ["", "2", "02/", "02/20", "xx", "/02"] {
            assert!(parse_pci_path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_device_behind_a_bridge_is_found_on_any_bus() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("0000:00:02.0/0000:01:05.0");
        std::fs::create_dir_all(&device).unwrap();
        assert_eq!(pci_device(root.path(), &[2, 5]), Some(device));
        assert_eq!(pci_device(root.path(), &[2, 6]), None);
    }
}
