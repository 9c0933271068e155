//! Why a sandbox could not do what it was asked.

use std::fmt;

use actor_shell::Refused;
use cgroup_actor::CgroupError;
use device_actor::DeviceError;
use network_actor::NetworkError;
use sandbox_model::adopt::AdoptError;
use sandbox_model::ledger::UndoReport;
use sandbox_model::lifecycle::{ActorName, LifecycleState};
use sandbox_model::{InvalidId, PortError, SandboxId};
use serde::{Deserialize, Serialize};
use sharefs_actor::ShareFsError;

use crate::cpu::CpuError;

/// Why a request to a sandbox failed.
///
/// `Display` gives one line; [`code`](Self::code) is stable, [`hint`](Self::hint) says what to try,
/// [`undone`](Self::undone) what was given back.
#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum SandboxError {
    /// The text is no id.
    #[error("{0}")]
    InvalidId(String),
    /// A sandbox of that id exists, or a crash has left something of one.
    #[error("sandbox {sandbox} exists already")]
    Exists {
        /// Which.
        sandbox: SandboxId,
    },
    /// There is no such sandbox.
    #[error("there is no sandbox {sandbox}")]
    Unknown {
        /// Which.
        sandbox: SandboxId,
    },
    /// The message does not fit the sandbox's state.
    #[error("{message} does not fit sandbox {sandbox}, which is {state}: it needs {needed}")]
    WrongState {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The message.
        message: String,
        /// Where the sandbox stands.
        state: LifecycleState,
        /// The states that it fits.
        needed: String,
    },
    /// The sandbox did not come to it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A step failed. What it had made was undone, as far as the report says.
    #[error(transparent)]
    Step(Box<StepFailure>),
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(PortError),
}

/// A failed step: the path from the step to the cause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepFailure {
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// The supervisor's step (`PrepareBeforeStartVm`).
    pub step: String,
    /// The actor in which it failed.
    pub actor: ActorName,
    /// What it was doing.
    pub doing: String,
    /// Why it failed.
    pub cause: Cause,
    /// What was undone.
    pub undo: UndoReport,
}

/// The cause of a failed step, for callers that match.
#[derive(Debug, Clone, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum Cause {
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The shared directory.
    #[error(transparent)]
    ShareFs(#[from] ShareFsError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// vCPUs or memory.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// A sandbox of an earlier process cannot be taken over.
    #[error(transparent)]
    Adopt(AdoptError),
    /// The VMM, the agent or the host, as the supervisor met them.
    #[error(transparent)]
    Port(#[from] PortError),
    /// An actor did not serve.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The request is wrong, whatever the state.
    #[error("{what}")]
    Invalid {
        /// Which value, and what would be right.
        what: String,
    },
    /// The VM ended while the step ran.
    #[error("the VM ended: {how}")]
    VmGone {
        /// Exit status or signal, and its last words.
        how: String,
    },
    /// The step's deadline passed.
    #[error("deadline exceeded after {waited_ms} ms; last sign of life: {last_words}")]
    DeadlinePassed {
        /// How long the step had gone on.
        waited_ms: u64,
        /// What the VMM and the guest said last.
        last_words: String,
    },
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sandbox {}: {}: {} actor: {}: {}", self.sandbox, self.step, self.actor, self.doing, self.cause)
    }
}

impl std::error::Error for StepFailure {}

impl From<StepFailure> for SandboxError {
    fn from(failure: StepFailure) -> Self {
        Self::Step(Box::new(failure))
    }
}

impl From<InvalidId> for SandboxError {
    fn from(error: InvalidId) -> Self {
        Self::InvalidId(error.to_string())
    }
}

impl SandboxError {
    /// A stable code for documents and scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidId(_) => "E0101",
            Self::Exists { .. } => "E0102",
            Self::Unknown { .. } => "E0103",
            Self::WrongState { .. } => "E0104",
            Self::Refused(_) => "E0105",
            Self::Store(_) => "E0106",
            Self::Step(failure) => match &failure.cause {
                Cause::Device(_) => "E0201",
                Cause::Network(_) => "E0202",
                Cause::ShareFs(_) => "E0203",
                Cause::Cgroup(_) => "E0204",
                Cause::Cpu(_) => "E0205",
                Cause::Port(_) => "E0206",
                Cause::Refused(_) => "E0207",
                Cause::Invalid { .. } => "E0208",
                Cause::VmGone { .. } => "E0209",
                Cause::DeadlinePassed { .. } => "E0210",
                Cause::Interrupted => "E0211",
                Cause::Adopt(_) => "E0212",
            },
        }
    }

    /// What to try.
    pub fn hint(&self) -> String {
        match self {
            Self::InvalidId(_) => "choose another id".to_owned(),
            Self::Exists { sandbox } => format!("sandboxctl cleanup {sandbox}, or choose another id"),
            Self::Unknown { .. } => "sandboxctl list".to_owned(),
            Self::WrongState { sandbox, .. } => format!("sandboxctl inspect {sandbox}"),
            Self::Refused(_) => "try again".to_owned(),
            Self::Store(_) => "sandboxctl doctor".to_owned(),
            Self::Step(failure) if !failure.undo.is_clean() => format!("sandboxctl cleanup {}", failure.sandbox),
            Self::Step(_) => "sandboxctl doctor".to_owned(),
        }
    }

    /// What was given back after the failure.
    pub fn undone(&self) -> Option<&UndoReport> {
        match self {
            Self::Step(failure) => Some(&failure.undo),
            _ => None,
        }
    }
}
