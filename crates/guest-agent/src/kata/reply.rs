//! What an answer must be before a caller sees it: the guest may be hostile.

use agent_protocol::agent::{
    GuestDetailsResponse, OOMEvent, ReadStreamResponse, WaitProcessResponse, WriteStreamResponse,
};
use agent_protocol::types::Interface;
use sandbox_model::network::MacAddress;
use sandbox_model::{ContainerId, PortResult};

use super::failure::{Subject, first_line};
use crate::GuestDetails;

/// Sizes of memory blocks that Linux has, in bytes.
const BLOCK_MIN: u64 = 1 << 20;
const BLOCK_MAX: u64 = 64 << 30;

/// The longest version of an agent, in bytes.
const VERSION_LEN_MAX: usize = 128;

/// Output, at most `asked` bytes of it.
pub(super) fn output(subject: &Subject, reply: ReadStreamResponse, asked: u32) -> PortResult<Vec<u8>> {
    let got = reply.data.len();
    if u32::try_from(got).is_ok_and(|got| got <= asked) {
        Ok(reply.data)
    } else {
        Err(subject.broken(format!("{got} bytes came, {asked} were asked for")))
    }
}

/// The number of bytes taken, of `given`.
pub(super) fn taken(subject: &Subject, reply: &WriteStreamResponse, given: usize) -> PortResult<u32> {
    if usize::try_from(reply.len).is_ok_and(|taken| taken <= given) {
        Ok(reply.len)
    } else {
        Err(subject.broken(format!("{} bytes were taken, {given} were given", reply.len)))
    }
}

/// An exit code, or 128 + signal.
pub(super) fn status(subject: &Subject, reply: &WaitProcessResponse) -> PortResult<i32> {
    if (0..=255).contains(&reply.status) {
        Ok(reply.status)
    } else {
        Err(subject.broken(format!("exit status {} is not within 0..=255", reply.status)))
    }
}

/// What the guest says of itself.
pub(super) fn details(subject: &Subject, reply: GuestDetailsResponse) -> PortResult<GuestDetails> {
    let block = reply.mem_block_size_bytes;
    if block != 0 && !(block.is_power_of_two() && (BLOCK_MIN..=BLOCK_MAX).contains(&block)) {
        let wish = format!("0 or a power of two within {BLOCK_MIN}..={BLOCK_MAX}");
        return Err(subject.broken(format!("a memory block of {block} bytes is not {wish}")));
    }
    let version = reply.agent_details.into_option().unwrap_or_default().version;
    if version.len() > VERSION_LEN_MAX || !version.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        let shown = first_line(&version);
        return Err(subject.broken(format!("version {shown:?} is not at most {VERSION_LEN_MAX} printable bytes")));
    }
    Ok(GuestDetails { memory_block_bytes: block, agent_version: version })
}

/// The container that ran out of memory.
pub(super) fn oom(subject: &Subject, reply: &OOMEvent) -> PortResult<ContainerId> {
    ContainerId::new(&reply.container_id).map_err(|error| subject.broken(error.to_string()))
}

/// The Kata agent echoes the interface that it has changed.
pub(super) fn interface(subject: &Subject, reply: &Interface, asked: MacAddress) -> PortResult<()> {
    if reply.hwAddr.is_empty() || reply.hwAddr.eq_ignore_ascii_case(&asked.to_string()) {
        Ok(())
    } else {
        let shown = first_line(&reply.hwAddr);
        Err(subject.broken(format!("the answer is about interface {shown}")))
    }
}

#[cfg(test)]
mod tests {
    use agent_protocol::agent::AgentDetails;
    use protobuf::MessageField;
    use sandbox_model::ErrorKind;

    use super::*;

    fn subject() -> Subject {
        Subject::new("method", "object")
    }

    fn described(block: u64, version: &str) -> PortResult<GuestDetails> {
        let details = AgentDetails { version: version.to_owned(), ..Default::default() };
        let reply = GuestDetailsResponse {
            mem_block_size_bytes: block,
            agent_details: MessageField::some(details),
            ..Default::default()
        };
        super::details(&subject(), reply)
    }

    #[test]
    fn sizes_and_versions_are_sane() {
        for block in [0, 1 << 20, 128 << 20, 64 << 30] {
            assert_eq!(described(block, "4.1.0").unwrap().memory_block_bytes, block);
        }
        for block in [1, 4096, (128 << 20) + 1, 128 << 30, u64::MAX] {
            assert_eq!(described(block, "").unwrap_err().kind, ErrorKind::Protocol, "{block}");
        }
        for version in ["x".repeat(129), "4\n".to_owned(), "\x1b[2J".to_owned()] {
            assert_eq!(described(0, &version).unwrap_err().kind, ErrorKind::Protocol);
        }
        assert_eq!(super::details(&subject(), GuestDetailsResponse::new()).unwrap(), GuestDetails::default());
    }

    #[test]
    fn numbers_are_within_their_range() {
        let read = |len: usize| ReadStreamResponse { data: vec![0; len], ..Default::default() };
        assert_eq!(output(&subject(), read(4), 4).unwrap().len(), 4);
        assert_eq!(output(&subject(), read(5), 4).unwrap_err().kind, ErrorKind::Protocol);
        let wrote = |len| WriteStreamResponse { len, ..Default::default() };
        assert_eq!(taken(&subject(), &wrote(3), 3).unwrap(), 3);
        assert!(taken(&subject(), &wrote(4), 3).is_err());
        let ended = |status| WaitProcessResponse { status, ..Default::default() };
        assert_eq!(status(&subject(), &ended(137)).unwrap(), 137);
        assert!(status(&subject(), &ended(-1)).is_err() && status(&subject(), &ended(256)).is_err());
    }

    #[test]
    fn names_are_checked() {
        let event = |id: &str| OOMEvent { container_id: id.to_owned(), ..Default::default() };
        assert_eq!(oom(&subject(), &event("web")).unwrap().as_str(), "web");
        assert_eq!(oom(&subject(), &event("../../etc")).unwrap_err().kind, ErrorKind::Protocol);
        let mac = MacAddress([2, 0, 0, 0, 0, 0xab]);
        let reply = |text: &str| Interface { hwAddr: text.to_owned(), ..Default::default() };
        assert!(interface(&subject(), &reply("02:00:00:00:00:AB"), mac).is_ok());
        assert!(interface(&subject(), &reply("02:00:00:00:00:ac"), mac).is_err());
    }
}
