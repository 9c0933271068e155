//! What a reader sees without waiting for any actor.

use serde::{Deserialize, Serialize};

use crate::SandboxId;
use crate::lifecycle::LifecycleState;

/// A sandbox as its supervisor last published it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// Where it stands.
    pub state: LifecycleState,
    /// The step that is being performed, if any.
    pub step: Option<StepStatus>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Objects that exist or may exist.
    pub objects: usize,
    /// Process id of the VMM, while it runs.
    pub vmm_pid: Option<i32>,
    /// Containers that hold something.
    pub containers: usize,
    /// Counts the publications.
    pub revision: u64,
}

impl SandboxStatus {
    /// A sandbox that has just been created.
    pub fn new(sandbox: SandboxId) -> Self {
        Self {
            sandbox,
            state: LifecycleState::Created,
            step: None,
            failure: None,
            objects: 0,
            vmm_pid: None,
            containers: 0,
            revision: 0,
        }
    }
}

/// A step in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStatus {
    /// The message that is served (`StartVm`).
    pub step: String,
    /// What it waits for now (`virtiofsd ready`), if more is known.
    pub waiting_for: String,
    /// Milliseconds after the sandbox was created.
    pub since_ms: u64,
}
