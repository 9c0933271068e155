//! The control channel by itself, for who wants to see what it makes of any bytes.

use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::{Command, Qmp};

pub use super::lines::LINE_MAX;

/// Commands that are sent meanwhile.
const COMMANDS: usize = 4;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// What was made of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// Commands that were sent or wanted to be.
    pub commands: usize,
    /// Of these, those that were answered.
    pub answers: usize,
    /// Bytes of the longest event that a listener got.
    pub longest_event: usize,
}

/// Says `pieces` to a channel that sends commands meanwhile.
///
/// # Panics
/// When no socket can be made.
pub async fn control_channel(pieces: &[&[u8]]) -> Heard {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets needs descriptors only");
    let qmp = Qmp::new(ours);
    let mut events = qmp.listen();
    let said: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let peer = tokio::spawn(async move {
        for piece in said {
            // A channel that has ended hears no more.
            if theirs.write_all(&piece).await.is_err() {
                break;
            }
        }
        drop(theirs);
    });
    let mut heard = Heard::default();
    for _ in 0..COMMANDS {
        heard.commands += 1;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let asked = qmp.execute(Command::new("query-status", Value::Null), "vm", deadline).await;
        heard.answers += usize::from(asked.is_ok());
    }
    while let Some(Ok(event)) = events.as_mut().map(tokio::sync::broadcast::Receiver::try_recv) {
        heard.longest_event = heard.longest_event.max(event.name.len() + event.data.to_string().len());
    }
    peer.abort();
    heard
}
