//! As much of vhost-user as makes a daemon believe that a VM has come.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// `VHOST_USER_GET_FEATURES`.
const GET_FEATURES: u32 = 1;
/// Version 1 of the protocol, in a message's flags.
const VERSION: u32 = 1;
/// That a message is an answer, in its flags.
const REPLY: u32 = 1 << 2;
/// What every daemon offers: `VIRTIO_F_VERSION_1`.
const FEATURES: u64 = 1 << 32;
/// Request, flags and size, four bytes each.
const HEADER: usize = 12;
/// Longest time that a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

fn message(flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or_default();
    let mut bytes: Vec<u8> = [GET_FEATURES, VERSION | flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(payload);
    bytes
}

/// Asks the daemon for its features, as a VMM does first of all. One that answers has shut itself in.
///
/// # Errors
/// The daemon hangs up or does not answer.
pub(super) fn greet(daemon: &mut UnixStream) -> io::Result<()> {
    daemon.set_read_timeout(Some(PATIENCE))?;
    daemon.write_all(&message(0, &[]))?;
    let mut answer = [0; HEADER + 8];
    daemon.read_exact(&mut answer)
}

/// Answers what [`greet`] asks, and returns when the VM has gone.
///
/// # Errors
/// The socket fails.
pub(super) async fn answer(vmm: &mut tokio::net::UnixStream) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        match vmm.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let size = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let mut payload = vec![0; size.min(4096) as usize];
        vmm.read_exact(&mut payload).await?;
        if header[..4] == GET_FEATURES.to_ne_bytes() {
            vmm.write_all(&message(REPLY, &FEATURES.to_ne_bytes())).await?;
        }
    }
}
