use std::sync::atomic::Ordering;
use std::time::Duration;

use agent_protocol::health::HealthCheckResponse;
use guest_agent::AgentAddress;
use sandbox_model::{ErrorKind, Instant, Outcome};

use super::fake::{Fake, Front, answer};
use super::*;

#[tokio::test]
async fn a_guest_that_boots_is_waited_for() {
    let fake = Fake::start(vec![Front::HangUp, Front::Say(b"ERR\n".to_vec()), Front::HangUp, Front::Agent]).await;
    let agent = client();
    // The first attempts fail at once; the last meets an `OK` that comes in pieces.
    agent.connect(fake.address(), within(2_000)).await.unwrap();
    assert_eq!(fake.connections.load(Ordering::Relaxed), 4);
    agent.check((), soon()).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_starts_is_waited_for() {
    let fake = Fake::start(vec![Front::Agent]).await;
    let late = fake.socket.with_extension("late");
    let agent = client();
    let address = AgentAddress::Hybrid { socket: late.clone(), port: 1024 };
    let (connected, ()) = tokio::join!(agent.connect(address, soon()), async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        std::os::unix::fs::symlink(&fake.socket, &late).unwrap();
    });
    connected.unwrap();
}

#[tokio::test]
async fn an_agent_that_never_comes_is_given_up() {
    for (front, sign) in [
        (Front::HangUp, "CONNECT was not answered: the connection ended, so no agent listens"),
        (Front::Say(b"NO \x1b[2J\n".to_vec()), "CONNECT was answered by \"NO \\\\u{1b}[2J\""),
        (Front::Say(vec![b'x'; 4096]), "more than 64 bytes without an end of line"),
        (Front::Say(Vec::new()), "last sign of life: none"),
        (
            Front::Raw(std::sync::Arc::new(|stream, _| Some(answer(stream, &HealthCheckResponse::new())))),
            "health check: the agent is UNKNOWN",
        ),
        (Front::Raw(std::sync::Arc::new(|_, _| None)), "health check: no answer"),
        (Front::Raw(std::sync::Arc::new(|_, _| Some(Vec::new()))), "health check: "),
    ] {
        let fake = Fake::start(vec![front]).await;
        let asked = Instant::now();
        let error = client().connect(fake.address(), within(120)).await.unwrap_err();
        assert!(asked.elapsed() < Duration::from_secs(1), "{error}");
        assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::Doubtful), "{error}");
        assert!(error.cause.contains(sign), "{error}");
        assert!(error.cause.starts_with("no agent after 0."), "{error}");
        assert!(error.cause.contains(" attempts; last sign of life: "), "{error}");
    }
}

#[tokio::test]
async fn a_socket_that_can_never_serve_fails_at_once() {
    let socket = std::path::PathBuf::from(format!("/{}", "x".repeat(200)));
    let error = client().connect(AgentAddress::Hybrid { socket, port: 1024 }, soon()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::Invalid, Outcome::NotDone));
}

#[tokio::test]
async fn a_socket_whose_daemon_has_died_is_given_up_long_before_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vsock");
    drop(tokio::net::UnixListener::bind(&socket).unwrap());
    let asked = Instant::now();
    let error = client().connect(AgentAddress::Hybrid { socket, port: 1024 }, within(60_000)).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(30), "{error}");
    assert_eq!((error.kind, error.outcome), (ErrorKind::PeerGone, Outcome::NotDone), "{error}");
    assert!(error.cause.contains("the vsock daemon has ended") && error.errno.is_some(), "{error}");
}

#[tokio::test]
async fn who_is_not_connected_is_told_so() {
    let agent = client();
    let error = agent.check((), soon()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::PeerGone, Outcome::NotDone));
    agent.disconnect((), soon()).await.unwrap();
}

#[tokio::test]
async fn disconnecting_ends_calls_in_flight_and_connecting_again_works() {
    let fake = Fake::start(vec![Front::Agent]).await;
    let agent = connected(&fake).await;
    let asked = Instant::now();
    let (call, ()) = tokio::join!(agent.start_container(container("silent"), soon()), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        agent.disconnect((), soon()).await.unwrap();
    });
    let error = call.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!((error.kind, error.outcome), (ErrorKind::PeerGone, Outcome::Doubtful), "{error}");
    assert_eq!(error.cause, "we disconnected from the agent");
    assert_eq!(agent.check((), soon()).await.unwrap_err().kind, ErrorKind::PeerGone);

    agent.connect(fake.address(), soon()).await.unwrap();
    agent.start_container(container("web"), soon()).await.unwrap();
}

#[tokio::test]
async fn a_vsock_without_a_guest_fails_in_time() {
    let asked = Instant::now();
    let address = AgentAddress::Vsock { cid: 0x7fff_fffe, port: 1024 };
    let error = client().connect(address, within(100)).await.unwrap_err();
    // A kernel without vsock says so at once.
    assert!(matches!(error.kind, ErrorKind::TimedOut | ErrorKind::Unsupported), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!(error.object, "vsock://2147483646:1024");
}
