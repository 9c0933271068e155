//! A container to try things with: busybox, and a command that shows where it runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use crate::tool;

const PACKAGE: &str = "busybox-static";

/// What the example container runs.
const SCRIPT: &str = "\
echo \"hello from $(hostname), Linux $(uname -r)\"
echo \"CPUs: $(grep -c ^processor /proc/cpuinfo)\"
echo \"memory: $(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo) MiB\"
echo \"processes here: $(ls /proc | grep -c '^[0-9]')\"";

/// Builds `target/example/bundle/{config.json,rootfs}`; the bundle's directory.
pub(crate) fn build() -> Result<PathBuf> {
    let bundle = tool::target("example").join("bundle");
    let rootfs = bundle.join("rootfs");
    if !rootfs.join("bin/busybox").exists() {
        make_rootfs(&rootfs).context("make the root file system")?;
    }
    let config = serde_json::to_vec_pretty(&config())?;
    fs::write(bundle.join("config.json"), config)?;
    Ok(bundle)
}

fn make_rootfs(rootfs: &Path) -> Result<()> {
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
        fs::create_dir_all(rootfs.join(directory))?;
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    fs::write(rootfs.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    // A mount point for the sandbox's name servers.
    fs::write(rootfs.join("etc/resolv.conf"), "")?;
    for link in ["sbin", "usr/bin", "usr/sbin"] {
        symlink("/bin", rootfs.join(link))?;
    }
    let unpacked = tool::target("example").join("busybox");
    tool::unpack_package(PACKAGE, &unpacked)?;
    let busybox = unpacked.join("bin/busybox");
    let applets = String::from_utf8(tool::output(Command::new(&busybox).arg("--list"))?)?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    // Last: its presence says that the rest is there.
    fs::copy(&busybox, rootfs.join("bin/busybox"))?;
    Ok(fs::remove_dir_all(unpacked)?)
}

fn config() -> serde_json::Value {
    let capabilities = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh", "-c", SCRIPT],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=linux"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "example",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> serde_json::Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}
