//! Lives of a sandbox as data: what is asked of it, in order, and what befalls it meanwhile.
//!
//! A [`Lifecycle`] is a list of [`Act`]s. What differs between a simulated world and a real one is in
//! its [`Setting`]; the lists are the same in both.

mod lists;

use std::fmt;
use std::path::PathBuf;

use resource_actors::{SandboxError, SandboxHandle, SandboxSpec};
use sandbox_model::config::SandboxConfig;
use sandbox_model::network::NetworkRequest;
use sandbox_model::request::{DevicesRequest, ResourceConfig, ResourceUpdate, RootfsRequest, VolumesRequest};
use sandbox_model::{ContainerId, SandboxId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use simulation::fault::Peer;

pub use lists::{LIFECYCLES, lifecycle};

/// What a life needs of the world that it is lived in.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The sandbox's configuration: kernel, images, programs, deadlines.
    pub config: SandboxConfig,
    /// `linux.cgroupsPath`.
    pub cgroups_path: Option<String>,
    /// File of a namespace with three endpoints (`eth0`, `eth1`, `eth2`).
    pub pod: PathBuf,
    /// A directory with the root file systems `one`, `two` and `three`.
    pub images: PathBuf,
    /// A directory with the directories `common` and `data` and the file `config.file`.
    pub volumes: PathBuf,
    /// A disk with a root file system.
    pub root_disk: PathBuf,
    /// A block device with a file system, as the source of a volume.
    pub volume_disk: PathBuf,
    /// Numbers of a block device for `linux.devices`, where there is one.
    pub node: Option<(i64, i64)>,
    /// PCI functions, where there are any.
    pub vfio: Option<Vfio>,
}

/// PCI functions that a test may hand over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vfio {
    /// One for the VM's start, by its address.
    pub cold: String,
    /// A whole IOMMU group for a container.
    pub hot_group: u32,
}

/// One request of a runtime.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// `prepare_before_start_vm`.
    Prepare(Vec<ResourceConfig>),
    /// `start_vm`.
    Start,
    /// `setup_after_start_vm`.
    SetUp,
    /// `set_up_network`.
    Network(NetworkRequest),
    /// `set_up_rootfs`.
    Rootfs(RootfsRequest),
    /// `set_up_volumes`.
    Volumes(VolumesRequest),
    /// `set_up_devices`.
    Devices(Box<DevicesRequest>),
    /// `update_linux_resources`.
    Limits(ContainerId, Option<Box<oci_spec::runtime::LinuxResources>>, ResourceUpdate),
    /// `release_container`.
    Release(ContainerId),
    /// `save`.
    Save,
    /// `stop`.
    Stop,
    /// `cleanup`.
    Cleanup,
}

impl Command {
    /// Its name in reports.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Prepare(_) => "prepare",
            Self::Start => "start",
            Self::SetUp => "set-up",
            Self::Network(_) => "network",
            Self::Rootfs(_) => "rootfs",
            Self::Volumes(_) => "volumes",
            Self::Devices(_) => "devices",
            Self::Limits(..) => "limits",
            Self::Release(_) => "release",
            Self::Save => "save",
            Self::Stop => "stop",
            Self::Cleanup => "cleanup",
        }
    }

    /// Sends it and returns the reply as data.
    ///
    /// # Errors
    /// As the library.
    pub async fn send(self, sandbox: &SandboxHandle) -> Result<Value, SandboxError> {
        fn value<T: Serialize>(reply: T) -> Value {
            serde_json::to_value(reply).unwrap_or_default()
        }
        Ok(match self {
            Self::Prepare(resources) => value(sandbox.prepare_before_start_vm(resources).await?),
            Self::Start => value(sandbox.start_vm().await?),
            Self::SetUp => value(sandbox.setup_after_start_vm().await?),
            Self::Network(network) => value(sandbox.set_up_network(network).await?),
            Self::Rootfs(request) => value(sandbox.set_up_rootfs(request).await?),
            Self::Volumes(request) => value(sandbox.set_up_volumes(request).await?),
            Self::Devices(request) => value(sandbox.set_up_devices(*request).await?),
            Self::Limits(container, resources, update) => {
                value(sandbox.update_linux_resources(container, resources.map(|limits| *limits), update).await?)
            }
            Self::Release(container) => value(sandbox.release_container(container).await?),
            Self::Save => value(sandbox.save().await?),
            Self::Stop => value(sandbox.stop().await?),
            Self::Cleanup => value(sandbox.cleanup().await?),
        })
    }
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// A request.
    Ask(Command),
    /// Our process is killed; the next one finds what it left.
    Kill,
    /// Our process is killed; the next one takes the sandbox over, and the life goes on.
    TakeOver,
    /// A party dies while nothing is asked.
    Dies(Peer),
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask(command) => f.write_str(command.name()),
            Self::Kill => f.write_str("kill"),
            Self::TakeOver => f.write_str("take over"),
            Self::Dies(peer) => write!(f, "{} dies", peer.name()),
        }
    }
}

/// A life.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// `L1` to `L15`; `L10` has an `L10a` beside it.
    pub id: &'static str,
    /// What is in it, for people.
    pub title: &'static str,
    /// What the sandbox is created with.
    pub spec: SandboxSpec,
    /// What happens, in order. The last act is a clean-up.
    pub acts: Vec<Act>,
    /// Whether every step is interrupted, stopped or given up by its caller, one in each run.
    pub is_interrupted: bool,
}

impl Lifecycle {
    /// The sandbox of every life.
    ///
    /// # Panics
    /// Never: the name is one.
    pub fn sandbox() -> SandboxId {
        SandboxId::new("life").expect("a literal id")
    }
}
