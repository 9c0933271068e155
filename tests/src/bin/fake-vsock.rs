//! Takes the place of `vhost-device-vsock`, with a guest's agent behind it.

use std::path::PathBuf;
use std::process::ExitCode;

use lifecycle_tests::fake::serve_vsock;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1));
    let (Some(vhost), Some(hybrid)) = (value("--socket"), value("--uds-path")) else {
        eprintln!("usage: fake-vsock --guest-cid CID --socket PATH --uds-path PATH");
        return ExitCode::FAILURE;
    };
    match serve_vsock(&PathBuf::from(vhost), &PathBuf::from(hybrid)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
