//! The resource plane of a microVM sandbox runtime.
//!
//! Everything around a VM that a container needs is set up in order, changed while the VM runs, and
//! taken away without a trace: devices, network, shared files, root file systems and volumes,
//! cgroups, vCPUs and memory. Each is an actor; a supervisor for each sandbox tells them what to do
//! and keeps a ledger of what was made.
//!
//! A runtime starts a [`ResourceSystem`], creates sandboxes and drives each through its
//! [`SandboxHandle`]:
//!
//! ```no_run
//! # async fn example(ports: resource_actors::Ports) -> Result<(), Box<dyn std::error::Error>> {
//! use resource_actors::{ResourceSystem, SandboxSpec};
//! use sandbox_model::{SandboxId, config::SandboxConfig};
//!
//! let system = ResourceSystem::builder(ports).state_dir("/run/resource-actors").start()?;
//! let spec = SandboxSpec { id: SandboxId::new("pod-1")?, config: SandboxConfig::default().into(), cgroups_path: None };
//! let sandbox = system.create_sandbox(spec).await?;
//! sandbox.prepare_before_start_vm(vec![]).await?;
//! sandbox.start_vm().await?;
//! let report = sandbox.cleanup().await?;
//! assert!(report.is_clean());
//! system.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Process contract
//!
//! The library installs no logger, panic hook or signal handler, changes neither umask, working
//! directory, environment, limits nor the network namespace of your threads, starts the number of
//! threads that it was told, opens files only below its state directory and where a request says so,
//! and starts only the programs that the configuration names.
#![forbid(unsafe_code)]

mod assembly;
mod bells;
pub mod cpu;
pub mod error;
pub mod handle;
pub mod host;
pub mod ledger;
pub mod planning;
pub mod supervisor;
pub mod system;
pub mod trace;

pub use actor_shell::{Figures, InFlight};
pub use error::{Cause, SandboxError, StepFailure};
pub use handle::SandboxHandle;
pub use supervisor::SavedSandbox;
pub use system::{Ports, Recovered, ResourceSystem, ResourceSystemBuilder, SandboxSpec};
