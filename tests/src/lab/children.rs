//! What the programs that we start hold and may do.

use std::collections::BTreeSet;
use std::fs;

use serde::{Deserialize, Serialize};

/// One process, as the kernel shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Helper {
    /// Its name, 15 bytes at most.
    pub name: String,
    /// Where its descriptors lead, without numbers.
    pub descriptors: BTreeSet<String>,
    /// Real, effective, saved and file system user.
    pub users: String,
    /// Mode of seccomp: 2 is a filter.
    pub seccomp: String,
    /// Whether it can gain rights by exec: 1 is never.
    pub no_new_privileges: String,
    /// Effective capabilities.
    pub capabilities: String,
    /// The names of its environment's variables.
    pub variables: BTreeSet<String>,
    /// Its namespaces that are not ours.
    pub own_namespaces: BTreeSet<String>,
}

/// Every process of this PID namespace but the first and this one.
pub(super) fn look() -> Vec<Helper> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let pids = names.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own && name != "1");
    let mut children: Vec<Helper> = pids.filter_map(|pid| child(&pid)).collect();
    children.sort();
    children
}

fn child(pid: &str) -> Option<Helper> {
    let of = |name: &str| format!("/proc/{pid}/{name}");
    let status = fs::read_to_string(of("status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
    };
    let targets = fs::read_dir(of("fd")).ok()?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let descriptors = targets.map(|target| {
        let target = target.display().to_string();
        target
            .split_once(":[")
            .filter(|(kind, _)| *kind != "anon_inode")
            .map_or(target.clone(), |(kind, _)| kind.into())
    });
    let environment = fs::read(of("environ")).unwrap_or_default();
    let variables = environment.split(|&byte| byte == 0).filter_map(|variable| {
        let name = variable.split(|&byte| byte == b'=').next()?;
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    });
    let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"].into_iter().filter(|name| {
        let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/{name}")).ok();
        link(pid) != link("self")
    });
    Some(Helper {
        name: field("Name"),
        descriptors: descriptors.collect(),
        users: field("Uid"),
        seccomp: field("Seccomp"),
        no_new_privileges: field("NoNewPrivs"),
        capabilities: field("CapEff"),
        variables: variables.collect(),
        own_namespaces: namespaces.map(str::to_owned).collect(),
    })
}
