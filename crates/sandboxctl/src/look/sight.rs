//! Whether the object of one ledger entry is there.

use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use helper_process::is_alive;
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use sandbox_model::ledger::{Entry, HostObject, Identity, ProcessIdentity};

use super::{Scene, Sight};

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8), which rustix does not name.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

impl Scene<'_> {
    /// What the kernel shows of an entry's object.
    pub(super) fn sight(&self, entry: &Entry) -> Sight {
        match &entry.object {
            HostObject::Directory { path } | HostObject::File { path } => file(path, entry.identity.as_ref()),
            HostObject::Mount { target, .. } => mount(target, entry.identity.as_ref()),
            HostObject::NetNamespace { path } => {
                let inode = match entry.identity {
                    Some(Identity::Inode { inode, .. }) => Some(inode),
                    _ => None,
                };
                match self.namespace(path, inode) {
                    Ok(view) => Sight::There(format!("{} links", view.links.len())),
                    Err(sight) => sight,
                }
            }
            HostObject::Tap { namespace, name, alias } => {
                self.link(entry, namespace, |link| link.name == *name && link.alias.as_deref() == Some(alias))
            }
            HostObject::IngressQdisc { namespace, link } => {
                self.link(entry, namespace, |seen| seen.name == *link && seen.has_ingress)
            }
            HostObject::Process { .. } => self.process(entry),
            HostObject::Cgroup { paths } => cgroup(paths, entry.identity.as_ref()),
            HostObject::VmDevice { .. } if self.vm_is_gone() => Sight::Vanished("gone with its VM".to_owned()),
            HostObject::VmDevice { .. } | HostObject::Hold { .. } | HostObject::ResourceShare { .. } => Sight::Inside,
            HostObject::VfioBinding { bdf, .. } => vfio(bdf),
        }
    }

    fn link(&self, entry: &Entry, namespace: &Path, is_it: impl Fn(&network_actor::view::Link) -> bool) -> Sight {
        let (index, inode) = match entry.identity {
            Some(Identity::Link { index, namespace_inode }) => (Some(index), Some(namespace_inode)),
            _ => (None, None),
        };
        let view = match self.namespace(namespace, inode) {
            Ok(view) => view,
            Err(sight) => return sight,
        };
        match view.links.iter().find(|link| is_it(link) && index.is_none_or(|index| index == link.index)) {
            Some(link) => Sight::There(format!("index {}, mtu {}", link.index, link.mtu)),
            None => Sight::Vanished("no such link of ours".to_owned()),
        }
    }

    fn process(&self, entry: &Entry) -> Sight {
        match entry.identity {
            Some(Identity::Process(process)) if !is_alive(process) => {
                Sight::Vanished(format!("pid {} has ended", process.pid))
            }
            Some(Identity::Process(process)) => self.living(entry, process),
            // A simulated VMM has no process.
            Some(_) => Sight::Inside,
            None => match self.tagged.iter().find(|(_, number)| *number == entry.id.0) {
                Some((pid, _)) => Sight::There(format!("pid {pid}, by its tag")),
                None => Sight::Vanished("no process carries its tag".to_owned()),
            },
        }
    }

    /// A process of that pid and start time is ours if it carries our tag, as far as we may see.
    fn living(&self, entry: &Entry, process: ProcessIdentity) -> Sight {
        let pid = process.pid;
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment.is_empty() || self.tagged.contains(&(pid, entry.id.0)) {
            let resident = resident_kib(pid).map(|kib| format!(", {} MiB", kib / 1024)).unwrap_or_default();
            return Sight::There(format!("pid {pid}{resident}"));
        }
        Sight::Vanished(format!("pid {pid} does not carry our tag"))
    }
}

fn resident_kib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn seen(error: &io::Error) -> Sight {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Sight::Vanished("not there".to_owned()),
        _ => Sight::Unclear(error.to_string()),
    }
}

fn file(path: &Path, identity: Option<&Identity>) -> Sight {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) => return seen(&error),
    };
    match identity {
        Some(Identity::Inode { device, inode }) => {
            // A mount covers what it is mounted on; the parent still lists the covered inode.
            let is_it = (found.dev(), found.ino()) == (*device, *inode) || listed_inode(path) == Some(*inode);
            let other = || Sight::Vanished("another file has its name".to_owned());
            if is_it { Sight::There(String::new()) } else { other() }
        }
        _ => Sight::There(String::new()),
    }
}

