//! What carries a sandbox's marks and is in no entry of its ledger.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use network_actor::Mark;
use sandbox_model::SandboxId;
use sandbox_model::layout::SandboxDir;
use sandbox_model::ledger::{ENTRY_ENV, HostObject};

use super::Scene;

/// Where hierarchies are mounted: v2 here, those of v1 one below.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Our groups, unless a bundle names its own.
const GROUPS: [&str; 2] = ["resource-actors", "resource-actors-overhead"];

/// An object that only the kernel knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stranger {
    /// In the ledger's words: `process`, `tap`, `cgroup`, `mount`, `file`.
    pub(crate) kind: &'static str,
    /// What it is.
    pub(crate) name: String,
}

impl Scene<'_> {
    /// Looks for what the ledger does not know.
    pub(super) fn strangers(&self) -> Vec<Stranger> {
        let mut found = self.processes();
        found.extend(self.taps());
        found.extend(self.cgroups());
        found.extend(self.mounts());
        found.extend(self.files());
        found
    }

    fn objects(&self) -> impl Iterator<Item = &HostObject> {
        self.ledger.entries().map(|entry| &entry.object)
    }

    fn processes(&self) -> Vec<Stranger> {
        let is_known = |number: u64| {
            self.ledger
                .entries()
                .any(|entry| entry.id.0 == number && matches!(entry.object, HostObject::Process { .. }))
        };
        let unknown = self.tagged.iter().filter(|(_, number)| !is_known(*number));
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let stranger = |(pid, number): &(i32, u64)| Stranger {
            kind: "process",
            name: format!("{} ({}), tagged {}/{number}", pid, name(*pid).trim(), self.sandbox),
        };
        unknown.map(stranger).collect()
    }

    /// Taps with our alias, in the namespaces that the ledger names.
    fn taps(&self) -> Vec<Stranger> {
        let alias = Mark::of(self.sandbox).alias;
        let mut found = Vec::new();
        for (path, seen) in &self.namespaces {
            let Ok((_, view)) = seen else { continue };
            let is_known = |name: &str| {
                self.objects().any(|object| {
                    matches!(object, HostObject::Tap { namespace, name: of, .. } if namespace == path && of == name)
                })
            };
            let ours = view.links.iter().filter(|link| link.alias.as_deref() == Some(&*alias) && !is_known(&link.name));
            found.extend(
                ours.map(|link| Stranger { kind: "tap", name: format!("{} in {}", link.name, path.display()) }),
            );
        }
        found
    }

    fn cgroups(&self) -> Vec<Stranger> {
        let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let roots = std::iter::once(PathBuf::from(CGROUPS)).chain(hierarchies.filter(|path| !path.is_symlink()));
        let groups = roots.flat_map(|root| GROUPS.map(|group| root.join(group).join(self.sandbox.as_str())));
        let is_known = |path: &PathBuf| {
            self.objects().any(|object| matches!(object, HostObject::Cgroup { paths } if paths.contains(path)))
        };
        let unknown = groups.filter(|path| path.is_dir() && !is_known(path));
        unknown.map(|path| Stranger { kind: "cgroup", name: path.display().to_string() }).collect()
    }

    fn mounts(&self) -> Vec<Stranger> {
        let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let is_known = |path: &Path| {
            self.objects().any(|object| match object {
                HostObject::Mount { target, .. } => target == path,
                HostObject::NetNamespace { path: of } => of == path,
                _ => false,
            })
        };
        let unknown = mount_points(&table).into_iter().filter(|path| path.starts_with(self.dir) && !is_known(path));
        unknown.map(|path| Stranger { kind: "mount", name: path.display().to_string() }).collect()
    }

    /// Files in the sandbox's own directory.
    fn files(&self) -> Vec<Stranger> {
        let Some((state_dir, _)) = self.dir.parent().zip(self.dir.file_name()) else { return Vec::new() };
        let dir = SandboxDir::new(state_dir, self.sandbox);
        let own = [dir.ledger(), dir.saved(), dir.saved().with_extension("json.new")];
        let is_known = |path: &PathBuf| {
            own.contains(path)
                || self.objects().any(|object| match object {
                    HostObject::Directory { path: of } | HostObject::File { path: of } => of.starts_with(path),
                    HostObject::NetNamespace { path: of } => of == path,
                    HostObject::Mount { target, .. } => target.starts_with(path),
                    _ => false,
                })
        };
        let paths = fs::read_dir(self.dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let mut unknown: Vec<_> = paths.filter(|path| !is_known(path)).collect();
        unknown.sort();
        unknown.into_iter().map(|path| Stranger { kind: "file", name: path.display().to_string() }).collect()
    }
}

/// The fifth field of each line of proc_pid_mountinfo(5), in which blanks are octal.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    let fields = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescaped(field)))).collect()
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *byte == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(value.unwrap_or(*byte));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    plain
}

/// Every process that carries a tag of `sandbox`, with the number of the entry.
pub(super) fn tagged(sandbox: &SandboxId) -> Vec<(i32, u64)> {
    let prefix = format!("{ENTRY_ENV}={sandbox}/");
    let pids = fs::read_dir("/proc").into_iter().flatten();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let number = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
        variables.find_map(|text| text.strip_prefix(&prefix))?.parse().ok()
    };
    pids.filter_map(|pid| Some((pid, number(pid)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_blank_is_read() {
        let table = b"36 35 98:0 / /mnt/a\\040b rw - ext3 /dev/root rw\n37 36 0:1 / /c rw - tmpfs none rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/mnt/a b"), PathBuf::from("/c")]);
        assert_eq!(unescaped(b"a\\13"), b"a\\13", "what is no escape stays");
    }

    #[test]
    fn a_process_is_found_by_its_tag() {
        let sandbox = SandboxId::new("look-test").unwrap();
        let mut child = std::process::Command::new("sleep").arg("30").env(ENTRY_ENV, "look-test/7").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // Between fork and exec a process has its parent's environment.
        let found = (0..1000).map(|_| tagged(&sandbox)).find(|found| !found.is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, Some(vec![(pid, 7)]));
    }
}
