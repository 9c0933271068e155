//! rtnetlink, as far as it is needed: transactions of several requests in one `sendmsg`, and dumps.
//!
//! Messages are encoded by `netlink-packet-route`. What the kernel sends back is decoded message by
//! message, so that one with an attribute that nobody knows yet spoils itself and no other.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use sandbox_model::{ErrorKind, PortError, PortResult};

/// The kernel fills at most 32 KiB of one datagram of a dump.
const DATAGRAM_BYTES: usize = 64 * 1024;
/// Length of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// The kernel answers before `sendmsg` returns; silence means that an answer was lost.
const SILENCE_SECONDS_MAX: i64 = 2;

/// One request of a transaction.
#[derive(Debug)]
pub(super) struct Request {
    /// What is asked.
    pub(super) message: RouteNetlinkMessage,
    /// `NLM_F_*` beyond those of every request.
    pub(super) flags: u16,
}

/// The answer to one request: what it asked for, or the kernel's refusal.
pub(super) type Answer = Result<Vec<RouteNetlinkMessage>, Errno>;

/// A socket in the namespace of this thread. The kernel gives it an address with its first request.
pub(super) fn open() -> PortResult<OwnedFd> {
    let failed = |operation: &str| {
        let operation = operation.to_owned();
        move |errno: Errno| PortError::os(operation, "NETLINK_ROUTE", errno)
    };
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
        .map_err(failed("socket"))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(SILENCE_SECONDS_MAX))
        .map_err(failed("setsockopt(SO_RCVTIMEO)"))?;
    Ok(fd)
}

/// Sends all requests in one `sendmsg` and collects the answer to each. The kernel serves them in
/// their order, one after the other, and goes on past a refusal.
///
/// It is asked to acknowledge the last only: who of the others has not been refused by then has
/// succeeded.
pub(super) fn transact(socket: &OwnedFd, requests: Vec<Request>) -> PortResult<Vec<Answer>> {
    let mut bytes = Vec::new();
    let mut answers: Vec<Answer> = requests.iter().map(|_| Ok(Vec::new())).collect();
    let Some(last) = requests.len().checked_sub(1) else { return Ok(answers) };
    let first = sequence(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        let acknowledge = if index == last { NLM_F_ACK } else { 0 };
        let sequence = first.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX));
        encode(request.message, acknowledge | request.flags, sequence, &mut bytes);
    }
    transmit(socket, &bytes)?;
    let mut is_answered = false;
    while !is_answered {
        receive(socket, |header, payload| {
            let index = header.sequence_number.wrapping_sub(first) as usize;
            let Some(answer) = answers.get_mut(index) else {
                return Ok(());
            };
            if header.message_type == NLMSG_ERROR {
                is_answered |= index == last;
                if let Some(errno) = errno_of(payload) {
                    *answer = Err(errno);
                }
            } else if let Ok(found) = answer {
                found.extend(RouteNetlinkMessage::deserialize(header, payload).ok());
            }
            Ok(())
        })?;
    }
    Ok(answers)
}

/// Sends a request whose success has no answer. A refusal has one, which is there when `sendmsg`
/// returns; it is waited for unless `is_done` sees that there is none.
///
/// So the socket is free for others as soon as they see that it is done.
pub(super) fn tell(
    socket: &OwnedFd,
    request: Request,
    is_done: impl FnOnce() -> bool,
) -> PortResult<Result<(), Errno>> {
    let (mut bytes, sequence) = (Vec::new(), sequence(1));
    encode(request.message, request.flags, sequence, &mut bytes);
    transmit(socket, &bytes)?;
    if is_done() {
        return Ok(Ok(()));
    }
    let mut answer = None;
    while answer.is_none() {
        receive(socket, |header, payload| {
            if header.sequence_number == sequence && header.message_type == NLMSG_ERROR {
                answer = Some(errno_of(payload).map_or(Ok(()), Err));
            }
            Ok(())
        })?;
    }
    Ok(answer.unwrap_or(Ok(())))
}

