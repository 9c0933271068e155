//! One cgroup (version 2) for each container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_protocol::oci::LinuxResources;
use anyhow::{Context, Result};
use nix::unistd::Pid;

use crate::console::say;

/// Where the hierarchy is mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
const CONTAINERS: &str = "/sys/fs/cgroup/containers";
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// Makes the parent of all containers' groups, with every controller the kernel has.
pub(crate) fn enable_controllers() {
    let _ = fs::create_dir_all(CONTAINERS);
    for directory in [ROOT, CONTAINERS] {
        let file = Path::new(directory).join("cgroup.subtree_control");
        // One by one: an unknown controller would make the kernel refuse all of them.
        for controller in CONTROLLERS {
            let _ = fs::write(&file, format!("+{controller}"));
        }
    }
}

/// A container's own group.
#[derive(Clone)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group of a container whose id has been checked.
    pub(crate) fn create(container: &str) -> Result<Self> {
        let path = Path::new(CONTAINERS).join(container);
        fs::create_dir_all(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Moves a process into the group.
    pub(crate) fn add(&self, pid: Pid) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Stops or continues every process of the group.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Kills every process of the group.
    pub(crate) fn kill(&self) {
        let _ = self.write("cgroup.kill", "1");
    }

    /// Removes the group; fails with `EBUSY` while a process is left in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir(&self.path)
    }

    /// A file of the group.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The whole of a file of the group; empty when it is not there.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_default()
    }

    /// Sets the limits that are given and leaves the others alone.
    pub(crate) fn apply(&self, resources: &LinuxResources) -> Result<()> {
        for (file, value) in settings(resources) {
            if !self.file(file).exists() {
                // The kernel lacks the controller: nothing to hold the container to.
                say(format_args!("cgroup: no {file}, `{value}` is not applied"));
                continue;
            }
            self.write(file, &value)?;
        }
        Ok(())
    }

    fn write(&self, name: &str, value: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, value).with_context(|| format!("write `{value}` to {}", path.display()))
    }
}

/// File and value for each limit; in proto3 zero and empty mean "not given".
fn settings(resources: &LinuxResources) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.Memory.as_ref() {
        if memory.Limit != 0 {
            settings.push(("memory.max", limit(memory.Limit)));
        }
        if memory.Reservation != 0 {
            settings.push(("memory.low", limit(memory.Reservation)));
        }
        if memory.Swap != 0 {
            // Version 1 counts memory and swap together, version 2 swap alone.
            let swap = if memory.Swap < 0 { -1 } else { (memory.Swap - memory.Limit).max(0) };
            settings.push(("memory.swap.max", limit(swap)));
        }
    }
    if let Some(cpu) = resources.CPU.as_ref() {
        if cpu.Shares != 0 {
            settings.push(("cpu.weight", weight(cpu.Shares).to_string()));
        }
        if cpu.Quota != 0 || cpu.Period != 0 {
            let period = if cpu.Period == 0 { 100_000 } else { cpu.Period };
            let quota = if cpu.Quota > 0 { cpu.Quota } else { -1 };
            settings.push(("cpu.max", format!("{} {period}", limit(quota))));
        }
        if !cpu.Cpus.is_empty() {
            settings.push(("cpuset.cpus", cpu.Cpus.clone()));
        }
        if !cpu.Mems.is_empty() {
            settings.push(("cpuset.mems", cpu.Mems.clone()));
        }
    }
    if let Some(pids) = resources.Pids.as_ref()
        && pids.Limit != 0
    {
        settings.push(("pids.max", limit(pids.Limit)));
    }
    settings
}

fn limit(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// Version 1's shares (2 to 262144) on version 2's scale (1 to 10000).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use agent_protocol::oci::{LinuxCPU, LinuxMemory, LinuxPids};

    use super::*;

    #[test]
    fn only_what_is_given_is_set() {
        assert!(settings(&LinuxResources::new()).is_empty());
    }

    #[test]
    fn limits_are_translated() {
        let resources = LinuxResources {
            Memory: Some(LinuxMemory { Limit: 100, Swap: 150, ..Default::default() }).into(),
            CPU: Some(LinuxCPU { Shares: 1024, Quota: 50_000, ..Default::default() }).into(),
            Pids: Some(LinuxPids { Limit: -1, ..Default::default() }).into(),
            ..Default::default()
        };
        let expected = [
            ("memory.max", "100"),
            ("memory.swap.max", "50"),
            ("cpu.weight", "39"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "max"),
        ];
        let expected: Vec<_> = expected.map(|(file, value)| (file, value.to_owned())).to_vec();
        assert_eq!(settings(&resources), expected);
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
    }
}
