//! The actix actor around a domain.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AtomicResponse, Context, Handler, Message, WrapFuture};
use futures::FutureExt;
use sandbox_model::Instant;
use sandbox_model::trace::{Event, Place};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout_at;

use crate::arbiters::abandoned_calls;
use crate::{
    Address, Call, Completion, Death, Domain, Hops, Identity, Interrupt, Plan, Refused, Request, Serve, panic_text,
};

/// A domain with a mailbox.
pub(crate) struct Shell<D: Domain> {
    domain: D,
    identity: Identity,
    death: watch::Sender<Option<Death>>,
    snapshot: watch::Sender<D::Snapshot>,
    /// Whether the last message was dropped in the middle.
    was_cut_off: bool,
}

/// A message on its way.
pub(crate) struct Envelope<R> {
    pub(crate) request: R,
    pub(crate) deadline: Instant,
    pub(crate) cause: Option<u64>,
    pub(crate) sent: Instant,
    pub(crate) interrupt: Interrupt,
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl<R: Request> Message for Envelope<R> {
    type Result = Result<R::Reply, Refused>;
}

impl<D: Domain> Actor for Shell<D> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Never the limit: admission is ours, since actix counts per clone of an address.
        ctx.set_mailbox_capacity(self.identity.bound.max(16));
    }
}

/// Gives `domain` a mailbox on this thread, which must run a `LocalSet` (an arbiter does).
pub fn spawn<D: Domain>(domain: D, identity: Identity) -> Address<D> {
    spawn_afar(domain, identity, None)
}

/// As [`spawn`], with an actor to which messages are on their way for as long as `hops` says.
pub fn spawn_afar<D: Domain>(mut domain: D, identity: Identity, hops: Option<Arc<dyn Hops>>) -> Address<D> {
    let mut first = D::Snapshot::default();
    domain.publish(&mut first);
    let (snapshot, seen) = watch::channel(first);
    let (death, noticed) = watch::channel(None);
    let (actor, bound) = (identity.actor, identity.bound);
    let mailbox = Shell { domain, identity, death, snapshot, was_cut_off: false }.start();
    Address {
        mailbox,
        actor,
        permits: Arc::new(Semaphore::new(bound)),
        bound,
        interrupts: Arc::new(watch::Sender::new(0)),
        death: noticed,
        snapshot: seen,
        hops,
    }
}

type Answer<R> = Result<<R as Request>::Reply, Refused>;

impl<D, R> Handler<Envelope<R>> for Shell<D>
where
    R: Request,
    D: Serve<R>,
{
    type Result = AtomicResponse<Self, Answer<R>>;

    fn handle(&mut self, envelope: Envelope<R>, _: &mut Self::Context) -> Self::Result {
        let Envelope { request, deadline, cause, sent, interrupt, _permit } = envelope;
        let record = self.received(&request, cause, sent);
        let call = Call { seq: record.seq, deadline, interrupt };
        self.identity.cause.set(record.seq);

        if let Err(refused) = self.admissible(&call) {
            return self.answer_now::<R>(record, Err(refused), _permit);
        }
        let planned = std::panic::catch_unwind(AssertUnwindSafe(|| {
            Ok(match self.domain.plan(request, &call) {
                Plan::Answer(reply) => Err(reply),
                Plan::Perform(ticket) => {
                    let effect = self.domain.perform(&ticket, &call);
                    Ok((ticket, effect))
                }
            })
        }))
        .unwrap_or_else(|payload| Err(self.die(&*payload)));
        let (ticket, effect) = match planned {
            Err(refused) => return self.answer_now::<R>(record, Err(refused), _permit),
            Ok(Err(reply)) => return self.answer_now::<R>(record, Ok(reply), _permit),
            Ok(Ok(planned)) => planned,
        };

        // What the last message left running comes to its end before this one looks at the world.
        let effect = if std::mem::take(&mut self.was_cut_off) {
            Box::pin(async move {
                abandoned_calls().await;
                effect.await
            })
        } else {
            effect
        };
        let effect = AssertUnwindSafe(bounded(effect, call, self.domain.grace())).catch_unwind();
        AtomicResponse::new(Box::pin(effect.into_actor(self).map(move |done, shell, _| {
            shell.was_cut_off = !matches!(done, Ok(Completion::Finished(_)));
            let answer = match done {
                Err(payload) => Err(shell.die(&*payload)),
                Ok(done) => std::panic::catch_unwind(AssertUnwindSafe(|| shell.domain.settle(ticket, done)))
                    .map_err(|payload| shell.die(&*payload)),
            };
            shell.publish();
            shell.replied::<R>(&record, &answer);
            drop(_permit);
            answer
        })))
    }
}

