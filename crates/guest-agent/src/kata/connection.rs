//! One connection to an agent, and how a call is made on it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent_protocol::agent_ttrpc::AgentServiceClient;
use agent_protocol::health::CheckRequest;
use agent_protocol::health::health_check_response::ServingStatus;
use agent_protocol::health_ttrpc::HealthClient;
use sandbox_model::{ErrorKind, Instant, PortResult};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout_at;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{self, Context};

use super::failure::Subject;
use super::fate::{End, Fate};
use super::guard::Guard;

/// So many calls in a row without an answer, and the agent is given up.
const SILENCES_MAX: u32 = 3;

/// The longest time that a request carries to the guest: who waits longer waits for ever.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether silence tells anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// The agent answers this at once, or something is wrong with it.
    Prompt,
    /// What is waited for may not come for hours.
    Patient,
}

/// A connection on which the agent answers.
pub(super) struct Connection {
    agent: AgentServiceClient,
    health: HealthClient,
    fate: Arc<Fate>,
    silences: AtomicU32,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("fate", &self.fate).field("silences", &self.silences).finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close("the connection is no longer used");
    }
}

impl Connection {
    /// Speaks ttrpc on `stream`.
    pub(super) fn new(stream: impl AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static) -> Self {
        let fate = Arc::new(Fate::default());
        let client = Client::new(Socket::new(Guard::new(stream, fate.clone())));
        Self {
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client),
            fate,
            silences: AtomicU32::new(0),
        }
    }

    /// Ends it; calls in flight fail with `PeerGone`.
    pub(super) fn close(&self, why: &'static str) {
        self.fate.end(End::Closed(why));
    }

    /// A call of the agent's service.
    pub(super) async fn agent<R, F>(
        &self,
        subject: &Subject,
        patience: Patience,
        deadline: Instant,
        call: impl FnOnce(AgentServiceClient, Context) -> F,
    ) -> PortResult<R>
    where
        F: Future<Output = ttrpc::Result<R>>,
    {
        self.call(subject, patience, deadline, |context| call(self.agent.clone(), context)).await
    }

    /// Asks whether the agent serves.
    pub(super) async fn check(&self, subject: &Subject, deadline: Instant) -> PortResult<()> {
        let health = self.health.clone();
        let ask = |context| async move { health.check(context, &CheckRequest::new()).await };
        let answer = self.call(subject, Patience::Prompt, deadline, ask).await?;
        match answer.status.enum_value() {
            Ok(ServingStatus::SERVING) => Ok(()),
            Ok(status) => Err(subject.error(ErrorKind::Refused, format!("the agent is {status:?}"))),
            Err(number) => Err(subject.broken(format!("the agent is in a state {number}, which there is not"))),
        }
    }

    async fn call<R, F>(
        &self,
        subject: &Subject,
        patience: Patience,
        deadline: Instant,
        call: impl FnOnce(Context) -> F,
    ) -> PortResult<R>
    where
        F: Future<Output = ttrpc::Result<R>>,
    {
        if let Some(end) = self.fate.ended() {
            return Err(subject.too_late(end));
        }
        let asked = Instant::now();
        let left = deadline.saturating_duration_since(asked).min(TIMEOUT_MAX);
        if left.is_zero() {
            // ttrpc reads a timeout of 0 as none.
            return Err(subject.silent(left));
        }
        let answer = timeout_at(deadline, call(context::with_duration(left))).await;
        match answer {
            Ok(Ok(reply)) => {
                self.heard();
                Ok(reply)
            }
            Err(_) => Err(self.not_heard(subject, patience, asked)),
            // ttrpc's own clock was faster; it has no error of its own for that.
            Ok(Err(ttrpc::Error::Others(_))) if Instant::now() >= deadline && self.fate.ended().is_none() => {
                Err(self.not_heard(subject, patience, asked))
            }
            Ok(Err(error)) => {
                if matches!(error, ttrpc::Error::RpcStatus(_)) {
                    self.heard();
                }
                Err(subject.failed(error, self.fate.ended()))
            }
        }
    }

    fn heard(&self) {
        self.silences.store(0, Ordering::Relaxed);
    }

    fn not_heard(&self, subject: &Subject, patience: Patience, asked: Instant) -> sandbox_model::PortError {
        let silent = subject.silent(asked.elapsed());
        if patience == Patience::Prompt && self.silences.fetch_add(1, Ordering::Relaxed) + 1 >= SILENCES_MAX {
            self.close("the connection was given up after 3 calls in a row without an answer");
        }
        silent
    }
}
