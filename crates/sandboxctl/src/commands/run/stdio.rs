//! Output of the container to us, input from us to it.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use guest_agent::{GuestAgent, ProcessRef, ReadOutput, WriteInput};
use sandbox_model::{ErrorKind, Instant, Secret};
use serde_json::json;
use tokio::sync::mpsc;

use crate::output::progress::Progress;

/// A read or write moves at most so much.
const CHUNK_BYTES: u32 = 64 * 1024;
/// For what may never come: a container may be silent for as long as it likes.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Which of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

/// A deadline for what may never come.
pub(super) fn forever() -> Instant {
    Instant::now() + FOREVER
}

/// Copies an output to ours until its end.
pub(super) async fn pump(agent: Arc<dyn GuestAgent>, process: ProcessRef, stream: Stream, progress: Progress) {
    loop {
        let request = ReadOutput { process: process.clone(), len: CHUNK_BYTES };
        let read = match stream {
            Stream::Out => agent.read_stdout(request, forever()).await,
            Stream::Err => agent.read_stderr(request, forever()).await,
        };
        match read {
            Ok(bytes) if bytes.is_empty() => return,
            Ok(bytes) => emit(stream, &bytes, progress),
            Err(error) => {
                // The end of the process or of the guest ends its output too; who waits for it reports.
                tracing::debug!("{stream:?} ends: {error}");
                return;
            }
        }
    }
}

fn emit(stream: Stream, bytes: &[u8], progress: Progress) {
    if progress.is_json() {
        let name = if stream == Stream::Out { "stdout" } else { "stderr" };
        progress.event(json!({"event": "output", "stream": name, "text": String::from_utf8_lossy(bytes)}));
        return;
    }
    // Who reads us may have gone (`| head`); the container need not care.
    let written = match stream {
        Stream::Out => {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        }
        Stream::Err => std::io::stderr().lock().write_all(bytes),
    };
    drop(written);
}

/// Copies our input to the container until its end. The thread that reads cannot be interrupted: it
/// ends with the process.
pub(super) async fn feed(agent: Arc<dyn GuestAgent>, process: ProcessRef) {
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(4);
    let reader = std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        loop {
            match std::io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(length) if sender.blocking_send(buffer[..length].to_vec()).is_ok() => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    if let Err(error) = reader {
        tracing::warn!("standard input is not forwarded: {error}");
    }
    while let Some(chunk) = chunks.recv().await {
        if !write_all(&*agent, &process, chunk).await {
            return;
        }
    }
    if let Err(error) = agent.close_stdin(process, Instant::now() + Duration::from_secs(30)).await {
        tracing::debug!("close_stdin: {error}");
    }
}

async fn write_all(agent: &dyn GuestAgent, process: &ProcessRef, mut data: Vec<u8>) -> bool {
    while !data.is_empty() {
        let request = WriteInput { process: process.clone(), data: Secret::new(data.clone()) };
        match agent.write_stdin(request, forever()).await {
            // A guest that says it took more than it was given is not believed.
            Ok(taken) => drop(data.drain(..(taken as usize).min(data.len()))),
            Err(error) if error.kind == ErrorKind::Busy => tokio::task::yield_now().await,
            Err(error) => {
                tracing::debug!("standard input ends: {error}");
                return false;
            }
        }
    }
    true
}
