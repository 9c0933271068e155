//! What a record may say, whoever wrote the file: a ledger is a hint, not an authority.
//!
//! An undo acts on what an entry names. So an entry may name only what its actor makes, in the
//! sandbox's own directory, under the sandbox's own mark, with an identity of the right kind; and a
//! sandbox may have only so many of each. The undo asks the kernel besides whether the object is
//! still the one that was made.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use network_actor::Mark;
use sandbox_model::SandboxId;
use sandbox_model::device::is_pci_address;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{HostObject, Identity};
use sandbox_model::lifecycle::ActorName;

use super::Violation;

/// Bytes of an interface's name, without the byte that ends it (`IFNAMSIZ` of linux/if.h).
const LINK_NAME_BYTES_MAX: usize = 15;
/// Bytes of a driver's name, which is a directory of sysfs.
const DRIVER_NAME_BYTES_MAX: usize = 64;
/// Directories of one cgroup: a hierarchy for each controller, and the joint parents.
const CGROUP_DIRECTORIES_MAX: usize = 128;

/// The bounds of one sandbox's records.
#[derive(Debug, Clone)]
pub struct Bounds {
    sandbox: SandboxId,
    dir: SandboxDir,
    alias: String,
}

impl Bounds {
    /// The bounds of `sandbox`, which lives below `state_dir`.
    pub fn new(state_dir: &Path, sandbox: &SandboxId) -> Self {
        let alias = Mark::of(sandbox).alias;
        Self { sandbox: sandbox.clone(), dir: SandboxDir::new(state_dir, sandbox), alias }
    }

    /// Whose records these are.
    pub(super) fn sandbox(&self) -> &SandboxId {
        &self.sandbox
    }

    /// Whether `actor` may make `object` for this sandbox.
    ///
    /// # Errors
    /// [`Violation::Outside`] says what is wrong with it.
    pub(super) fn object(&self, actor: ActorName, object: &HostObject) -> Result<(), Violation> {
        let outside = |what: String| Err(Violation::Outside(what));
        if !makes(actor, object) {
            return outside(format!("the {actor} actor makes no {object}"));
        }
        let is_ours = match object {
            HostObject::Directory { path } | HostObject::File { path } | HostObject::NetNamespace { path } => {
                self.is_below(path)
            }
            HostObject::Mount { target, .. } => self.is_below(target),
            HostObject::Tap { namespace, name, alias } => {
                is_plain(namespace) && is_name(name, LINK_NAME_BYTES_MAX) && *alias == self.alias
            }
            HostObject::IngressQdisc { namespace, link } => is_plain(namespace) && is_name(link, LINK_NAME_BYTES_MAX),
            HostObject::Cgroup { paths } => {
                paths.len() <= CGROUP_DIRECTORIES_MAX && paths.iter().all(|path| is_plain(path))
            }
            HostObject::VfioBinding { bdf, original_driver } => {
                is_pci_address(bdf)
                    && original_driver.as_deref().is_none_or(|name| is_name(name, DRIVER_NAME_BYTES_MAX))
            }
            HostObject::Process { .. }
            | HostObject::VmDevice { .. }
            | HostObject::Hold { .. }
            | HostObject::ResourceShare { .. } => true,
        };
        if is_ours { Ok(()) } else { outside(format!("{object} is none of sandbox {}", self.sandbox)) }
    }

    /// Below the sandbox's own directory, and not one of the files by which the directory itself is
    /// kept.
    fn is_below(&self, path: &Path) -> bool {
        let Ok(rest) = path.strip_prefix(self.dir.root()) else { return false };
        let is_own = [self.dir.ledger(), self.dir.saved(), self.dir.spec()].iter().any(|own| own == path);
        // Paths are equal to what they are equivalent to; texts are not.
        is_written_plainly(rest) && self.dir.root().join(rest).as_os_str() == path.as_os_str() && !is_own
    }
}

/// Whether `identity` is what the kernel says of such an object.
pub(super) fn fits(object: &HostObject, identity: &Identity) -> bool {
    match (object, identity) {
        (HostObject::Cgroup { paths }, Identity::Inodes { inodes }) => inodes.len() == paths.len(),
        (HostObject::Directory { .. } | HostObject::NetNamespace { .. }, Identity::Inode { .. })
        | (HostObject::File { .. }, Identity::Inode { .. } | Identity::Named)
        | (HostObject::Mount { .. }, Identity::Mount { .. })
        | (HostObject::Tap { .. } | HostObject::IngressQdisc { .. }, Identity::Link { .. })
        // An embedder's VMM need not be a process of its own.
        | (HostObject::Process { .. }, Identity::Process(_) | Identity::Named)
        | (
            HostObject::VmDevice { .. }
            | HostObject::VfioBinding { .. }
            | HostObject::Hold { .. }
            | HostObject::ResourceShare { .. },
            Identity::Named,
        ) => true,
        _ => false,
    }
}

/// Kinds of objects.
pub(super) const KINDS: usize = 12;

/// A kind of object.
pub(super) struct Kind {
    /// Below [`KINDS`].
    pub(super) number: usize,
    /// What several of them are called.
    pub(super) name: &'static str,
    /// How many a sandbox may have at a time. Far above what one needs: it is where a loop of
    /// somebody's ends before the host does.
    pub(super) limit: u16,
}

