//! Everything that a sandbox could leave behind, one line each.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::text;

/// What exists. Lines of any two moments compare.
pub type Snapshot = BTreeSet<String>;

/// Directories whose files are looked at, with what is below them but not on other mounts' devices.
const PLACES: [&str; 3] = ["/run", "/dev/shm", "/tmp/resource-actors"];
const CGROUPS: &str = "/sys/fs/cgroup";
/// Files up to so many bytes are compared by content.
const CONTENT_MAX: u64 = 64 * 1024;

/// What was made (`+`) and what is missing (`-`).
pub fn difference(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let made = after.difference(before).map(|line| format!("+ {line}"));
    let missing = before.difference(after).map(|line| format!("- {line}"));
    made.chain(missing).collect()
}

/// Looks at this process's namespaces. `name` is what cgroups of the lab have in their names.
pub(super) fn take(name: &str, namespaces: &[&str]) -> Result<Snapshot> {
    let mut found = Snapshot::new();
    mounts(&mut found)?;
    processes(&mut found)?;
    sockets(&mut found)?;
    for place in PLACES {
        files(Path::new(place), &mut found);
    }
    let groups = cgroups(Path::new(CGROUPS), name);
    found.extend(groups.iter().map(|path| format!("cgroup {}", path.display())));
    links(None, &mut found)?;
    for namespace in namespaces {
        links(Some(namespace), &mut found)?;
    }
    Ok(found)
}

/// The mount table without its volatile numbers.
fn mounts(found: &mut Snapshot) -> Result<()> {
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let words = line.split(' ').skip(2).map(|word| {
            word.split_once(':').map_or(word, |(tag, rest)| match tag {
                "shared" | "master" => tag,
                _ if rest.is_empty() => tag,
                _ => word,
            })
        });
        let words: Vec<&str> = words.collect();
        found.insert(format!("mount {}", words.join(" ")));
    }
    Ok(())
}

/// Every process but this one.
fn processes(found: &mut Snapshot) -> Result<()> {
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == own || !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // It may end while it is looked at.
        let Ok(words) = fs::read(entry.path().join("cmdline")) else { continue };
        let state = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let state = state.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        found.insert(format!("process {} {state}", words.trim_end()));
    }
    Ok(())
}

/// Unix sockets of this network namespace that have a name.
fn sockets(found: &mut Snapshot) -> Result<()> {
    for line in fs::read_to_string("/proc/net/unix")?.lines().skip(1) {
        if let Some(path) = line.split_whitespace().nth(7) {
            found.insert(format!("socket {path}"));
        }
    }
    Ok(())
}

/// Files with mode, owner and content. A file system that is mounted below is looked at too: what a
/// bind mount shows is no secret.
fn files(path: &Path, found: &mut Snapshot) {
    let Ok(facts) = fs::symlink_metadata(path) else { return };
    let kind = facts.file_type();
    let content = if kind.is_file() && facts.len() <= CONTENT_MAX {
        fs::read(path).map(|bytes| format!("{:016x}", digest(&bytes))).unwrap_or_default()
    } else if kind.is_symlink() {
        fs::read_link(path).map(|target| text(&target)).unwrap_or_default()
    } else if kind.is_socket() {
        "socket".to_owned()
    } else {
        String::new()
    };
    // A directory's size is a matter of its file system.
    let size = if kind.is_file() { facts.len() } else { 0 };
    found.insert(format!(
        "file {} {:o} {}:{} {size} {content}",
        path.display(),
        facts.mode(),
        facts.uid(),
        facts.gid()
    ));
    if kind.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            files(&entry.path(), found);
        }
    }
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits: whether two small files are the same.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Whether a name has the lab's in it; `lab1n10` is another lab's than `lab1n1`.
fn is_of(file: &str, lab: &str) -> bool {
    file.split_once(lab).is_some_and(|(_, rest)| !rest.starts_with(|next: char| next.is_ascii_digit()))
}

/// Those with the name in theirs, and parents before children.
fn cgroups(dir: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // Others' come and go while we look.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            let below = cgroups(&path, name);
            if is_of(&entry.file_name().to_string_lossy(), name) {
                found.push(path);
            }
            found.extend(below);
        }
    }
    found
}

/// Removes the cgroups that a failed job has left. Namespaces end with their processes, cgroups do not.
pub(super) fn remove_cgroups(name: &str) {
    for path in cgroups(Path::new(CGROUPS), name).iter().rev() {
        // It may be gone, or busy for another moment: whatever stays is in the next look at the host.
        let _ = fs::remove_dir(path);
    }
}

/// Links, addresses, routes, lasting neighbours, qdiscs and filters of a namespace.
fn links(namespace: Option<&str>, found: &mut Snapshot) -> Result<()> {
    let label = namespace.unwrap_or("own");
    let shown = batch("ip", namespace, "link show\naddress show\nroute show table all\nneigh show nud permanent\n")?;
    let names: Vec<String> = shown
        .lines()
        .filter_map(|line| line.split_once(": ")?.1.split_once(": "))
        .map(|(name, _)| name.split('@').next().unwrap_or(name).to_owned())
        .collect();
    let mut asked = "qdisc show\n".to_owned();
    for name in names {
        asked.push_str(&format!("filter show dev {name} ingress\n"));
    }
    let filters = batch("tc", namespace, &asked)?;
    for line in shown.lines().chain(filters.lines()) {
        found.insert(format!("net {label} {}", line.trim()));
    }
    Ok(())
}

/// Runs `ip` or `tc` with several commands.
fn batch(program: &str, namespace: Option<&str>, commands: &str) -> Result<String> {
    let mut command = Command::new(program);
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-d", "-o", "-force", "-batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("its input")?.write_all(commands.as_bytes())?;
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {namespace:?}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_has_a_direction() {
        let of = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Snapshot>();
        assert_eq!(difference(&of(&["a", "b"]), &of(&["b", "c"])), ["+ c", "- a"]);
        assert!(difference(&of(&["a"]), &of(&["a"])).is_empty());
    }
}
