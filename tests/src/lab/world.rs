//! What there is in a lab before anything happens.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use super::{Programs, text};

/// Bytes of a disk.
const DISK_BYTES: u64 = 4 << 20;

/// A lab's world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    /// The lab's name: the begin of every sandbox's id, so that its cgroups are known.
    pub name: String,
    /// What it works with.
    pub programs: Programs,
    /// State directory of the sandboxes.
    pub state: PathBuf,
    /// Configuration of `sandboxctl`.
    pub config: PathBuf,
    /// Where volumes and bundles lie.
    pub data: PathBuf,
    /// A block device with nothing on it, as the source of a volume.
    pub disk: PathBuf,
    /// Another, for `linux.devices`.
    pub node: PathBuf,
}

impl World {
    /// A namespace with one veth, as CNI plugins make it.
    pub const POD: &'static str = "/run/netns/pod";
    /// One with three.
    pub const POD_OF_THREE: &'static str = "/run/netns/pod3";

    /// Makes the world around this process, which is the first of its namespaces.
    pub(super) fn make(name: &str, programs: Programs) -> Result<(Self, [fs::File; 2])> {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        leave_others_mounts()?;
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))?;
        mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777"))?;
        let data = PathBuf::from("/run/data");
        let mut world = Self {
            name: name.to_owned(),
            state: "/run/resource-actors".into(),
            config: data.join("configuration.toml"),
            data,
            disk: PathBuf::new(),
            node: PathBuf::new(),
            programs,
        };
        // QEMU's virtiofsd makes it for its lock files and leaves it for ever.
        fs::create_dir("/run/virtiofsd")?;
        world.make_data()?;
        make_networks()?;
        let (disk, held) = world.make_disk("disk")?;
        let (node, held_too) = world.make_disk("node")?;
        (world.disk, world.node) = (disk, node);
        fs::write(world.file(), serde_json::to_vec(&world)?)?;
        Ok((world, [held, held_too]))
    }

    fn make_data(&self) -> Result<()> {
        let volumes = self.volumes();
        for volume in ["common", "data"] {
            let dir = volumes.join(volume);
            fs::create_dir_all(dir.join("below"))?;
            fs::write(dir.join("canary"), format!("this is {volume}\n"))?;
            fs::write(dir.join("below/canary"), format!("this is below {volume}\n"))?;
        }
        fs::write(volumes.join("config.file"), "key = value\n")?;
        fs::create_dir(self.images())?;
        for container in ["one", "two", "three"] {
            let root = self.images().join(container);
            match &self.programs.rootfs {
                Some(rootfs) => host(&["cp", "-a", &text(rootfs), &text(&root)])?,
                None => fs::create_dir(&root)?,
            }
            fs::write(root.join("canary"), format!("this is root of {container}\n"))?;
            // Where the bundles mount something: the guest cannot make it in a root that is read-only.
            for place in ["proc", "data", "common"] {
                fs::create_dir_all(root.join(place))?;
            }
            fs::write(root.join("config.file"), "")?;
        }
        for disk in [self.root_disk(), self.root_disk().with_extension("vm")] {
            fs::File::create(disk)?.set_len(DISK_BYTES)?;
        }
        self.make_bundle("quick", &["/bin/true"])?;
        self.make_bundle("long", &["/bin/busybox", "sleep", "1000"])?;
        fs::write(&self.config, self.configuration())?;
        Ok(())
    }

    /// Where this is written.
    pub fn file(&self) -> PathBuf {
        self.data.join("world.json")
    }

    /// Root file systems `one`, `two` and `three`.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Directories `common` and `data`, file `config.file`.
    pub fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    /// A disk image; beside it lies another that ends in `.vm`.
    pub fn root_disk(&self) -> PathBuf {
        self.data.join("root.img")
    }

    /// A bundle: `quick` ends by itself, `long` does not.
    pub fn bundle(&self, name: &str) -> PathBuf {
        self.data.join("bundles").join(name)
    }

    /// A bundle whose root is that of container `one`.
    fn make_bundle(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let dir = self.bundle(name);
        fs::create_dir_all(&dir)?;
        let bind = |volume: &str, mode: &str| {
            let source = self.volumes().join(volume);
            serde_json::json!({
                "destination": format!("/{volume}"), "type": "bind", "source": source, "options": ["rbind", mode],
            })
        };
        let config = serde_json::json!({
            "ociVersion": "1.2.0",
            "root": { "path": self.images().join("one"), "readonly": true },
            "process": {
                "args": arguments, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"],
            },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                bind("data", "rw"), bind("common", "ro"), bind("config.file", "ro"),
            ],
            "linux": {
                "namespaces": [{ "type": "pid" }, { "type": "mount" }],
                "resources": {
                    "cpu": { "quota": 150_000, "period": 100_000 }, "memory": { "limit": 200 << 20 },
                },
            },
        });
        fs::write(dir.join("config.json"), config.to_string())?;
        Ok(())
    }

    fn configuration(&self) -> String {
        let Programs { vmm, vsock_daemon, virtiofsd, kernel, initrd, .. } = &self.programs;
        format!(
            r#"[hypervisor.qemu]
path = "{}"
kernel = "{}"
initrd = "{}"
default_vcpus = 1
default_maxvcpus = 4
default_memory = 256
default_maxmemory = 1024
shared_fs = "virtio-fs"
virtio_fs_daemon = "{}"
vsock_daemon = "{}"
accelerator = "tcg"

[agent.kata]
reconnect_timeout_ms = 90000

[runtime]

[runtime.deadlines]
step_ms = 120000
"#,
            vmm.display(),
            kernel.display(),
            initrd.display(),
            virtiofsd.display(),
            vsock_daemon.display(),
        )
    }

    /// A loop device. It goes when the file that comes back is closed, with this process at the latest.
    fn make_disk(&self, name: &str) -> Result<(PathBuf, fs::File)> {
        let image = self.data.join(name).with_extension("img");
        fs::File::create(&image)?.set_len(DISK_BYTES)?;
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&image).output()?;
        ensure!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        let device = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        let held = fs::File::open(&device)?;
        // In use, so it is only marked to go.
        host(&["losetup", "--detach", &text(&device)])?;
        Ok((device, held))
    }
}

