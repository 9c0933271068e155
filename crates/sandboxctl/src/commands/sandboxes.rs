// STUB
use crate::cli::{CleanupArgs, Global};
use crate::output::Failure;
use sandbox_model::SandboxId;
pub(crate) fn list(_: &Global, _: bool) -> Result<(), Failure> {
    Ok(())
}
pub(crate) fn inspect(_: &Global, _: &SandboxId, _: bool) -> Result<(), Failure> {
    Ok(())
}
pub(crate) fn cleanup(_: &Global, _: &CleanupArgs) -> Result<(), Failure> {
    Ok(())
}
