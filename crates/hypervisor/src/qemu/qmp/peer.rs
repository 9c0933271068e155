//! The other end of a control channel, for tests.

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

pub(in crate::qemu) const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

/// What stands in for QEMU.
#[derive(Debug)]
pub(in crate::qemu) struct Peer(pub(super) BufReader<UnixStream>);

impl Peer {
    /// Our end and the peer's.
    pub(in crate::qemu) fn pair() -> (UnixStream, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Self(BufReader::new(theirs)))
    }

    pub(in crate::qemu) async fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    pub(in crate::qemu) async fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Hears a command and answers `reply` with its id.
    pub(in crate::qemu) async fn answer(&mut self, mut reply: Value) -> Value {
        let command = self.hear().await;
        reply["id"] = command["id"].clone();
        self.say(&reply.to_string()).await;
        command
    }
}
