//! The client of the Kata agent against agents that are slow, wrong, dead or hostile.
#![expect(unreachable_pub, reason = "modules of one test program")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod connect;
mod fake;
mod hostile;

use std::sync::Arc;
use std::time::Duration;

use guest_agent::{AgentFactory, GuestAgent, KataAgentFactory, ProcessRef, ReadOutput};
use sandbox_model::{ContainerId, Instant, SandboxId};

/// A deadline in `ms` milliseconds.
fn within(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

/// A deadline that a test on a busy machine keeps, too.
fn soon() -> Instant {
    within(5_000)
}

fn client() -> Arc<dyn GuestAgent> {
    KataAgentFactory.create(&SandboxId::new("pod").unwrap()).unwrap()
}

/// A client that is connected to `fake`.
async fn connected(fake: &fake::Fake) -> Arc<dyn GuestAgent> {
    let agent = client();
    agent.connect(fake.address(), soon()).await.unwrap();
    agent
}

fn container(id: &str) -> ContainerId {
    ContainerId::new(id).unwrap()
}

fn process(id: &str) -> ProcessRef {
    ProcessRef { container: container(id), exec: String::new() }
}

fn read(id: &str, len: u32) -> ReadOutput {
    ReadOutput { process: process(id), len }
}
