//! What stands behind a device in QEMU: block nodes, netdevs, chardevs, descriptors.
//!
//! QEMU is given descriptors that we opened, never a path: it can reach nothing else, and a disk's
//! format is always said, never probed.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use sandbox_model::device::{
    Access, BlockDevice, DeviceConfig, DiskFormat, NetworkDevice, PlacedDevice, ShareFsDevice, VfioDevice,
    VsockBackend, VsockDevice,
};
use sandbox_model::{ErrorKind, Instant, Outcome, PassedFd, PortError, PortResult};
use serde_json::{Map, Value, json};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout_at};

use super::qmp::Command;
use super::vm::Vm;

/// How long the removal of all backends of a device may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// A backend is busy until the device that used it is freed, which QEMU does a little later.
const RELEASE_RETRY: Duration = Duration::from_millis(5);

/// Something that was made for a device and goes after it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Backend {
    /// A named descriptor. What is made from it takes it: then there is none of that name any more.
    Fd(String),
    /// A set of descriptors that files are opened from.
    FdSet(u64),
    /// A block node.
    Node(String),
    /// The host side of a NIC.
    Netdev(String),
    /// A connection to a daemon.
    Chardev(String),
}

/// The kind and number of which a backend's name is made (`drive-7`).
pub(super) fn number_of(name: &str) -> Option<(&str, u64)> {
    let (kind, number) = name.rsplit_once('-')?;
    Some((kind, number.parse().ok()?))
}

impl Backend {
    /// The number in its name.
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::FdSet(number) => Some(*number),
            Self::Fd(name) | Self::Node(name) | Self::Netdev(name) | Self::Chardev(name) => {
                number_of(name).map(|(_, number)| number)
            }
        }
    }

    fn removal(&self) -> Command {
        match self {
            Self::Fd(name) => Command::new("closefd", json!({ "fdname": name })),
            Self::FdSet(id) => Command::new("remove-fd", json!({ "fdset-id": id })),
            Self::Node(name) => Command::new("blockdev-del", json!({ "node-name": name })),
            Self::Netdev(id) => Command::new("netdev_del", json!({ "id": id })),
            Self::Chardev(id) => Command::new("chardev-remove", json!({ "id": id })),
        }
    }
}

/// Properties for `device_add`, `driver` among them.
pub(super) type Properties = Map<String, Value>;

/// Makes the backends of one device.
#[derive(Debug)]
pub(super) struct Maker<'a> {
    pub(super) vm: &'a Vm,
    /// The device, for errors.
    pub(super) object: &'a str,
    /// Makes QEMU's names: a block node's has 31 characters at most, fewer than a device's id may.
    pub(super) number: u64,
    pub(super) deadline: Instant,
    /// What was made so far, also if an error follows.
    pub(super) made: Vec<Backend>,
}

