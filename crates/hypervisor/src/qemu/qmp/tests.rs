//! A scripted peer on the other end, polite and hostile.

use std::time::Duration;

use sandbox_model::Outcome;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::peer::{GREETING, Peer};
use super::*;

fn silent() -> (Qmp, Peer) {
    let (ours, peer) = Peer::pair();
    (Qmp::new(ours), peer)
}

async fn greeted() -> (Qmp, Peer) {
    let (qmp, mut peer) = silent();
    peer.say(GREETING).await;
    (qmp, peer)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(50)
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

async fn ask(qmp: &Qmp, deadline: Instant) -> PortResult<Value> {
    qmp.execute(Command::new("query-status", Value::Null), "vm", deadline).await
}

#[tokio::test]
async fn replies_errors_and_events_find_their_way() {
    let (qmp, mut peer) = greeted().await;
    let mut events = qmp.listen().unwrap();
    let told = tokio::spawn(async move {
        peer.say(r#"{"event": "RESUME", "data": {"x": 1}, "timestamp": {}}"#).await;
        let first = peer.answer(json!({"return": {"running": true}})).await;
        peer.answer(json!({"error": {"class": "DeviceNotFound", "desc": "Device 'd\u{7}' not found"}})).await;
        (first, peer)
    });
    assert_eq!(ask(&qmp, later()).await.unwrap(), json!({"running": true}));
    let command = Command::new("device_del", json!({"id": "d"}));
    let error = qmp.execute(command, "disk d", later()).await.unwrap_err();
    assert_eq!(error.to_string(), "device_del disk d: Device 'd\u{fffd}' not found");
    assert!(error.is_absent());
    assert_eq!(events.recv().await.unwrap(), Event { name: "RESUME".into(), data: json!({"x": 1}) });
    assert_eq!(told.await.unwrap().0, json!({"execute": "query-status", "id": 1}));
}

#[tokio::test]
async fn one_command_is_in_flight_and_a_late_reply_harms_nobody() {
    let (qmp, mut peer) = greeted().await;
    let first = ask(&qmp, soon()).await.unwrap_err();
    assert_eq!((first.kind, first.outcome), (ErrorKind::TimedOut, Outcome::Doubtful));
    // The second is never sent while the first hangs, and says so.
    let second = ask(&qmp, soon()).await.unwrap_err();
    assert_eq!((second.kind, second.outcome), (ErrorKind::TimedOut, Outcome::NotDone));
    peer.answer(json!({"return": "late"})).await;
    let answered = tokio::spawn(async move { peer.answer(json!({"return": "third"})).await });
    assert_eq!(ask(&qmp, later()).await.unwrap(), json!("third"));
    assert_eq!(answered.await.unwrap()["id"], 2, "the second command was dropped unsent");
}

#[tokio::test]
async fn a_caller_that_is_dropped_leaves_the_channel_usable() {
    let (qmp, mut peer) = greeted().await;
    let caller = tokio::spawn({
        let qmp = qmp.clone();
        async move { ask(&qmp, later()).await }
    });
    let command = peer.hear().await;
    caller.abort();
    assert!(caller.await.is_err());
    peer.say(&json!({"return": {}, "id": command["id"]}).to_string()).await;
    let answered = tokio::spawn(async move { peer.answer(json!({"return": 2})).await });
    assert_eq!(ask(&qmp, later()).await.unwrap(), json!(2));
    answered.await.unwrap();
}

#[tokio::test]
async fn a_descriptor_travels_with_its_command() {
    use std::io::{IoSliceMut, Read};
    use std::mem::MaybeUninit;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let qmp = Qmp::new(ours);
    let received = tokio::task::spawn_blocking(move || {
        let mut theirs = theirs.into_std().unwrap();
        theirs.set_nonblocking(false).unwrap();
        std::io::Write::write_all(&mut theirs, format!("{GREETING}\n").as_bytes()).unwrap();
        let mut bytes = [0; 512];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&theirs, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags).unwrap();
        let fds: Vec<_> = ancillary
            .drain()
            .filter_map(|message| match message {
                rustix::net::RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        std::io::Write::write_all(&mut theirs, b"{\"return\": {}, \"id\": 1}\n").unwrap();
        fds
    });
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"disk").unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let command = Command::new("add-fd", json!({})).with_fd(PassedFd::new(file.into()));
    qmp.execute(command, "disk", later()).await.unwrap();
    let mut fds = received.await.unwrap();
    assert_eq!(fds.len(), 1);
    let mut text = String::new();
    std::fs::File::from(fds.remove(0)).read_to_string(&mut text).unwrap();
    assert_eq!(text, "disk");
}

#[tokio::test]
async fn what_is_not_qmp_ends_the_channel_for_good() {
    let deep = format!(r#"{{"return": {}"#, "[".repeat(100_000));
    let long_event = json!({"event": "X", "data": "x".repeat(20_000)}).to_string();
    for (hostile, cause) in [
        (r#"{"return": {}, "id": 7}"#, "a reply with a wrong id"),
        (r#"{"return": {}}"#, "a reply with a wrong id"),
        (r#"{"hello": 1}"#, "neither reply nor event"),
        ("[]", "neither reply nor event"),
        ("garbage", "not JSON"),
        (&deep, "not JSON: recursion limit exceeded"),
        (&long_event, "an event of"),
    ] {
        let (qmp, mut peer) = greeted().await;
        let told = tokio::spawn({
            let hostile = hostile.to_owned();
            async move {
                peer.hear().await;
                peer.say(&hostile).await;
                peer
            }
        });
        let error = ask(&qmp, later()).await.unwrap_err();
        assert_eq!((error.kind, error.outcome), (ErrorKind::Protocol, Outcome::Doubtful), "{hostile:.40}");
        assert!(error.cause.starts_with(cause), "{}", error.cause);
        let again = ask(&qmp, later()).await.unwrap_err();
        assert_eq!((again.kind, again.outcome), (ErrorKind::Protocol, Outcome::NotDone));
        assert!(qmp.listen().is_none());
        told.await.unwrap();
    }
}

#[tokio::test]
async fn a_reply_to_no_command_and_a_wrong_greeting_end_it_too() {
    let (qmp, mut peer) = greeted().await;
    peer.say(r#"{"return": {}, "id": 0}"#).await;
    while qmp.listen().is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&qmp, later()).await.unwrap_err().cause, "a reply to no command");

    let (qmp, mut peer) = silent();
    peer.say(r#"{"return": {}, "id": 1}"#).await;
    assert_eq!(ask(&qmp, later()).await.unwrap_err().cause, "no greeting");

    let (qmp, _peer) = silent();
    let error = ask(&qmp, soon()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::NotDone));
}

#[tokio::test]
async fn an_endless_line_ends_it_within_the_bound() {
    let (qmp, mut peer) = greeted().await;
    let flood = tokio::spawn(async move {
        let chunk = [b'['; 64 * 1024];
        let mut written = 0_usize;
        // Ends when our side closes: a GiB would take as long as it takes.
        while peer.0.get_mut().write_all(&chunk).await.is_ok() {
            written += chunk.len();
        }
        written
    });
    let error = ask(&qmp, later()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol);
    assert!(flood.await.unwrap() < 4 << 20);
}

#[tokio::test]
async fn a_million_events_neither_stop_commands_nor_pile_up() {
    let (qmp, mut peer) = greeted().await;
    let mut events = qmp.listen().unwrap();
    let flood = tokio::spawn(async move {
        let batch = "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 0}}\n".repeat(1000);
        for _ in 0..1000 {
            peer.0.get_mut().write_all(batch.as_bytes()).await.unwrap();
        }
        peer.answer(json!({"return": {}})).await;
    });
    ask(&qmp, later()).await.unwrap();
    flood.await.unwrap();
    assert!(matches!(events.recv().await, Err(broadcast::error::RecvError::Lagged(_))));
    let kept = std::iter::from_fn(|| events.try_recv().ok()).count();
    assert!(kept <= EVENTS);
}

#[tokio::test]
async fn an_end_of_the_peer_answers_everyone() {
    let (qmp, mut peer) = greeted().await;
    let asking = tokio::spawn({
        let qmp = qmp.clone();
        async move { ask(&qmp, later()).await }
    });
    peer.hear().await;
    let waiting = tokio::spawn({
        let qmp = qmp.clone();
        async move { ask(&qmp, later()).await }
    });
    tokio::task::yield_now().await;
    drop(peer);
    let asked = asking.await.unwrap().unwrap_err();
    assert_eq!((asked.kind, asked.outcome), (ErrorKind::PeerGone, Outcome::Doubtful));
    let waited = waiting.await.unwrap().unwrap_err();
    assert_eq!((waited.kind, waited.outcome), (ErrorKind::PeerGone, Outcome::NotDone));
}
