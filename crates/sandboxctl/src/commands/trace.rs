// STUB
pub(crate) fn trace(_: &crate::cli::TraceCommand) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