/// Drives `effect` to its end, its deadline or an interruption, each plus the domain's grace.
async fn bounded<T>(effect: crate::LocalFuture<T>, call: Call, grace: std::time::Duration) -> Completion<T> {
    let interrupted = async {
        call.interrupted().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        biased;
        done = timeout_at(call.deadline + grace, effect) =>
            done.map_or(Completion::DeadlinePassed, Completion::Finished),
        () = interrupted => Completion::Interrupted,
    }
}

/// What is remembered of a message for its second record.
struct Received {
    seq: u64,
    taken: Instant,
}

impl<D: Domain> Shell<D> {
    /// Judged when taken, not when sent: an expired message must not reach the VMM.
    fn admissible(&self, call: &Call) -> Result<(), Refused> {
        let actor = self.identity.actor;
        if let Some(death) = &*self.death.borrow() {
            return Err(Refused::Died { actor, reason: death.reason.clone() });
        }
        if call.is_interrupted() {
            return Err(Refused::Interrupted { actor });
        }
        if Instant::now() >= call.deadline {
            return Err(Refused::Expired { actor });
        }
        Ok(())
    }

    fn answer_now<R: Request>(
        &mut self,
        record: Received,
        answer: Answer<R>,
        permit: OwnedSemaphorePermit,
    ) -> AtomicResponse<Self, Answer<R>> {
        self.publish();
        self.replied::<R>(&record, &answer);
        drop(permit);
        AtomicResponse::new(Box::pin(futures::future::ready(answer).into_actor(self)))
    }

    /// Keeps the reason of a panic. The state may be half changed, so nothing is served any more.
    fn die(&mut self, payload: &(dyn std::any::Any + Send)) -> Refused {
        let actor = self.identity.actor;
        let reason = panic_text(payload);
        tracing::error!(sandbox = %self.identity.sandbox, %actor, %reason, "actor died");
        self.death.send_replace(Some(Death { actor, reason: reason.clone() }));
        let sink = &self.identity.sink;
        if sink.is_recording() {
            let cause = Some(self.identity.cause.get()).filter(|seq| *seq != 0);
            sink.record(Event::Died { place: self.place(sink.next_seq(), cause), reason: reason.clone() });
        }
        Refused::Died { actor, reason }
    }

    fn publish(&mut self) {
        if self.death.borrow().is_none() {
            let domain = &mut self.domain;
            self.snapshot.send_modify(|snapshot| domain.publish(snapshot));
        }
    }

    fn place(&self, seq: u64, cause: Option<u64>) -> Place {
        Place {
            seq,
            cause,
            sandbox: self.identity.sandbox.clone(),
            actor: self.identity.actor,
            generation: self.identity.cause.generation(),
            at_us: self.identity.sink.now_us(),
        }
    }

    fn received<R: Request>(&self, request: &R, cause: Option<u64>, sent: Instant) -> Received {
        let sink = &self.identity.sink;
        let (seq, taken) = (sink.next_seq(), Instant::now());
        if sink.is_recording() {
            sink.record(Event::Received {
                place: self.place(seq, cause),
                message: R::NAME.to_owned(),
                request: as_value(request),
                queue_us: micros(taken - sent),
            });
        }
        Received { seq, taken }
    }

    fn replied<R: Request>(&self, record: &Received, answer: &Answer<R>) {
        let sink = &self.identity.sink;
        if sink.is_recording() {
            sink.record(Event::Replied {
                place: self.place(sink.next_seq(), Some(record.seq)),
                message: R::NAME.to_owned(),
                reply: as_value(answer),
                service_us: micros(record.taken.elapsed()),
            });
        }
        self.identity.cause.set(0);
    }
}

fn as_value<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_else(|error| Value::String(format!("not recordable: {error}")))
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
