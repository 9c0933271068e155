//! Numbers about containers, volumes and the guest.

use std::fs;
use std::path::Path;

use agent_protocol::agent::{
    AgentDetails, CgroupStats, CpuStats, CpuUsage, GuestDetailsResponse, MemoryData, MemoryStats, NetworkStats,
    PidsStats, StatsContainerResponse, ThrottlingData,
};
use agent_protocol::csi::volume_usage::Unit;
use agent_protocol::csi::{VolumeStatsResponse, VolumeUsage};
use anyhow::{Context, Result};
use nix::sys::statvfs::statvfs;

use crate::cgroup::Cgroup;
use crate::{cpu_memory, storage};

const NETWORK: &str = "/sys/class/net";

/// What this guest is and can do.
pub(crate) fn details(with_block_size: bool) -> GuestDetailsResponse {
    let details = AgentDetails {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        init_daemon: true,
        device_handlers: vec!["blk".to_owned(), "mmioblk".to_owned()],
        storage_handlers: storage::DRIVERS.map(str::to_owned).to_vec(),
        ..AgentDetails::default()
    };
    let block_size = with_block_size.then(cpu_memory::memory_block_size).flatten();
    GuestDetailsResponse {
        mem_block_size_bytes: block_size.unwrap_or(0),
        agent_details: Some(details).into(),
        ..GuestDetailsResponse::default()
    }
}

/// What a container has used so far.
pub(crate) fn container(cgroup: &Cgroup) -> StatsContainerResponse {
    let stats = CgroupStats {
        cpu_stats: Some(cpu(cgroup)).into(),
        memory_stats: Some(memory(cgroup)).into(),
        pids_stats: Some(PidsStats {
            current: number(&cgroup.read("pids.current")),
            limit: number(&cgroup.read("pids.max")),
            ..PidsStats::default()
        })
        .into(),
        ..CgroupStats::default()
    };
    StatsContainerResponse {
        cgroup_stats: Some(stats).into(),
        network_stats: network(),
        ..StatsContainerResponse::default()
    }
}

/// How full a volume is.
pub(crate) fn volume(path: &str) -> Result<VolumeStatsResponse> {
    let found = statvfs(path).with_context(|| path.to_owned())?;
    let block = found.fragment_size();
    let usage = |unit: Unit, total: u64, free: u64, available: u64| VolumeUsage {
        available,
        total,
        used: total.saturating_sub(free),
        unit: unit.into(),
        ..VolumeUsage::default()
    };
    let bytes =
        usage(Unit::BYTES, found.blocks() * block, found.blocks_free() * block, found.blocks_available() * block);
    let inodes = usage(Unit::INODES, found.files(), found.files_free(), found.files_available());
    Ok(VolumeStatsResponse { usage: vec![bytes, inodes], ..VolumeStatsResponse::default() })
}

/// The guest's memory in the text format of Prometheus.
pub(crate) fn metrics() -> String {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let mut text = String::from("# TYPE kata_guest_meminfo gauge\n");
    for line in memory.lines() {
        if let Some((item, amount)) = line.split_once(':')
            && let Some(amount) = amount.split_ascii_whitespace().next()
        {
            let item = item.to_lowercase();
            text.push_str(&format!("kata_guest_meminfo{{item=\"{item}\"}} {amount}\n"));
        }
    }
    text
}

fn cpu(cgroup: &Cgroup) -> CpuStats {
    let stat = cgroup.read("cpu.stat");
    // The kernel counts in microseconds, the protocol in nanoseconds.
    let nanoseconds = |key| value_of(&stat, key) * 1000;
    let usage = CpuUsage {
        total_usage: nanoseconds("usage_usec"),
        usage_in_kernelmode: nanoseconds("system_usec"),
        usage_in_usermode: nanoseconds("user_usec"),
        ..CpuUsage::default()
    };
    let throttling = ThrottlingData {
        periods: value_of(&stat, "nr_periods"),
        throttled_periods: value_of(&stat, "nr_throttled"),
        throttled_time: nanoseconds("throttled_usec"),
        ..ThrottlingData::default()
    };
    CpuStats { cpu_usage: Some(usage).into(), throttling_data: Some(throttling).into(), ..CpuStats::default() }
}

fn memory(cgroup: &Cgroup) -> MemoryStats {
    let stat = cgroup.read("memory.stat");
    let data = |kind: &str| MemoryData {
        usage: number(&cgroup.read(&format!("{kind}.current"))),
        max_usage: number(&cgroup.read(&format!("{kind}.peak"))),
        limit: number(&cgroup.read(&format!("{kind}.max"))),
        ..MemoryData::default()
    };
    MemoryStats {
        cache: value_of(&stat, "file"),
        usage: Some(data("memory")).into(),
        swap_usage: Some(data("memory.swap")).into(),
        use_hierarchy: true,
        stats: stat
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(key, value)| (key.to_owned(), number(value)))
            .collect(),
        ..MemoryStats::default()
    }
}

fn network() -> Vec<NetworkStats> {
    let entries = fs::read_dir(NETWORK).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.map(interface).collect()
}

fn interface(name: String) -> NetworkStats {
    let directory = Path::new(NETWORK).join(&name).join("statistics");
    let count = |file| number(&fs::read_to_string(directory.join(file)).unwrap_or_default());
    NetworkStats {
        name,
        rx_bytes: count("rx_bytes"),
        rx_packets: count("rx_packets"),
        rx_errors: count("rx_errors"),
        rx_dropped: count("rx_dropped"),
        tx_bytes: count("tx_bytes"),
        tx_packets: count("tx_packets"),
        tx_errors: count("tx_errors"),
        tx_dropped: count("tx_dropped"),
        ..NetworkStats::default()
    }
}

/// The value of a key in a file of `key value` lines.
fn value_of(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.map_or(0, number)
}

/// A number of cgroupfs; no limit is written as a word, and told as the largest number.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_mistaken_for_their_prefixes() {
        let stat = "file_mapped 1\nfile 2\n";
        assert_eq!(value_of(stat, "file"), 2);
        assert_eq!(number("max\n"), u64::MAX);
    }
}
