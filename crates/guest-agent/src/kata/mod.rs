//! An asynchronous client of the Kata agent.
//!
//! * [`calls`]: the calls of the port, one by one.
//! * [`dial`]: how a connection comes about.
//! * [`connection`]: how a call is made, bounded in time.
//! * [`guard`], [`reply`]: what an answer may be, bounded in size and meaning.
//! * [`failure`], [`fate`]: what is said when there is none.
//! * [`convert`], [`oci`], [`oci_linux`]: our words in the agent's.

mod calls;
mod connection;
mod convert;
mod dial;
mod failure;
mod fate;
mod guard;
mod oci;
mod oci_linux;
mod reply;

use std::future::Future;
use std::sync::Arc;

use agent_protocol::agent_ttrpc::AgentServiceClient;
use sandbox_model::{ErrorKind, Instant, PortError, PortResult, SandboxId};
use tokio::sync::watch;
use ttrpc::context::Context;

use crate::{AgentFactory, GuestAgent};
use connection::{Connection, Patience};
use failure::Subject;
pub use guard::FRAME_LEN_MAX;

/// The most output that is asked for at once, in bytes: with its envelope it stays below
/// [`FRAME_LEN_MAX`]. Who asks for more gets so much.
pub const READ_LEN_MAX: u32 = 192 << 10;

/// Makes clients of the Kata agent.
#[derive(Debug, Clone, Copy, Default)]
pub struct KataAgentFactory;

impl AgentFactory for KataAgentFactory {
    fn create(&self, sandbox: &SandboxId) -> Result<Arc<dyn GuestAgent>, PortError> {
        Ok(Arc::new(KataAgent::new(sandbox.clone())))
    }
}

/// A client of the Kata agent of one guest.
///
/// Calls run side by side; only `connect` and `disconnect` change anything.
#[derive(Debug)]
pub struct KataAgent {
    sandbox: SandboxId,
    connection: watch::Sender<Option<Arc<Connection>>>,
}

impl KataAgent {
    /// A client that has not connected.
    pub fn new(sandbox: SandboxId) -> Self {
        Self { sandbox, connection: watch::Sender::new(None) }
    }

    fn connection(&self, subject: &Subject) -> PortResult<Arc<Connection>> {
        let connection = self.connection.borrow().clone();
        connection.ok_or_else(|| subject.error(ErrorKind::PeerGone, "not connected to the agent"))
    }

    fn replace(&self, connection: Option<Arc<Connection>>, why: &'static str) {
        if let Some(old) = self.connection.send_replace(connection) {
            old.close(why);
        }
    }

    /// A call that the agent answers at once.
    async fn ask<R, F>(
        &self,
        subject: &Subject,
        deadline: Instant,
        call: impl FnOnce(AgentServiceClient, Context) -> F,
    ) -> PortResult<R>
    where
        F: Future<Output = ttrpc::Result<R>>,
    {
        self.connection(subject)?.agent(subject, Patience::Prompt, deadline, call).await
    }

    /// A call that waits for something to happen in the guest.
    async fn wait<R, F>(
        &self,
        subject: &Subject,
        deadline: Instant,
        call: impl FnOnce(AgentServiceClient, Context) -> F,
    ) -> PortResult<R>
    where
        F: Future<Output = ttrpc::Result<R>>,
    {
        self.connection(subject)?.agent(subject, Patience::Patient, deadline, call).await
    }
}
