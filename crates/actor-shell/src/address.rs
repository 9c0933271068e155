//! How an actor is reached: admission, interruption, death notice, snapshot.

use std::fmt;
use std::sync::Arc;

use actix::Addr;
use sandbox_model::Instant;
use sandbox_model::lifecycle::ActorName;
use tokio::sync::{Semaphore, watch};

use crate::shell::{Envelope, Shell};
use crate::{Death, Domain, Hops, Interrupt, Refused, Request, Serve};

/// What a message is sent with.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// When it must be answered.
    pub deadline: Instant,
    /// The record that caused it; `None` for a command from outside.
    pub cause: Option<u64>,
}

/// The address of an actor: cheap to clone, usable from any thread and runtime.
pub struct Address<D: Domain> {
    pub(crate) mailbox: Addr<Shell<D>>,
    pub(crate) actor: ActorName,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) bound: usize,
    pub(crate) interrupts: Arc<watch::Sender<u64>>,
    pub(crate) death: watch::Receiver<Option<Death>>,
    pub(crate) snapshot: watch::Receiver<D::Snapshot>,
    pub(crate) hops: Option<Arc<dyn Hops>>,
}

impl<D: Domain> Clone for Address<D> {
    fn clone(&self) -> Self {
        Self {
            mailbox: self.mailbox.clone(),
            actor: self.actor,
            permits: self.permits.clone(),
            bound: self.bound,
            interrupts: self.interrupts.clone(),
            death: self.death.clone(),
            snapshot: self.snapshot.clone(),
            hops: self.hops.clone(),
        }
    }
}

impl<D: Domain> fmt::Debug for Address<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.actor)
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
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return Err(Refused::Busy { actor: self.actor, bound: self.bound });
        };
        let envelope = Envelope {
            request,
            deadline: ask.deadline,
            cause: ask.cause,
            sent: Instant::now(),
            interrupt: Interrupt { count: self.interrupts.subscribe(), sent_at: *self.interrupts.borrow() },
            _permit: permit,
        };
        self.hop().await;
        let answer = self.mailbox.send(envelope).await;
        self.hop().await;
        match answer {
            Ok(answer) => answer,
            Err(_) => Err(match &*self.death.borrow() {
                Some(death) => Refused::Died { actor: death.actor, reason: death.reason.clone() },
                None => Refused::Ended { actor: self.actor },
            }),
        }
    }

    async fn hop(&self) {
        let delay = self.hops.as_ref().map(|hops| hops.next());
        if let Some(delay) = delay.filter(|delay| !delay.is_zero()) {
            tokio::time::sleep(delay).await;
        }
    }

    /// Interrupts the message being served and refuses those that wait. Later ones are served.
    pub fn interrupt(&self) {
        self.interrupts.send_modify(|count| *count += 1);
    }

    /// How the actor died, once it has.
    pub fn death(&self) -> watch::Receiver<Option<Death>> {
        self.death.clone()
    }

    /// What the actor last published.
    pub fn snapshot(&self) -> watch::Receiver<D::Snapshot> {
        self.snapshot.clone()
    }

    /// Messages that wait or are being served.
    pub fn depth(&self) -> usize {
        self.bound - self.permits.available_permits()
    }
}