impl Maker<'_> {
    /// Makes what a device needs and returns its properties.
    pub(super) async fn make(&mut self, device: &PlacedDevice) -> PortResult<Properties> {
        let properties = match &device.config {
            DeviceConfig::Block(block) => self.block(block, &device.disk).await?,
            DeviceConfig::Network(network) => self.network(network).await?,
            DeviceConfig::ShareFs(share) => self.share_fs(share).await?,
            DeviceConfig::Vsock(vsock) => self.vsock(vsock).await?,
            DeviceConfig::Vfio(VfioDevice { bdf, .. }) => json!({ "driver": "vfio-pci", "host": bdf }),
        };
        let Value::Object(properties) = properties else { unreachable!("json! of braces is an object") };
        Ok(properties)
    }

    /// Makes `backend` by `command`. One whose making is doubtful counts as made.
    ///
    /// Numbers are not used twice. What has this name all the same was left by an earlier process of
    /// ours, for a device that does not exist, and goes.
    async fn produce(&mut self, backend: Backend, command: Command) -> PortResult<()> {
        let mut result = self.vm.execute_on(self.object, command.clone(), self.deadline).await;
        if result.as_ref().is_err_and(|error| error.kind == ErrorKind::Exists) {
            self.vm.execute_on(self.object, backend.removal(), self.deadline).await?;
            result = self.vm.execute_on(self.object, command, self.deadline).await;
        }
        if result.as_ref().err().is_none_or(|error| error.outcome == Outcome::Doubtful) {
            self.made.push(backend);
        }
        result.map(|_| ())
    }

    async fn block(&mut self, block: &BlockDevice, disk: &PassedFd) -> PortResult<Value> {
        let read_only = block.access == Access::ReadOnly;
        let driver = self.driver_of(disk)?;
        let set = self.number;
        let add = Command::new("add-fd", json!({ "fdset-id": set })).with_fd(disk.clone());
        self.produce(Backend::FdSet(set), add).await?;
        let node = format!("drive-{}", self.number);
        let format = match block.format {
            DiskFormat::Raw => "raw",
        };
        let cache = json!({ "direct": block.direct, "no-flush": false });
        let arguments = json!({
            "driver": format, "node-name": node, "read-only": read_only, "cache": cache,
            "file": {
                "driver": driver, "filename": format!("/dev/fdset/{set}"), "read-only": read_only, "cache": cache,
            },
        });
        self.produce(Backend::Node(node.clone()), Command::new("blockdev-add", arguments)).await?;
        let mut properties = json!({ "driver": "virtio-blk-pci", "drive": node });
        if let Some(serial) = &block.serial {
            properties["serial"] = serial.as_str().into();
        }
        Ok(properties)
    }

    /// QEMU's driver for what is open there.
    fn driver_of(&self, disk: &PassedFd) -> PortResult<&'static str> {
        let invalid = |cause: &str| PortError::new(ErrorKind::Invalid, "add-fd", self.object, cause);
        let disk = disk.get().ok_or_else(|| invalid("no live descriptor"))?;
        let facts = fstat(disk).map_err(|error| PortError::os("fstat", self.object, error))?;
        match FileType::from_raw_mode(facts.st_mode) {
            FileType::BlockDevice => Ok("host_device"),
            FileType::RegularFile => Ok("file"),
            _ => Err(invalid("neither a block device nor a regular file")),
        }
    }

    async fn network(&mut self, network: &NetworkDevice) -> PortResult<Value> {
        if network.queues.is_empty() || network.queues.len() != usize::from(network.queue_pairs) {
            let cause = format!("{} descriptors for {} queue pairs", network.queues.len(), network.queue_pairs);
            return Err(PortError::new(ErrorKind::Invalid, "netdev_add", self.object, cause));
        }
        let mut names = Vec::new();
        for (queue, fd) in network.queues.iter().enumerate() {
            names.push(self.pass(&format!("tap{queue}"), fd.clone()).await?);
        }
        let netdev = format!("net-{}", self.number);
        let mut arguments = json!({ "type": "tap", "id": netdev, "vhost": false });
        arguments[if names.len() == 1 { "fd" } else { "fds" }] = names.join(":").into();
        self.produce(Backend::Netdev(netdev.clone()), Command::new("netdev_add", arguments)).await?;
        let mut properties = json!({ "driver": "virtio-net-pci", "netdev": netdev, "mac": network.mac.to_string() });
        if let Ok(mtu @ 1..) = u16::try_from(network.mtu) {
            properties["host_mtu"] = mtu.into();
        }
        if network.queue_pairs > 1 {
            properties["mq"] = true.into();
            // One for each queue, one for control, one for configuration.
            properties["vectors"] = (2 * u32::from(network.queue_pairs) + 2).into();
        }
        Ok(properties)
    }

    async fn share_fs(&mut self, share: &ShareFsDevice) -> PortResult<Value> {
        let chardev = self.connect(&share.socket).await?;
        Ok(json!({
            "driver": "vhost-user-fs-pci", "chardev": chardev, "tag": share.tag, "queue-size": share.queue_size,
        }))
    }

    async fn vsock(&mut self, vsock: &VsockDevice) -> PortResult<Value> {
        match &vsock.backend {
            VsockBackend::VhostUser { socket, .. } => {
                let chardev = self.connect(socket).await?;
                Ok(json!({ "driver": "vhost-user-vsock-pci", "chardev": chardev }))
            }
            VsockBackend::Kernel => {
                let path = "/dev/vhost-vsock";
                let device = std::fs::OpenOptions::new().read(true).write(true).open(path);
                let device = device.map_err(|error| PortError::os("open", path, error))?;
                let name = self.pass("vhost", PassedFd::new(device.into())).await?;
                Ok(json!({ "driver": "vhost-vsock-pci", "guest-cid": vsock.cid, "vhostfd": name }))
            }
        }
    }

    /// Connects to a vhost-user daemon; the chardev's name.
    async fn connect(&mut self, socket: &Path) -> PortResult<String> {
        let object = || format!("{} for {}", socket.display(), self.object);
        let refused = |error: std::io::Error| PortError::os("connect", object(), error);
        let connected = timeout_at(self.deadline, UnixStream::connect(socket)).await;
        let connected = connected
            .map_err(|_| PortError::new(ErrorKind::TimedOut, "connect", object(), "the daemon does not accept"))?;
        let stream = connected.and_then(UnixStream::into_std).map_err(refused)?;
        stream.set_nonblocking(false).map_err(refused)?;
        let name = self.pass("vhost-user", PassedFd::new(OwnedFd::from(stream))).await?;
        let chardev = format!("char-{}", self.number);
        let address = json!({ "type": "fd", "data": { "str": name } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        let add = Command::new("chardev-add", json!({ "id": chardev, "backend": backend }));
        self.produce(Backend::Chardev(chardev.clone()), add).await?;
        Ok(chardev)
    }

    /// Gives QEMU a descriptor under a name.
    async fn pass(&mut self, what: &str, fd: PassedFd) -> PortResult<String> {
        if fd.get().is_none() {
            return Err(PortError::new(ErrorKind::Invalid, "getfd", self.object, "no live descriptor"));
        }
        let name = format!("{what}-{}", self.number);
        let get = Command::new("getfd", json!({ "fdname": name })).with_fd(fd);
        self.produce(Backend::Fd(name.clone()), get).await?;
        Ok(name)
    }
}

/// Removes backends, the last made first. What cannot be removed is reported in the log: it holds a
/// descriptor of QEMU's, and goes with it.
pub(super) async fn release(vm: &Vm, object: &str, made: Vec<Backend>) {
    let deadline = Instant::now() + RELEASE_PATIENCE;
    for backend in made.iter().rev() {
        while let Err(error) = vm.execute_on(object, backend.removal(), deadline).await {
            match error.kind {
                ErrorKind::NotFound => break,
                ErrorKind::Busy if Instant::now() < deadline => sleep(RELEASE_RETRY).await,
                _ => {
                    tracing::warn!(%error, ?backend, "a device's backend stays in QEMU");
                    break;
                }
            }
        }
    }
}
