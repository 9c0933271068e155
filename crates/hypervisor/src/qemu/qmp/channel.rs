//! The task that owns the socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sandbox_model::PassedFd;
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};

use super::lines::{LINE_MAX, Lines};
use super::{Command, Event};
use crate::qemu::ticket::Ticket;

/// Bytes that are read at once.
const READ: usize = 16 * 1024;
/// The longest event that is accepted: several are kept for slow listeners.
const EVENT_MAX: usize = 16 * 1024;
/// Characters that are kept of a peer's words.
const WORDS_MAX: usize = 512;

/// One command on its way.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: Command,
    pub(super) ticket: Ticket<Response>,
}

/// What QEMU said to a command.
#[derive(Debug)]
pub(super) enum Response {
    Return(Value),
    Error { class: String, description: String },
}

/// Why the channel has ended.
#[derive(Debug, Clone)]
pub(super) enum Ended {
    /// The peer closed it.
    Gone(String),
    /// The peer broke the protocol.
    Broken(String),
}

fn broken(cause: impl Into<String>) -> Ended {
    Ended::Broken(cause.into())
}

fn gone(error: &io::Error) -> Ended {
    Ended::Gone(format!("the control channel failed: {error}"))
}

#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    events: broadcast::Sender<Event>,
    lines: Lines,
    greeted: bool,
    last_id: u64,
    /// The command that QEMU works on. Its caller may be gone; its reply is awaited all the same.
    in_flight: Option<Ticket<Response>>,
}

impl Channel {
    pub(super) fn new(stream: UnixStream, events: broadcast::Sender<Event>) -> Self {
        Self { stream, events, lines: Lines::default(), greeted: false, last_id: 0, in_flight: None }
    }

    /// Serves until the peer ends it or the last hand on it is dropped.
    pub(super) async fn serve(mut self, mut requests: mpsc::Receiver<Request>, end: watch::Sender<Option<Ended>>) {
        let ended = tokio::select! {
            biased;
            // Also before the peer has greeted: it serves one connection, and somebody else may wait.
            () = end.closed() => return,
            ended = self.run(&mut requests) => ended,
        };
        if let Err(ended) = ended {
            tracing::debug!(?ended, "control channel ended");
            // Told before the tickets are dropped: whoever waits looks here for the cause.
            end.send_replace(Some(ended));
        }
    }

    async fn run(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), Ended> {
        let mut chunk = vec![0; READ];
        loop {
            tokio::select! {
                biased;
                // At most one is in flight, so what the VMM says is heard too.
                request = requests.recv(), if self.greeted && self.in_flight.is_none() => {
                    let Some(request) = request else { return Ok(()) };
                    self.send(request).await?;
                }
                ready = self.stream.readable() => {
                    ready.map_err(|error| gone(&error))?;
                    self.read(&mut chunk)?;
                }
            }
        }
    }

    fn read(&mut self, chunk: &mut [u8]) -> Result<(), Ended> {
        let count = match self.stream.try_read(chunk) {
            Ok(0) => return Err(Ended::Gone("QEMU closed the control channel".into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(gone(&error)),
        };
        self.lines.push(&chunk[..count]);
        loop {
            let line = self.lines.next_line().map_err(|_| broken(format!("a line longer than {LINE_MAX} bytes")))?;
            let Some(line) = line else { return Ok(()) };
            if line.is_empty() {
                continue;
            }
            let length = line.len();
            let message = serde_json::from_slice(line).map_err(|error| broken(format!("not JSON: {error}")))?;
            self.take(message, length)?;
        }
    }

    /// Takes one message of the peer.
    fn take(&mut self, mut message: Value, length: usize) -> Result<(), Ended> {
        if !self.greeted {
            self.greeted = message.get("QMP").is_some();
            return if self.greeted { Ok(()) } else { Err(broken("no greeting")) };
        }
        if let Some(name) = message.get("event").and_then(Value::as_str) {
            if length > EVENT_MAX {
                return Err(broken(format!("an event of {length} bytes")));
            }
            let event = Event { name: name.to_owned(), data: message["data"].take() };
            tracing::trace!(name = event.name, "event");
            // Nobody may be listening.
            let _ = self.events.send(event);
            return Ok(());
        }
        let response = if let Some(value) = message.get_mut("return") {
            Response::Return(value.take())
        } else if let Some(error) = message.get("error") {
            Response::Error { class: words(&error["class"]), description: words(&error["desc"]) }
        } else {
            return Err(broken("neither reply nor event"));
        };
        match self.in_flight.take() {
            Some(ticket) if message["id"] == self.last_id => ticket.answer(response),
            Some(_) => return Err(broken("a reply with a wrong id")),
            None => return Err(broken("a reply to no command")),
        }
        Ok(())
    }

    async fn send(&mut self, mut request: Request) -> Result<(), Ended> {
        if !request.ticket.begin() {
            return Ok(());
        }
        self.last_id += 1;
        let mut message = json!({ "execute": request.command.name(), "id": self.last_id });
        if !request.command.arguments.is_null() {
            message["arguments"] = request.command.arguments;
        }
        self.in_flight = Some(request.ticket);
        let mut line = message.to_string().into_bytes();
        line.push(b'\n');
        write(&self.stream, &line, request.command.fd).await.map_err(|error| gone(&error))
    }
}

/// Writes all of `line`; the descriptor goes with its first bytes.
async fn write(stream: &UnixStream, line: &[u8], mut fd: Option<PassedFd>) -> io::Result<()> {
    let mut sent = 0;
    while sent < line.len() {
        sent += stream
            .async_io(Interest::WRITABLE, || {
                let passed = fd.as_ref().and_then(|fd| fd.get()).map(|fd| [fd.as_fd()]);
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                if let Some(passed) = &passed {
                    ancillary.push(SendAncillaryMessage::ScmRights(passed));
                }
                Ok(sendmsg(stream, &[IoSlice::new(&line[sent..])], &mut ancillary, SendFlags::NOSIGNAL)?)
            })
            .await?;
        fd = None;
    }
    Ok(())
}

/// A peer's words for an error: bounded, without control characters.
fn words(value: &Value) -> String {
    let text = value.as_str().unwrap_or("no description");
    text.chars().take(WORDS_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
