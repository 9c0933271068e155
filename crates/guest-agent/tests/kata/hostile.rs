use std::sync::Arc;

use agent_protocol::agent::ReadStreamResponse;
use guest_agent::WriteInput;
use sandbox_model::{ErrorKind, Outcome, Secret};

use super::fake::{Fake, Front, answer, frame, serving};
use super::*;

/// An agent that is healthy, and answers all else with what `make` makes.
async fn raw(make: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> Fake {
    let answer = move |stream, method: &str| match method {
        "Check" => Some(serving(stream)),
        _ => Some(make(stream)),
    };
    Fake::start(vec![Front::Raw(Arc::new(answer))]).await
}

fn data(len: usize) -> ReadStreamResponse {
    ReadStreamResponse { data: vec![b'x'; len], ..Default::default() }
}

/// Bytes that look like nothing.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test]
async fn what_breaks_the_stream_ends_the_connection() {
    type Make = fn(u32) -> Vec<u8>;
    let table: [(&str, Make); 6] = [
        ("an oversize answer", |stream| answer(stream, &data(1 << 20))),
        ("an endless length", |stream| [&[0xff; 4][..], &stream.to_be_bytes(), &[2, 0]].concat()),
        ("a request", |stream| frame(stream, 1, b"")),
        ("a piece of a stream", |stream| frame(stream, 3, b"x")),
        ("no type at all", |stream| frame(stream, 0xee, b"x")),
        ("noise", |_| [&[0x7f][..], &noise(4096)].concat()),
    ];
    for (what, make) in table {
        let fake = raw(make).await;
        let agent = connected(&fake).await;
        let error = agent.read_stdout(read("web", 9), soon()).await.unwrap_err();
        assert_eq!((error.kind, error.outcome), (ErrorKind::Protocol, Outcome::Doubtful), "{what}: {error}");
        let after = agent.check((), soon()).await.unwrap_err();
        assert_eq!(after.kind, ErrorKind::PeerGone, "{what}: {after}");
        agent.connect(fake.address(), soon()).await.unwrap();
        agent.check((), soon()).await.unwrap();
    }
}

#[tokio::test]
async fn what_breaks_one_answer_fails_one_call() {
    type Make = fn(u32) -> Vec<u8>;
    let deep: Make = |stream| {
        // Groups in groups, which a careless parser follows until its stack ends.
        frame(stream, 2, &[0x0b; 200_000])
    };
    let table: [(&str, Make); 4] = [
        ("no protobuf", |stream| frame(stream, 2, &[0xff; 64])),
        ("a text that is no UTF-8", |stream| frame(stream, 2, &[0x0a, 4, 0x12, 2, 0xff, 0xff])),
        ("endless groups", deep),
        ("a longer read than asked", |stream| answer(stream, &data(10))),
    ];
    for (what, make) in table {
        let fake = raw(make).await;
        let agent = connected(&fake).await;
        let error = agent.read_stdout(read("web", 9), soon()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol, "{what}: {error}");
        assert!(error.cause.chars().count() <= 300, "{what}: {error}");
        agent.check((), soon()).await.unwrap();
    }
}

#[tokio::test]
async fn answers_that_nobody_asked_for_are_dropped() {
    let fake = raw(|stream| {
        let mut bytes = Vec::new();
        for other in (0..50_000).filter(|other| *other != stream) {
            bytes.extend(frame(other, 2, b""));
        }
        let wanted = answer(stream, &data(3));
        bytes.extend([&wanted[..], &wanted].concat());
        bytes
    })
    .await;
    let agent = connected(&fake).await;
    for _ in 0..3 {
        assert_eq!(agent.read_stdout(read("web", 9), soon()).await.unwrap(), b"xxx");
    }
}

#[tokio::test]
async fn an_answer_that_comes_late_is_not_the_next_ones() {
    let last = std::sync::atomic::AtomicU32::new(0);
    let fake = raw(move |stream| match last.swap(stream, std::sync::atomic::Ordering::Relaxed) {
        // The first call gets something that is no answer to it.
        0 => frame(stream + 1000, 2, b""),
        late => [answer(late, &data(9)), answer(stream, &data(3))].concat(),
    })
    .await;
    let agent = connected(&fake).await;
    assert_eq!(agent.read_stdout(read("web", 9), within(50)).await.unwrap_err().kind, ErrorKind::TimedOut);
    for _ in 0..3 {
        assert_eq!(agent.read_stdout(read("web", 9), soon()).await.unwrap(), b"xxx");
    }
}

#[tokio::test]
async fn an_answer_to_another_call_is_no_answer() {
    let fake = raw(|stream| answer(stream + 2, &data(3))).await;
    let agent = connected(&fake).await;
    let error = agent.read_stdout(read("web", 9), within(50)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::TimedOut, "{error}");
    agent.check((), soon()).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_dies_is_gone() {
    for half in [Vec::new(), frame(1, 2, &[0; 64])[..20].to_vec()] {
        let make = move |_| half.clone();
        let fake = raw(make).await;
        let agent = connected(&fake).await;
        let reading = agent.read_stdout(read("web", 9), within(200));
        let error = reading.await.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::PeerGone | ErrorKind::TimedOut), "{error}");
        assert_eq!(error.outcome, Outcome::Doubtful);
    }
}

#[tokio::test]
async fn an_agent_that_does_not_read_holds_nobody_up() {
    let fake = Fake::start(vec![Front::Deaf]).await;
    let agent = connected(&fake).await;
    let written = WriteInput { process: process("web"), data: Secret::new(vec![0; 3 << 20]) };
    let error = agent.write_stdin(written, within(100)).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::Doubtful), "{error}");
    // Half a request is on its way, so nothing more can be said on this connection.
    let after = agent.check((), within(1_000)).await.unwrap_err();
    assert_eq!(after.kind, ErrorKind::PeerGone, "{after}");
}
