//! QMP, QEMU's control protocol: JSON lines over a unix socket.
//!
//! The peer is not trusted: a guest may have taken it over. Lines, events and queues are bounded,
//! every command has an id of its own and only one is in flight; a reply that nobody asked for, a
//! wrong id or anything that is not QMP closes the channel for good. Reconnecting means a new
//! object.

mod channel;
mod lines;
#[cfg(test)]
pub(super) mod peer;
pub mod probe;
#[cfg(test)]
mod tests;

use sandbox_model::{ErrorKind, Instant, PassedFd, PortError, PortResult};
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};

use self::channel::{Channel, Ended, Request, Response};
use super::ticket::{NoReply, ticket};

/// Commands that may wait for their turn.
const QUEUE: usize = 64;
/// Events that a slow listener may be behind before it loses the oldest.
const EVENTS: usize = 64;

/// What happened in QEMU.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    /// `DEVICE_DELETED`.
    pub(super) name: String,
    /// Its arguments.
    pub(super) data: Value,
}

/// A command of QMP.
#[derive(Debug, Clone)]
pub(super) struct Command {
    name: &'static str,
    arguments: Value,
    fd: Option<PassedFd>,
}

impl Command {
    /// A command with arguments; `Value::Null` for none.
    pub(super) fn new(name: &'static str, arguments: Value) -> Self {
        Self { name, arguments, fd: None }
    }

    /// The same command, with a descriptor that travels beside it.
    pub(super) fn with_fd(mut self, fd: PassedFd) -> Self {
        self.fd = Some(fd);
        self
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

/// A hand on the channel. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Qmp {
    requests: mpsc::Sender<Request>,
    events: broadcast::WeakSender<Event>,
    ended: watch::Receiver<Option<Ended>>,
}

impl Qmp {
    /// Serves `stream` by a task of the current runtime. Commands wait until QEMU has greeted.
    pub(super) fn new(stream: UnixStream) -> Self {
        let (requests, asked) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(EVENTS);
        let (end, ended) = watch::channel(None);
        let weak = events.downgrade();
        tokio::spawn(Channel::new(stream, events).serve(asked, end));
        Self { requests, events: weak, ended }
    }

    /// Listens from now on; `None` once the channel has ended.
    pub(super) fn listen(&self) -> Option<broadcast::Receiver<Event>> {
        self.events.upgrade().map(|events| events.subscribe())
    }

    /// Executes one command on `object` (a name for errors).
    ///
    /// # Errors
    /// QEMU's own words; `PeerGone` or `Protocol` when the channel has ended; `TimedOut`, whose
    /// outcome is `NotDone` when the command was never sent.
    pub(super) async fn execute(&self, command: Command, object: &str, deadline: Instant) -> PortResult<Value> {
        let name = command.name;
        let (ticket, mut claim) = ticket();
        let request = Request { command, ticket };
        let answer = async {
            match tokio::time::timeout_at(deadline, self.requests.send(request)).await {
                Ok(Ok(())) => claim.begun(deadline).await?,
                Ok(Err(_)) => return Err(NoReply::NotBegun { gone: true }),
                Err(_) => return Err(NoReply::NotBegun { gone: false }),
            }
            claim.reply_by(deadline).await
        };
        match answer.await {
            Ok(Response::Return(value)) => Ok(value),
            Ok(Response::Error { class, description }) => {
                Err(PortError::new(kind_of(&class, &description), name, object, description))
            }
            Err(NoReply::NotBegun { gone: false }) => Err(PortError::new(
                ErrorKind::TimedOut,
                name,
                object,
                "not sent: QEMU has not answered what was before",
            )),
            Err(NoReply::Overdue) => Err(PortError::timed_out(name, object, "no answer of QEMU")),
            Err(NoReply::NotBegun { gone: true }) => Err(self.end(name, object)),
            Err(NoReply::Gone) => Err(self.end(name, object).doubtful()),
        }
    }

    fn end(&self, name: &str, object: &str) -> PortError {
        match &*self.ended.borrow() {
            Some(Ended::Broken(cause)) => PortError::new(ErrorKind::Protocol, name, object, cause.clone()),
            Some(Ended::Gone(cause)) => PortError::new(ErrorKind::PeerGone, name, object, cause.clone()),
            None => PortError::new(ErrorKind::PeerGone, name, object, "the control channel's task is gone"),
        }
    }
}

/// QEMU has few error classes; what a caller must tell apart is in the description.
fn kind_of(class: &str, description: &str) -> ErrorKind {
    match class {
        "DeviceNotFound" => ErrorKind::NotFound,
        "CommandNotFound" => ErrorKind::Unsupported,
        _ if description.contains("uplicate") || description.contains("already exists") => ErrorKind::Exists,
        _ if description.contains("busy") || description.contains("in use") => ErrorKind::Busy,
        _ if description.contains("not found") => ErrorKind::NotFound,
        _ => ErrorKind::Refused,
    }
}
