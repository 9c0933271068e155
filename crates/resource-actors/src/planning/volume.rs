//! Which kind of volume an OCI mount becomes (behaviour A7, in its order).

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use sandbox_model::device::Access;
use sandbox_model::layout::{GUEST_EPHEMERAL, GUEST_SHM};
use sandbox_model::storage::{GuestMount, Storage};

use super::mount_as_is;
use crate::host::PathKind;

/// What is to be done for one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumePlan {
    /// Nothing on the host: the guest mounts it by itself.
    Guest {
        /// For the container's spec.
        mount: GuestMount,
        /// For the agent, if it must prepare something.
        storage: Option<Storage>,
    },
    /// A directory or file is shown to the guest; the mount's source becomes its guest path.
    Share {
        /// On the host.
        source: PathBuf,
        /// Enforced on the host.
        access: Access,
        /// For the container's spec, its source still open.
        mount: GuestMount,
    },
    /// A block device is plugged; the guest mounts its file system.
    Block {
        /// On the host.
        source: PathBuf,
        /// Enforced by the VMM.
        access: Access,
        /// For the container's spec, its source still open.
        mount: GuestMount,
    },
}

/// Sources that belong to the guest's own kernel.
const GUEST_TREES: [&str; 2] = ["/proc", "/sys"];

/// Plans one mount. `source` is what its source is on the host, where it has one and is a bind.
///
/// # Errors
/// A text that names the mount and what is wrong with it.
pub fn plan_volume(mount: &Mount, source: Option<PathKind>) -> Result<VolumePlan, String> {
    let as_is = mount_as_is(mount);
    if !Path::new(&as_is.destination).is_absolute() {
        return Err(format!("mount destination {:?} is not an absolute path", as_is.destination));
    }
    if as_is.destination == "/dev/shm" && as_is.kind != "ephemeral" {
        return Ok(sandbox_shm(as_is));
    }
    if as_is.kind == "ephemeral" {
        return ephemeral(as_is);
    }
    if !is_bind(&as_is) || is_guests_own(&as_is) {
        return Ok(VolumePlan::Guest { mount: as_is, storage: None });
    }
    let path = PathBuf::from(&as_is.source);
    let access = access(&as_is);
    let bind = |options| GuestMount { kind: "bind".to_owned(), options, ..as_is.clone() };
    match source {
        Some(PathKind::Directory | PathKind::File) => {
            Ok(VolumePlan::Share { source: path, access, mount: bind(as_is.options.clone()) })
        }
        Some(PathKind::BlockDevice) => {
            Ok(VolumePlan::Block { source: path, access, mount: bind(with_bind(&as_is.options)) })
        }
        Some(PathKind::Other) => Err(format!(
            "mount {}: {} is neither a directory, a regular file nor a block device, so no guest can have it",
            as_is.destination, as_is.source
        )),
        None => Err(format!("mount {}: {} does not exist on the host", as_is.destination, as_is.source)),
    }
}

/// Whether the source of a mount must be looked at.
pub(crate) fn needs_source(mount: &Mount) -> Option<PathBuf> {
    let as_is = mount_as_is(mount);
    let concerns_host =
        is_bind(&as_is) && as_is.destination != "/dev/shm" && !is_guests_own(&as_is) && as_is.kind != "ephemeral";
    concerns_host.then(|| PathBuf::from(as_is.source))
}