/// Takes what others have mounted below `/run` and `/tmp` out of this namespace: it would go when they
/// remove it, and that would look like the job's work.
fn leave_others_mounts() -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| ["/run/", "/tmp/"].iter().any(|dir| point.starts_with(dir))) {
        // One below another has gone with it, and one whose directory has been removed is gone too.
        let _ = umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    Ok(())
}

/// Two pods, and a peer at the other end of their wires.
fn make_networks() -> Result<()> {
    host(&["ip", "link", "set", "lo", "up"])?;
    for (pod, links) in [("pod", 1), ("pod3", 3)] {
        host(&["ip", "netns", "add", pod])?;
        // Addresses that the kernel makes up come and go by themselves.
        host(&["ip", "netns", "exec", pod, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"])?;
        for link in 0..links {
            let (name, peer) = (format!("eth{link}"), format!("{pod}e{link}"));
            host(&["ip", "link", "add", &peer, "type", "veth", "peer", "name", &name, "netns", pod])?;
            host(&["ip", "-n", pod, "address", "add", &format!("10.{}.{link}.2/24", 60 + links), "dev", &name])?;
            host(&["ip", "-n", pod, "link", "set", &name, "up"])?;
        }
        host(&["ip", "-n", pod, "link", "set", "lo", "up"])?;
        host(&["ip", "-n", pod, "route", "add", "default", "via", &format!("10.{}.0.1", 60 + links)])?;
    }
    Ok(())
}

/// Runs a program of the host to its end.
fn host(words: &[&str]) -> Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("start {}", words[0]))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {}: {errors}", output.status);
    Ok(())
}

/// Makes a file that only its owner may use.
pub(super) fn keep_private(path: &Path) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}