fn listed_inode(path: &Path) -> Option<u64> {
    let mut entries = fs::read_dir(path.parent()?).ok()?.filter_map(Result::ok);
    entries.find(|entry| Some(entry.file_name().as_os_str()) == path.file_name()).map(|entry| entry.ino())
}

fn mount(target: &Path, identity: Option<&Identity>) -> Sight {
    let flags = StatxFlags::MNT_ID | MNT_ID_UNIQUE;
    let found = match statx(CWD, target, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, flags) {
        Ok(found) => found,
        Err(errno) => return seen(&errno.into()),
    };
    if !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Sight::Vanished("nothing is mounted there".to_owned());
    }
    match identity {
        Some(Identity::Mount { mount_id }) if *mount_id != found.stx_mnt_id => {
            Sight::Vanished("another mount is there".to_owned())
        }
        _ => Sight::There(String::new()),
    }
}

fn cgroup(paths: &[PathBuf], identity: Option<&Identity>) -> Sight {
    let inodes = match identity {
        Some(Identity::Inodes { inodes }) => inodes.as_slice(),
        _ => &[],
    };
    // A parent is shared: one that went and came back is another sandbox's.
    let is_parent = |path: &PathBuf| paths.iter().any(|other| other != path && other.starts_with(path));
    let groups: Vec<_> = paths.iter().enumerate().filter(|(_, path)| !is_parent(path)).collect();
    let there = groups.iter().filter(|(n, path)| {
        let found = fs::symlink_metadata(path);
        found.is_ok_and(|found| inodes.get(*n).is_none_or(|inode| *inode == found.ino()))
    });
    let there: Vec<_> = there.map(|(_, path)| path).collect();
    match there.len() {
        0 => Sight::Vanished("not there".to_owned()),
        count if count < groups.len() => Sight::Vanished(format!("{count} of {} directories are there", groups.len())),
        count => {
            let lines = |file: &str| there.iter().find_map(|path| fs::read_to_string(path.join(file)).ok());
            let processes = lines("cgroup.procs").map_or(0, |list| list.lines().count());
            Sight::There(format!("{count} directories, {processes} processes"))
        }
    }
}

fn vfio(bdf: &str) -> Sight {
    match fs::read_link(format!("/sys/bus/pci/devices/{bdf}/driver")) {
        Ok(driver) if driver.ends_with("vfio-pci") => Sight::There(String::new()),
        Ok(driver) => Sight::Vanished(format!("its driver is {}", driver.file_name().unwrap_or_default().display())),
        Err(error) => seen(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(path: &Path) -> Identity {
        let found = fs::symlink_metadata(path).unwrap();
        Identity::Inode { device: found.dev(), inode: found.ino() }
    }

    #[test]
    fn a_file_is_known_by_its_inode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "").unwrap();
        let made = identity(&path);
        assert_eq!(file(&path, Some(&made)), Sight::There(String::new()));
        fs::write(dir.path().join("b"), "").unwrap();
        fs::rename(dir.path().join("b"), &path).unwrap();
        assert_eq!(file(&path, Some(&made)).mark(), "!", "another file of that name is not ours");
        assert_eq!(file(&path, None).mark(), "✓", "of an intent only the name is known");
        fs::remove_file(&path).unwrap();
        assert_eq!(file(&path, Some(&made)), Sight::Vanished("not there".to_owned()));
    }

    #[test]
    fn a_directory_is_no_mount() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mount(dir.path(), None), Sight::Vanished("nothing is mounted there".to_owned()));
        assert_eq!(mount(Path::new("/proc"), None).mark(), "✓");
        let other = Identity::Mount { mount_id: 1 };
        assert_eq!(mount(Path::new("/proc"), Some(&other)).mark(), "!");
    }

    #[test]
    fn of_a_cgroup_the_leaves_count() {
        let dir = tempfile::tempdir().unwrap();
        let (parent, leaf) = (dir.path().join("us"), dir.path().join("us/pod"));
        fs::create_dir_all(&leaf).unwrap();
        let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
        let paths = [parent.clone(), leaf.clone()];
        let made = Identity::Inodes { inodes: vec![inode(&parent) + 1000, inode(&leaf)] };
        assert_eq!(cgroup(&paths, Some(&made)).mark(), "✓", "another sandbox may have made the parent again");
        let other = Identity::Inodes { inodes: vec![inode(&parent), inode(&leaf) + 1000] };
        assert_eq!(cgroup(&paths, Some(&other)).mark(), "!");
    }
}
