//! The VMM's end of QMP: JSON lines, with descriptors beside them.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::vmm::{Machine, Refusal};

/// Bytes that one read takes.
const CHUNK: usize = 64 * 1024;
/// Descriptors that one read takes.
const FDS: usize = 8;

/// Serves one client of `machine` until it hangs up or the machine ends: whether it has ended.
///
/// # Errors
/// The socket fails.
pub async fn serve(stream: &mut UnixStream, machine: &mut Machine) -> io::Result<bool> {
    let version = json!({ "qemu": { "major": 7, "minor": 2, "micro": 22 }, "package": "stand-in" });
    say(stream, &json!({ "QMP": { "version": version, "capabilities": ["oob"] } })).await?;
    let mut heard = Vec::new();
    let mut passed = VecDeque::new();
    let mut is_open = false;
    loop {
        while let Some(end) = heard.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = heard.drain(..=end).collect();
            let Ok(command) = serde_json::from_slice::<Value>(&line) else {
                let error = Refusal::generic("JSON parse error, expecting value");
                say(stream, &json!({ "error": error.json() })).await?;
                continue;
            };
            let name = command["execute"].as_str().unwrap_or_default();
            let answer = match name {
                "qmp_capabilities" => {
                    is_open = true;
                    Ok(json!({}))
                }
                _ if !is_open => Err(Refusal::unknown(&format!(
                    "Expecting capabilities negotiation with 'qmp_capabilities', not {name}"
                ))),
                _ => machine.execute(name, &command["arguments"], &mut passed),
            };
            let mut reply = match answer {
                Ok(value) => json!({ "return": value }),
                Err(refusal) => json!({ "error": refusal.json() }),
            };
            if let Some(id) = command.get("id") {
                reply["id"] = id.clone();
            }
            say(stream, &reply).await?;
            for event in machine.take_events() {
                say(stream, &event).await?;
            }
            if machine.has_ended() {
                return Ok(true);
            }
        }
        if !hear(stream, &mut heard, &mut passed).await? {
            return Ok(false);
        }
    }
}

async fn say(stream: &mut UnixStream, message: &Value) -> io::Result<()> {
    let mut line = message.to_string().into_bytes();
    line.extend(b"\r\n");
    stream.write_all(&line).await
}

/// Reads once; whether the client is still there.
async fn hear(stream: &UnixStream, heard: &mut Vec<u8>, passed: &mut VecDeque<OwnedFd>) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    let count = stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let read =
                recvmsg(stream, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    passed.extend(fds);
                }
            }
            Ok(read)
        })
        .await?;
    heard.extend(&chunk[..count]);
    Ok(count > 0)
}