/// Dumps what `message` asks for into `each`; one that cannot be decoded comes as a text.
///
/// Replies whether the dump is consistent: `false` if something changed while it was made.
pub(super) fn dump(
    socket: &OwnedFd,
    message: RouteNetlinkMessage,
    mut each: impl FnMut(Result<RouteNetlinkMessage, String>),
) -> PortResult<bool> {
    let (mut bytes, sequence) = (Vec::new(), sequence(1));
    encode(message, NLM_F_DUMP, sequence, &mut bytes);
    transmit(socket, &bytes)?;
    let (mut done, mut consistent) = (false, true);
    while !done {
        receive(socket, |header, payload| {
            if header.sequence_number != sequence {
                return Ok(());
            }
            consistent &= header.flags & NLM_F_DUMP_INTR == 0;
            match header.message_type {
                NLMSG_DONE | NLMSG_ERROR => {
                    done = true;
                    return errno_of(payload).map_or(Ok(()), |errno| Err(failed("netlink dump", errno)));
                }
                _ => each(RouteNetlinkMessage::deserialize(header, payload).map_err(|error| format!("{error:#}"))),
            }
            Ok(())
        })?;
    }
    Ok(consistent)
}

/// The next `count` sequence numbers, of which this returns the first. No two exchanges of this
/// process share one: what an earlier, abandoned exchange left unread does not answer a later one.
fn sequence(count: usize) -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed)
}

fn encode(message: RouteNetlinkMessage, flags: u16, sequence: u32, bytes: &mut Vec<u8>) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

fn transmit(socket: &OwnedFd, bytes: &[u8]) -> PortResult<()> {
    send(socket.as_raw_fd(), bytes, MsgFlags::empty()).map(drop).map_err(|errno| failed("sendmsg", errno))
}

thread_local! {
    /// Room for a datagram, made once for each thread.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; DATAGRAM_BYTES]);
}

/// Takes one datagram of the kernel's and hands out its messages. `each` must not take another.
fn receive(socket: &OwnedFd, each: impl FnMut(&NetlinkHeader, &[u8]) -> PortResult<()>) -> PortResult<()> {
    BUFFER.with_borrow_mut(|buffer| receive_into(buffer, socket, each))
}

fn receive_into(
    buffer: &mut [u8],
    socket: &OwnedFd,
    mut each: impl FnMut(&NetlinkHeader, &[u8]) -> PortResult<()>,
) -> PortResult<()> {
    let (length, sender) = match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), buffer) {
        Ok(received) => received,
        Err(Errno::EINTR) => return Ok(()),
        Err(errno) => return Err(failed("recvmsg", errno).doubtful()),
    };
    if sender.is_none_or(|sender| sender.pid() != 0) {
        return Ok(());
    }
    let mut rest = &buffer[..length];
    while rest.len() >= HEADER_BYTES {
        let broken =
            |_| PortError::new(ErrorKind::Protocol, "recvmsg", "NETLINK_ROUTE", "a malformed message").doubtful();
        let message = NetlinkBuffer::new_checked(rest).map_err(broken)?;
        let mut header = NetlinkHeader::default();
        header.length = message.length();
        header.message_type = message.message_type();
        header.flags = message.flags();
        header.sequence_number = message.sequence_number();
        each(&header, message.payload())?;
        let step = (message.length() as usize).next_multiple_of(4).max(HEADER_BYTES);
        rest = rest.get(step..).unwrap_or_default();
    }
    Ok(())
}

/// The kernel's number in an acknowledgement; `None` is success.
fn errno_of(payload: &[u8]) -> Option<Errno> {
    let code = payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
    (code != 0).then(|| Errno::from_raw(-code))
}

fn failed(operation: &str, errno: Errno) -> PortError {
    PortError::os(operation, "NETLINK_ROUTE", errno)
}
