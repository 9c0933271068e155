//! Bringing hotplugged CPUs and memory into use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::console::say;
use crate::hotplug::Hotplug;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// Brings CPUs online until `wanted` are, waiting for those still being plugged; 0 asks nothing.
pub(crate) async fn online_cpus(wanted: u32, hotplug: &Hotplug) -> Result<()> {
    if wanted == 0 {
        return Ok(());
    }
    let what = format!("CPU number {wanted}");
    let online = hotplug.wait_for(&what, || online_present_cpus(wanted)).await?;
    say(format_args!("{online} CPUs online"));
    Ok(())
}

/// One pass; the number online if it has reached what is wanted.
fn online_present_cpus(wanted: u32) -> Option<u32> {
    let mut online = 0;
    for cpu in numbered(CPUS, "cpu") {
        let switch = cpu.join("online");
        // The boot CPU has no switch, and is online.
        let off = fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "0");
        if !off || (online < wanted && fs::write(&switch, "1").is_ok()) {
            online += 1;
        }
    }
    (online >= wanted).then_some(online)
}

/// Brings every memory block that is there online, in one pass.
///
/// Movable where the kernel allows it: only that can be taken away again.
pub(crate) fn online_memory() -> Result<()> {
    let mut online = 0;
    for block in numbered(MEMORY, "memory") {
        let state = block.join("state");
        if !fs::read_to_string(&state).is_ok_and(|state| state.trim() == "offline") {
            continue;
        }
        fs::write(&state, "online_movable")
            .or_else(|_| fs::write(&state, "online"))
            .with_context(|| format!("bring {} online", block.display()))?;
        online += 1;
    }
    if online > 0 {
        say(format_args!("{online} memory blocks brought online"));
    }
    Ok(())
}

/// Size of a memory block in bytes, or nothing where memory cannot be plugged.
pub(crate) fn memory_block_size() -> Option<u64> {
    let text = fs::read_to_string(Path::new(MEMORY).join("block_size_bytes")).ok()?;
    u64::from_str_radix(text.trim(), 16).ok()
}

/// The directories `<prefix><number>`, in numerical order.
fn numbered(directory: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}
