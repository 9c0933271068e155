//! The states of a sandbox and the names of its actors.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The actors of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActorName {
    /// Knows the order.
    Supervisor,
    /// Block, network, share-fs, vsock, VFIO devices of the VM.
    Device,
    /// Endpoints on the host.
    Network,
    /// The shared directory.
    ShareFs,
    /// Sandbox and overhead cgroups.
    Cgroup,
    /// vCPUs and memory.
    Cpu,
}

impl ActorName {
    /// All of them, in the order in which they are drawn.
    pub const ALL: [Self; 6] = [Self::Supervisor, Self::Device, Self::Network, Self::ShareFs, Self::Cgroup, Self::Cpu];

    /// The name in records and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Device => "device",
            Self::Network => "network",
            Self::ShareFs => "share-fs",
            Self::Cgroup => "cgroup",
            Self::Cpu => "cpu",
        }
    }
}

impl fmt::Display for ActorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a sandbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LifecycleState {
    /// Its actors live; nothing has been made but its directory.
    Created,
    /// Network, share, cgroups and cold-plugged devices are there.
    Prepared,
    /// The VM runs.
    Started,
    /// The guest's agent has answered and the guest knows its network.
    Running,
    /// The VM is gone; host objects remain.
    Stopped,
    /// Nothing remains.
    Released,
    /// A step failed beyond repair, an actor or the VM died: only `cleanup` leads out.
    Failed,
}

impl LifecycleState {
    /// All states.
    pub const ALL: [Self; 7] =
        [Self::Created, Self::Prepared, Self::Started, Self::Running, Self::Stopped, Self::Released, Self::Failed];
}

impl fmt::Display for LifecycleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Prepared => "prepared",
            Self::Started => "started",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Released => "released",
            Self::Failed => "failed",
        })
    }
}
