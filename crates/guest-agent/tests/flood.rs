//! A hostile agent against the manager's memory (test S5). A program of its own, since it weighs
//! itself.
#![expect(unreachable_pub, reason = "modules of one test program")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "the other test program uses the rest of it")]
#[path = "kata/fake.rs"]
mod fake;

use std::sync::Arc;
use std::time::Duration;

use agent_protocol::agent::{OOMEvent, ReadStreamResponse};
use fake::{Fake, Front, answer, frame, serving};
use guest_agent::{AgentFactory, GuestAgent, KataAgentFactory, ProcessRef, ReadOutput};
use sandbox_model::{ContainerId, ErrorKind, Instant, SandboxId};

/// Events that nobody asked for, in all.
const EVENTS: usize = 1_000_000;
/// Of these, in one answer.
const AT_ONCE: usize = 4_000;
/// Answers that an agent owes us for ever, in all, and of these at a time.
const OWED: usize = 20_000;
const OWED_AT_ONCE: usize = 50;
/// What the manager may grow by, in KiB.
const GROWTH_MAX_KIB: u64 = 16 << 10;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Bytes of this process in memory, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

async fn connected(fake: &Fake, name: &str) -> Arc<dyn GuestAgent> {
    let agent = KataAgentFactory.create(&SandboxId::new(name).unwrap()).unwrap();
    agent.connect(fake.address(), soon()).await.unwrap();
    agent
}

async fn hostile(make: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> Fake {
    let answer = move |stream, method: &str| match method {
        "Check" => Some(serving(stream)),
        _ => Some(make(stream)),
    };
    Fake::start(vec![Front::Raw(Arc::new(answer))]).await
}

/// Asks what is never answered, until it has been sent, and gives up.
async fn ask_in_vain(agent: &dyn GuestAgent, process: &ProcessRef) {
    let reads = (0..OWED_AT_ONCE).map(|_| agent.read_stdout(ReadOutput { process: process.clone(), len: 9 }, soon()));
    let turns = async {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        answers = futures::future::join_all(reads) => panic!("{answers:?}"),
        () = turns => {}
    }
}

#[tokio::test]
async fn a_million_answers_that_nobody_asked_for_weigh_nothing() {
    let good = Fake::start(vec![Front::Agent]).await;
    let neighbour = connected(&good, "good").await;
    let event = |stream| answer(stream, &OOMEvent { container_id: "web".to_owned(), ..Default::default() });
    let flood = hostile(move |stream| {
        let others = (0..AT_ONCE).flat_map(|n| event(stream.wrapping_add(1001 + 2 * n as u32)));
        others.chain(event(stream)).chain(event(stream)).collect()
    })
    .await;
    let agent = connected(&flood, "flood").await;
    // Once before it is weighed: what is made once stays.
    agent.oom_event((), soon()).await.unwrap();
    let before = resident_kib();
    for round in 0..EVENTS / AT_ONCE {
        assert_eq!(agent.oom_event((), soon()).await.unwrap().as_str(), "web");
        if round % 50 == 0 {
            neighbour.check((), soon()).await.unwrap();
        }
    }
    let oversize =
        hostile(|stream| answer(stream, &ReadStreamResponse { data: vec![0; 1 << 20], ..Default::default() })).await;
    let garbage = hostile(|stream| frame(stream, 2, &[0xff; 100_000])).await;
    let process = ProcessRef { container: ContainerId::new("web").unwrap(), exec: String::new() };
    for (fake, what) in [(&oversize, "oversize"), (&garbage, "garbage")] {
        for _ in 0..100 {
            let agent = connected(fake, what).await;
            let read = ReadOutput { process: process.clone(), len: 9 };
            let error = agent.read_stdout(read, soon()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Protocol, "{what}: {error}");
        }
        neighbour.check((), soon()).await.unwrap();
    }
    let silent = Fake::start(vec![Front::Raw(Arc::new(|stream, method| (method == "Check").then(|| serving(stream))))]);
    let agent = connected(&silent.await, "silent").await;
    for _ in 0..OWED / OWED_AT_ONCE {
        ask_in_vain(&*agent, &process).await;
    }
    agent.check((), soon()).await.unwrap();
    let growth = resident_kib().saturating_sub(before);
    assert!(growth <= GROWTH_MAX_KIB, "it has grown by {growth} KiB");
}
