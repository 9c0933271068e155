//! Delays that follow from a seed: in virtual time they alone decide what happens before what.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actor_shell::{CurrentCause, Hops};
use futures::future::BoxFuture;
use resource_actors::system::{Delays, Intercept};
use sandbox_model::lifecycle::ActorName;
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::{PortResult, SandboxId};
use serde_json::Value;

use crate::fault::Seed;

/// A message between actors, a port call, and the answer of either are on their way for less than so
/// many milliseconds, which is what tokio's timers count in.
const DELAY_BOUND_MS: usize = 8;

/// Delays of one simulation.
#[derive(Debug, Clone, Copy)]
pub struct SeededDelays {
    seed: u64,
}

impl SeededDelays {
    /// Those of `seed`; with 0 there are none.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Of what is sent to an actor, and of what it answers.
    pub fn hops(self) -> Delays {
        Arc::new(move |sandbox, actor| Arc::new(self.stream(sandbox, actor, 1)))
    }

    /// Of an actor's port calls, and of their answers.
    pub fn intercept(self) -> Intercept {
        Arc::new(move |sandbox: &SandboxId, actor, cause: &CurrentCause| {
            Some(Arc::new(self.stream(sandbox, actor, 1 + u64::from(cause.generation()))))
        })
    }

    /// Each actor has streams of its own, so none depends on what another does meanwhile.
    fn stream(self, sandbox: &SandboxId, actor: ActorName, purpose: u64) -> Stream {
        let name = sandbox.as_str().bytes().chain(actor.as_str().bytes());
        // FNV-1a, with which each name has another stream.
        let name =
            name.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Stream { state: AtomicU64::new(self.seed ^ name ^ purpose << 56), is_prompt: self.seed == 0 }
    }
}

/// The delays of one actor.
#[derive(Debug)]
struct Stream {
    state: AtomicU64,
    is_prompt: bool,
}

impl Stream {
    fn draw(&self) -> Duration {
        if self.is_prompt {
            return Duration::ZERO;
        }
        // One thread draws; the atomic is for `Sync` alone.
        let mut seed = Seed(self.state.load(Ordering::Relaxed));
        let delay = seed.below(DELAY_BOUND_MS);
        self.state.store(seed.0, Ordering::Relaxed);
        Duration::from_millis(delay as u64)
    }
}

impl Hops for Stream {
    fn next(&self) -> Duration {
        self.draw()
    }
}

impl Interceptor for Stream {
    fn around<'a>(
        &'a self,
        _: PortCall,
        inner: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        Box::pin(async move {
            pause(self.draw()).await;
            let answer = inner.await;
            pause(self.draw()).await;
            answer
        })
    }
}

async fn pause(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