/// The kind of an object.
pub(super) fn kind(object: &HostObject) -> Kind {
    let (number, name, limit) = match object {
        HostObject::Directory { .. } => (0, "directories", 4096),
        HostObject::File { .. } => (1, "files", 4096),
        HostObject::Mount { .. } => (2, "mounts", 2048),
        HostObject::NetNamespace { .. } => (3, "network namespaces", 8),
        HostObject::Tap { .. } => (4, "taps", 64),
        HostObject::IngressQdisc { .. } => (5, "ingress qdiscs", 128),
        HostObject::Process { .. } => (6, "processes", 16),
        HostObject::Cgroup { .. } => (7, "cgroups", 16),
        HostObject::VmDevice { .. } => (8, "devices", 256),
        HostObject::VfioBinding { .. } => (9, "VFIO functions", 64),
        HostObject::Hold { .. } => (10, "holds", 8192),
        HostObject::ResourceShare { .. } => (11, "containers with limits", 2048),
    };
    Kind { number, name, limit }
}

fn makes(actor: ActorName, object: &HostObject) -> bool {
    match actor {
        ActorName::Supervisor => matches!(object, HostObject::Process { .. } | HostObject::File { .. }),
        ActorName::Device => matches!(
            object,
            HostObject::VmDevice { .. }
                | HostObject::VfioBinding { .. }
                | HostObject::Hold { .. }
                | HostObject::Process { .. }
                | HostObject::File { .. }
        ),
        ActorName::Network => matches!(
            object,
            HostObject::NetNamespace { .. }
                | HostObject::File { .. }
                | HostObject::Tap { .. }
                | HostObject::IngressQdisc { .. }
        ),
        ActorName::ShareFs => matches!(
            object,
            HostObject::Directory { .. }
                | HostObject::File { .. }
                | HostObject::Mount { .. }
                | HostObject::Process { .. }
                | HostObject::Hold { .. }
        ),
        ActorName::Cgroup => matches!(object, HostObject::Cgroup { .. } | HostObject::ResourceShare { .. }),
        ActorName::Cpu => matches!(object, HostObject::ResourceShare { .. }),
    }
}

/// Absolute, with nothing in it that leads elsewhere than it reads.
fn is_plain(path: &Path) -> bool {
    path.strip_prefix("/").is_ok_and(is_written_plainly)
}

/// Names and single slashes between them.
fn is_written_plainly(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    !bytes.contains(&0) && bytes.split(|byte| *byte == b'/').all(|name| !matches!(name, b"" | b"." | b".."))
}

/// One name in a directory such as `/sys/bus/pci/drivers`, and no way out of it.
fn is_name(name: &str, bytes_max: usize) -> bool {
    let is_word = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
    (1..=bytes_max).contains(&name.len()) && name.bytes().all(is_word) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds::new(Path::new("/run/ra"), &SandboxId::new("pod").unwrap())
    }

    #[test]
    fn what_lies_elsewhere_is_none_of_ours() {
        let file = |path: &str| HostObject::File { path: path.into() };
        let ok = |object| bounds().object(ActorName::ShareFs, &object).is_ok();
        assert!(ok(file("/run/ra/pod/rw/x")) && ok(file("/run/ra/pod/virtiofsd.sock")));
        for path in [
            "/run/docker.sock",
            "/run/ra/other/rw",
            "/run/ra/podx/rw",
            "/run/ra/pod",
            "/run/ra/pod/",
            "/run/ra/pod/../other/rw",
            "/run/ra/pod/./rw",
            "/run/ra//pod/rw",
            "run/ra/pod/rw",
            "/run/ra/pod/ledger.jsonl",
            "/run/ra/pod/saved.json",
            "/run/ra/pod/a\0b",
            "",
        ] {
            assert!(!ok(file(path)), "{path:?}");
        }
    }

    #[test]
    fn a_name_that_the_kernel_would_read_as_a_path_is_refused() {
        let vfio = |bdf: &str, driver: &str| HostObject::VfioBinding {
            bdf: bdf.to_owned(),
            original_driver: Some(driver.to_owned()),
        };
        let ok = |object: HostObject| bounds().object(ActorName::Device, &object).is_ok();
        assert!(ok(vfio("0000:3b:00.1", "e1000e")));
        for (bdf, driver) in [
            ("0000:3b:00.1", "../../../module/x"),
            ("0000:3b:00.1", ".."),
            ("0000:3b:00.1", ""),
            ("../devices/x", "e1000e"),
            ("0000:3b:00.8", "e1000e"),
            ("0000:3b:0g.1", "e1000e"),
        ] {
            assert!(!ok(vfio(bdf, driver)), "{bdf} {driver}");
        }
        let tap = |name: &str, alias: &str| {
            let (namespace, name, alias) = ("/run/netns/pod".into(), name.to_owned(), alias.to_owned());
            bounds().object(ActorName::Network, &HostObject::Tap { namespace, name, alias }).is_ok()
        };
        assert!(tap("tap0_kata", "resource-actors:pod"));
        assert!(!tap("tap0_kata", "resource-actors:other") && !tap("tap/0", "resource-actors:pod"));
        assert!(!tap("a-name-too-long-x", "resource-actors:pod"));
    }

    #[test]
    fn each_actor_makes_its_own_objects_only() {
        let process = HostObject::Process { program: "qemu".into() };
        for actor in [ActorName::Network, ActorName::Cgroup, ActorName::Cpu] {
            assert!(bounds().object(actor, &process).is_err(), "{actor}");
        }
        assert!(bounds().object(ActorName::Supervisor, &process).is_ok());
        let paths = vec!["/sys/fs/cgroup/cpu/x".into(), "/sys/fs/cgroup/memory/x".into()];
        let group = HostObject::Cgroup { paths };
        assert!(fits(&group, &Identity::Inodes { inodes: vec![1, 2] }));
        assert!(!fits(&group, &Identity::Inodes { inodes: vec![1] }) && !fits(&group, &Identity::Named));
        assert!(!fits(&process, &Identity::Mount { mount_id: 1 }));
    }
}
