//! What the tests make on the host beside sandboxes, and take away again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::request::ResourceConfig;

/// A path that is UTF-8, as all of the tests are.
pub fn text(path: &Path) -> String {
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// Runs a program of the host to its end: its standard output.
///
/// # Panics
/// When it fails.
pub fn host(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("the program is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// What a CNI plugin makes: a namespace with one end of a veth, whose other end a peer has.
#[derive(Debug)]
pub struct PodNetwork {
    pod: String,
    peer: String,
    subnet: String,
}

impl PodNetwork {
    /// Makes it.
    ///
    /// # Panics
    /// When the host refuses.
    pub fn make() -> Self {
        // Tests of one process run beside each other.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (process, nth) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let (pod, peer) = (format!("ra-pod-{process}-{nth}"), format!("ra-peer-{process}-{nth}"));
        let made = Self { pod, peer, subnet: format!("10.9.{}", (process + nth) % 200) };
        let (pod, peer) = (made.pod.as_str(), made.peer.as_str());
        host(&["ip", "netns", "add", pod]);
        host(&["ip", "netns", "add", peer]);
        host(&["ip", "-n", peer, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", pod]);
        for (namespace, address) in [(pod, made.guest_address()), (peer, made.peer_address())] {
            host(&["ip", "-n", namespace, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
            host(&["ip", "-n", namespace, "link", "set", "eth0", "up"]);
        }
        host(&["ip", "-n", pod, "route", "add", "default", "via", &made.peer_address()]);
        made
    }

    /// The guest's address.
    pub fn guest_address(&self) -> String {
        format!("{}.2", self.subnet)
    }

    /// The address of who is at the other end.
    pub fn peer_address(&self) -> String {
        format!("{}.1", self.subnet)
    }

    /// The wish for a VM in this network.
    pub fn request(&self) -> ResourceConfig {
        let source = NetworkSource::Namespace { path: format!("/run/netns/{}", self.pod).into() };
        ResourceConfig::Network(NetworkRequest { source, model: InterworkingModel::TcFilter, queue_pairs: 1 })
    }

    /// Links, queueing disciplines, addresses and routes of the pod's namespace.
    pub fn snapshot(&self) -> [String; 4] {
        let pod = self.pod.as_str();
        [
            host(&["ip", "-n", pod, "-j", "link"]),
            host(&["tc", "-n", pod, "qdisc"]),
            host(&["ip", "-n", pod, "-4", "address"]),
            host(&["ip", "-n", pod, "route"]),
        ]
    }

    /// Pings the guest from the other end.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn ping_guest(&self) {
        host(&["ip", "netns", "exec", &self.peer, "ping", "-c", "1", "-W", "5", &self.guest_address()]);
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        for name in [&self.pod, &self.peer] {
            // It may not have been made.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// A 64 MiB file with an ext4 behind a loop device.
#[derive(Debug)]
pub struct Disk {
    /// The file.
    pub image: PathBuf,
    /// The loop device.
    pub device: PathBuf,
}

impl Disk {
    /// Makes it.
    ///
    /// # Panics
    /// When the host refuses.
    pub fn make(image: PathBuf) -> Self {
        let file = text(&image);
        host(&["truncate", "-s", "64M", &file]);
        host(&["mkfs.ext4", "-q", &file]);
        let device = host(&["losetup", "--find", "--show", &file]).trim().into();
        Self { image, device }
    }

    /// Reads a file of its file system, which nobody must have mounted.
    ///
    /// # Panics
    /// When the host refuses. A file that is not there reads as empty.
    pub fn read(&self, path: &str) -> String {
        host(&["debugfs", "-R", &format!("cat {path}"), &text(&self.device)])
    }
}

impl Disk {
    /// Detaches the loop device, which must be nobody's any more.
    ///
    /// # Panics
    /// When somebody, as a VM, still has it open.
    pub fn detach(self) {
        let image = self.image.clone();
        drop(self);
        assert_eq!(host(&["losetup", "--associated", &text(&image)]), "", "somebody has it open");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).output();
    }
}
