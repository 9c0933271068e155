//! How an actor is reached: admission, interruption, death notice, snapshot.

use std::fmt;
use std::sync::Arc;

use crate::shared::Shared;
use crate::shell::{Envelope, Shell};
use crate::{Death, Domain, Hops, Published, Refused, Request, Serve};
use actix::Addr;
use sandbox_model::Instant;

/// What a message is sent with.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// When it must be answered.
    pub deadline: Instant,
    /// The record that caused it; `None` for a command from outside.
    pub cause: Option<u64>,
}

/// The address of an actor: cheap to clone, usable from any thread and runtime.
pub struct Address<D: Domain>(pub(crate) Arc<Reach<D>>);

/// What leads to an actor. One for all clones of its address: a clone of an actix address allocates
/// twice.
pub(crate) struct Reach<D: Domain> {
    pub(crate) mailbox: Addr<Shell<D>>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) snapshot: Published<D::Snapshot>,
    pub(crate) hops: Option<Arc<dyn Hops>>,
}

impl<D: Domain> Clone for Address<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Domain> fmt::Debug for Address<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.0.shared.actor)
    }
}

impl<D: Domain> Address<D> {
    /// Sends a message and waits for its answer.
    ///
    /// # Errors
    /// [`Refused`]: the message was not served.
    ///
    /// # Cancel safety
    /// Dropping the future cancels a message that has not been taken from the mailbox. One that has
    /// been taken is served to its end; only [`interrupt`](Self::interrupt) reaches it.
    pub async fn ask<R>(&self, request: R, ask: Ask) -> Result<R::Reply, Refused>
    where
        R: Request,
        D: Serve<R>,
    {
        let Reach { mailbox, shared, .. } = &*self.0;
        let sent = Instant::now();
        let place = shared.admit(sent)?;
        let Ask { deadline, cause } = ask;
        let envelope = Envelope { request, deadline, cause, sent, place };
        self.hop().await;
        let answer = mailbox.send(envelope).await;
        self.hop().await;
        match answer {
            Ok(answer) => answer,
            Err(_) => Err(match shared.death.get() {
                Some(death) => Refused::Died { actor: death.actor, reason: death.reason.clone() },
                None => Refused::Ended { actor: shared.actor },
            }),
        }
    }

    async fn hop(&self) {
        let delay = self.0.hops.as_ref().map(|hops| hops.next());
        if let Some(delay) = delay.filter(|delay| !delay.is_zero()) {
            // Boxed: every message's future has room for it, and only simulations need it.
            Box::pin(tokio::time::sleep(delay)).await;
        }
    }

    /// Interrupts the message being served and refuses those that wait. Later ones are served.
    pub fn interrupt(&self) {
        self.0.shared.interrupt();
    }

    /// How the actor died, once it has.
    pub fn death(&self) -> Option<&Death> {
        self.0.shared.death.get()
    }

    /// What the actor last published.
    pub fn snapshot(&self) -> Published<D::Snapshot> {
        self.0.snapshot.clone()
    }

    /// Messages that wait or are being served.
    pub fn depth(&self) -> usize {
        self.0.shared.depth()
    }
}