fn is_bind(mount: &GuestMount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

fn is_guests_own(mount: &GuestMount) -> bool {
    let source = Path::new(&mount.source);
    mount.destination == "/dev" || GUEST_TREES.iter().any(|tree| source.starts_with(tree))
}

fn access(mount: &GuestMount) -> Access {
    // The last of `ro` and `rw` counts, as for mount(8).
    let last = mount.options.iter().rev().find(|option| *option == "ro" || *option == "rw");
    if last.is_some_and(|option| option == "ro") { Access::ReadOnly } else { Access::ReadWrite }
}

fn with_bind(options: &[String]) -> Vec<String> {
    let has = options.iter().any(|option| option == "bind" || option == "rbind");
    let bind = (!has).then(|| "bind".to_owned());
    bind.into_iter().chain(options.iter().cloned()).collect()
}

fn sandbox_shm(mount: GuestMount) -> VolumePlan {
    let mount = GuestMount {
        kind: "bind".to_owned(),
        source: GUEST_SHM.to_owned(),
        options: vec!["rbind".to_owned()],
        ..mount
    };
    VolumePlan::Guest { mount, storage: None }
}

fn ephemeral(mount: GuestMount) -> Result<VolumePlan, String> {
    let name = Path::new(&mount.source).file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        format!("mount {}: the source {:?} of an ephemeral volume has no name", mount.destination, mount.source)
    })?;
    let mount_point = format!("{GUEST_EPHEMERAL}/{name}");
    let storage = Storage {
        driver: "ephemeral".to_owned(),
        source: "tmpfs".to_owned(),
        fstype: "tmpfs".to_owned(),
        mount_point: mount_point.clone(),
        ..Storage::default()
    };
    let options = with_bind(&mount.options);
    let mount = GuestMount { kind: "bind".to_owned(), source: mount_point, options, ..mount };
    Ok(VolumePlan::Guest { mount, storage: Some(storage) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;

    fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        MountBuilder::default().destination(destination).typ(kind).source(source).options(options).build().unwrap()
    }

    fn kind_of(mount: &Mount, source: Option<PathKind>) -> &'static str {
        match plan_volume(mount, source) {
            Ok(VolumePlan::Guest { storage: Some(_), .. }) => "ephemeral",
            Ok(VolumePlan::Guest { mount, .. }) if mount.source == GUEST_SHM => "shm",
            Ok(VolumePlan::Guest { .. }) => "default",
            Ok(VolumePlan::Share { .. }) => "share",
            Ok(VolumePlan::Block { .. }) => "block",
            Err(_) => "error",
        }
    }

    #[test]
    fn each_mount_becomes_the_volume_of_the_first_rule_that_fits() {
        use PathKind::{BlockDevice, Directory, File, Other};
        let cases = [
            (mount("/dev/shm", "tmpfs", "shm", &[]), None, "shm"),
            (mount("/dev/shm", "bind", "/somewhere", &["rbind"]), Some(Directory), "shm"),
            (mount("/cache", "ephemeral", "/var/lib/kubelet/x/cache", &[]), None, "ephemeral"),
            (mount("/dev/shm", "ephemeral", "/x/shm", &[]), None, "ephemeral"),
            (mount("/disk", "bind", "/dev/loop9", &["rbind"]), Some(BlockDevice), "block"),
            (mount("/data", "bind", "/srv/data", &["rbind"]), Some(Directory), "share"),
            (mount("/data", "none", "/srv/data", &["bind"]), Some(Directory), "share"),
            (mount("/etc/hosts", "bind", "/srv/hosts", &["bind", "ro"]), Some(File), "share"),
            (mount("/proc", "proc", "proc", &[]), None, "default"),
            (mount("/sys", "bind", "/sys", &["rbind"]), Some(Directory), "default"),
            (mount("/dev", "bind", "/dev", &["rbind"]), Some(Directory), "default"),
            (mount("/tmp", "tmpfs", "tmpfs", &[]), None, "default"),
            (mount("/sock", "bind", "/run/x.sock", &["bind"]), Some(Other), "error"),
            (mount("/gone", "bind", "/gone", &["bind"]), None, "error"),
            (mount("relative", "tmpfs", "tmpfs", &[]), None, "error"),
            (mount("/cache", "ephemeral", "/", &[]), None, "error"),
        ];
        for (mount, source, expected) in &cases {
            assert_eq!(kind_of(mount, *source), *expected, "{mount:?}");
        }
    }

    #[test]
    fn the_last_of_ro_and_rw_counts() {
        for (options, expected) in [
            (vec!["rbind"], Access::ReadWrite),
            (vec!["rbind", "ro"], Access::ReadOnly),
            (vec!["ro", "rw"], Access::ReadWrite),
            (vec!["rw", "ro", "rbind"], Access::ReadOnly),
        ] {
            let plan = plan_volume(&mount("/d", "bind", "/s", &options), Some(PathKind::Directory));
            assert!(matches!(plan, Ok(VolumePlan::Share { access, .. }) if access == expected), "{options:?}");
        }
    }

    #[test]
    fn only_what_the_host_must_give_is_looked_at() {
        assert!(needs_source(&mount("/proc", "proc", "proc", &[])).is_none());
        assert!(needs_source(&mount("/dev/shm", "bind", "/x", &[])).is_none());
        assert_eq!(needs_source(&mount("/d", "bind", "/s", &[])), Some("/s".into()));
    }
}
