//! The commands of a trace, sent again by their names.

use std::time::Duration;

use actor_shell::{Ask, Request, Serve};
use futures::future::BoxFuture;
use sandbox_model::Instant;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::handle::SandboxHandle;
use crate::supervisor::{
    Adopt, Cleanup, DaemonEnded, PrepareBeforeStartVm, ReleaseContainer, Save, SetUpDevices, SetUpNetwork, SetUpRootfs,
    SetUpVolumes, SetupAfterStartVm, StartVm, Stop, StoragesForSandbox, Supervisor, UpdateLinuxResources, VmExited,
};

/// Commands that come from the world: something has ended by itself. A simulation has its own.
pub const NEWS: [&str; 2] = [VmExited::NAME, DaemonEnded::NAME];

/// Sends the supervisor of `handle` the command `message`, as its `Received` record has it. The future
/// is the reply, as its `Replied` record has it; nothing is sent before it is polled.
///
/// # Errors
/// The command is not known, or `request` does not fit it.
pub fn send(handle: &SandboxHandle, message: &str, request: Value) -> Result<BoxFuture<'static, Value>, String> {
    macro_rules! dispatch {
        ($($request:ident)*) => {
            match message {
                $(stringify!($request) => ask::<$request>(handle.clone(), request),)*
                _ => Err(format!("unknown message {message}")),
            }
        };
    }
    dispatch!(
        PrepareBeforeStartVm StartVm SetupAfterStartVm SetUpNetwork StoragesForSandbox SetUpRootfs SetUpVolumes
        SetUpDevices UpdateLinuxResources ReleaseContainer Stop Cleanup Save Adopt VmExited DaemonEnded
    )
}

fn ask<R>(handle: SandboxHandle, request: Value) -> Result<BoxFuture<'static, Value>, String>
where
    R: Request + DeserializeOwned,
    Supervisor: Serve<R>,
{
    let request: R = serde_json::from_value(request).map_err(|error| error.to_string())?;
    Ok(Box::pin(async move {
        let deadline = Instant::now() + deadline_of(&handle, R::NAME);
        let reply = handle.supervisor.ask(request, Ask { deadline, cause: None }).await;
        serde_json::to_value(&reply).unwrap_or_else(|error| Value::String(error.to_string()))
    }))
}

/// As the handle's own calls have it.
fn deadline_of(handle: &SandboxHandle, message: &str) -> Duration {
    let deadlines = &handle.config.runtime.deadlines;
    Duration::from_millis(match message {
        Stop::NAME => deadlines.step_ms + deadlines.undo_ms,
        Cleanup::NAME => deadlines.undo_ms * 3,
        news if NEWS.contains(&news) => 3_600_000,
        _ => deadlines.step_ms,
    })
}
