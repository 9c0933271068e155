use std::time::Duration;

use guest_agent::{CreateContainer, ProcessRef, READ_LEN_MAX, WriteInput};
use sandbox_model::device::AgentDevice;
use sandbox_model::network::{GuestInterface, MacAddress};
use sandbox_model::storage::Storage;
use sandbox_model::{ErrorKind, Instant, Outcome, Secret};

use super::fake::{Fake, Front};
use super::*;

#[tokio::test]
async fn calls_arrive_whole_and_answers_come_back() {
    let fake = Fake::start(vec![Front::Agent]).await;
    let agent = connected(&fake).await;
    let spec = serde_json::from_value(serde_json::json!({
        "ociVersion": "1.1.0", "root": {"path": "/rootfs"}, "linux": {"resources": {"pids": {"limit": 7}}}
    }));
    let device = AgentDevice {
        id: "02/05".to_owned(),
        driver: "blk".to_owned(),
        vm_path: String::new(),
        container_path: "/dev/xda".to_owned(),
        options: Vec::new(),
    };
    let request = CreateContainer {
        container: container("web"),
        devices: vec![device],
        storages: vec![Storage { driver: "virtio-fs".to_owned(), ..Default::default() }],
        spec: Secret::new(Box::new(spec.unwrap())),
        sandbox_pidns: true,
    };
    agent.create_container(request, soon()).await.unwrap();
    let seen = fake.containers.lock().unwrap().pop().unwrap();
    assert_eq!((seen.container_id.as_str(), seen.exec_id.as_str(), seen.sandbox_pidns), ("web", "web", true));
    assert_eq!((seen.devices[0].id.as_str(), seen.storages[0].driver.as_str()), ("02/05", "virtio-fs"));
    assert_eq!((seen.OCI.Root.Path.as_str(), seen.OCI.Linux.Resources.Pids.Limit), ("/rootfs", 7));

    let interface = GuestInterface {
        name: "eth0".to_owned(),
        addresses: Vec::new(),
        mtu: 1500,
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        link_kind: "veth".to_owned(),
        raw_flags: 0,
    };
    agent.update_interface(interface, soon()).await.unwrap();
    assert_eq!(agent.guest_details((), soon()).await.unwrap().memory_block_bytes, 128 << 20);
    let written = WriteInput { process: process("web"), data: Secret::new(b"hello".to_vec()) };
    assert_eq!(agent.write_stdin(written, soon()).await.unwrap(), 5);
    let killed = ProcessRef { exec: "killed".to_owned(), ..process("web") };
    assert_eq!(agent.wait_process(killed, soon()).await.unwrap(), 137);
}

#[tokio::test]
async fn output_ends_and_is_bounded() {
    let fake = Fake::start(vec![Front::Agent]).await;
    let agent = connected(&fake).await;
    assert_eq!(agent.read_stdout(read("web", 9), soon()).await.unwrap(), b"xxxxxxxxx");
    assert!(agent.read_stdout(read("eof", 9), soon()).await.unwrap().is_empty());
    assert!(agent.read_stdout(read("empty", 9), soon()).await.unwrap().is_empty());
    // Who asks for more than an answer may be long gets less, not an error.
    let most = usize::try_from(READ_LEN_MAX).unwrap();
    assert_eq!(agent.read_stdout(read("web", u32::MAX), soon()).await.unwrap().len(), most);
    let more = agent.read_stdout(read("more", 9), soon()).await.unwrap_err();
    assert_eq!((more.kind, more.cause.as_str()), (ErrorKind::Protocol, "10 bytes came, 9 were asked for"));
    // The connection has not suffered.
    agent.check((), soon()).await.unwrap();
}

#[tokio::test]
async fn what_the_agent_says_becomes_an_error() {
    let fake = Fake::start(vec![Front::Agent]).await;
    let agent = connected(&fake).await;
    for (id, kind) in [
        ("missing", ErrorKind::NotFound),
        ("there", ErrorKind::Exists),
        ("policy", ErrorKind::Denied),
        ("broken", ErrorKind::Refused),
    ] {
        let error = agent.start_container(container(id), soon()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().starts_with(&format!("StartContainer {id}: ")), "{error}");
        assert!(error.cause.ends_with(": it \\u{1b}[31mfailed"), "{error}");
    }
    let unknown = agent.remove_container(container("web"), soon()).await.unwrap_err();
    assert_eq!(unknown.kind, ErrorKind::Unsupported, "{unknown}");
    let status = agent.wait_process(process("web"), soon()).await.unwrap_err();
    assert_eq!(status.kind, ErrorKind::Protocol, "{status}");
    let event = agent.oom_event((), soon()).await.unwrap_err();
    assert_eq!(event.kind, ErrorKind::Protocol, "{event}");
}

#[tokio::test]
async fn a_request_that_is_too_long_is_invalid() {
    let fake = Fake::start(vec![Front::Agent]).await;
    let agent = connected(&fake).await;
    let written = WriteInput { process: process("web"), data: Secret::new(vec![0; 5 << 20]) };
    let error = agent.write_stdin(written, soon()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::Invalid, Outcome::NotDone), "{error}");
    agent.check((), soon()).await.unwrap();
}

#[tokio::test]
async fn a_silent_agent_is_not_waited_for() {
    let fake = Fake::start(vec![Front::Agent]).await;
    let agent = connected(&fake).await;
    let asked = Instant::now();
    let (silent, other) = tokio::join!(
        agent.start_container(container("silent"), within(100)),
        agent.start_container(container("web"), soon()),
    );
    other.unwrap();
    let error = silent.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(1));
    assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::Doubtful), "{error}");
    let late = agent.start_container(container("web"), Instant::now()).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::TimedOut);
}

#[tokio::test]
async fn three_silences_in_a_row_drop_the_connection() {
    let fake = Fake::start(vec![Front::Raw(std::sync::Arc::new(|stream, method| match method {
        "Check" => Some(fake::serving(stream)),
        _ => None,
    }))])
    .await;
    let agent = connected(&fake).await;
    let silent = || async {
        let error = agent.start_container(container("web"), within(30)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::TimedOut, "{error}");
    };
    // To wait for output that does not come is no sign of anything.
    for _ in 0..4 {
        agent.read_stdout(read("web", 9), within(20)).await.unwrap_err();
    }
    silent().await;
    silent().await;
    agent.check((), soon()).await.unwrap();
    silent().await;
    silent().await;
    silent().await;
    let error = agent.check((), soon()).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::PeerGone, Outcome::NotDone), "{error}");
    assert!(error.cause.contains("3 calls in a row without an answer"), "{error}");
}
