//! The actix actor around a domain.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use actix::{Actor, Context, Handler, Message};
use sandbox_model::Instant;
use sandbox_model::trace::{Event, Place};

use crate::address::Reach;
use crate::arbiters::abandoned_calls;
use crate::performing::{Performing, Served};
use crate::shared::{self, Shared};
use crate::{Address, Call, Death, Domain, Hops, Identity, Plan, Published, Refused, Request, Serve, panic_text};

/// A domain with a mailbox.
pub(crate) struct Shell<D: Domain> {
    pub(crate) domain: D,
    identity: Identity,
    shared: Arc<Shared>,
    snapshot: Published<D::Snapshot>,
    /// Whether the last message was dropped in the middle.
    pub(crate) was_cut_off: bool,
}

/// A message on its way.
pub(crate) struct Envelope<R> {
    pub(crate) request: R,
    pub(crate) deadline: Instant,
    pub(crate) cause: Option<u64>,
    pub(crate) sent: Instant,
    pub(crate) place: shared::Place,
}

impl<R: Request> Message for Envelope<R> {
    type Result = Answer<R>;
}

impl<D: Domain> Actor for Shell<D> {
    type Context = Context<Self>;
}

/// Gives `domain` a mailbox on this thread, which must run a `LocalSet` (an arbiter does).
pub fn spawn<D: Domain>(domain: D, identity: Identity) -> Address<D> {
    spawn_afar(domain, identity, Published::default(), None)
}

/// As [`spawn`], with an actor that publishes in `snapshot`, where one before it may have done so, and
/// to which messages are on their way for as long as `hops` says.
pub fn spawn_afar<D: Domain>(
    domain: D,
    identity: Identity,
    snapshot: Published<D::Snapshot>,
    hops: Option<Arc<dyn Hops>>,
) -> Address<D> {
    let shared = Shared::new(identity.actor, identity.bound, identity.cause.board.clone());
    shared.board.spawned(identity.actor);
    let mut shell = Shell { domain, identity, shared: shared.clone(), snapshot: snapshot.clone(), was_cut_off: false };
    shell.publish();
    let mailbox = Shell::create(move |ctx| {
        // Without a limit of its own: admission is ours, since actix counts per clone of an address.
        ctx.set_mailbox_capacity(0);
        shell
    });
    Address(Arc::new(Reach { mailbox, shared, snapshot, hops }))
}

pub(crate) type Answer<R> = Result<<R as Request>::Reply, Refused>;

impl<D, R> Handler<Envelope<R>> for Shell<D>
where
    R: Request,
    D: Serve<R>,
{
    type Result = Served<D, R>;

    fn handle(&mut self, envelope: Envelope<R>, _: &mut Self::Context) -> Served<D, R> {
        let Envelope { request, deadline, cause, sent, mut place } = envelope;
        let record = self.received(&request, cause, sent);
        let call = Call { seq: record.seq, deadline, interrupt: place.interrupt() };
        self.identity.cause.set(record.seq);

        if let Err(refused) = self.admissible(&call, record.taken) {
            return self.answer_now(&record, Err(refused), place);
        }
        let planned = catch_unwind(AssertUnwindSafe(|| match self.domain.plan(request, &call) {
            Plan::Answer(reply) => Err(reply),
            Plan::Perform(mut ticket) => {
                let effect = self.domain.perform(&mut ticket, &call);
                Ok((ticket, effect))
            }
        }));
        let (ticket, effect) = match planned {
            Err(payload) => {
                let refused = self.die(&*payload);
                return self.answer_now(&record, Err(refused), place);
            }
            Ok(Err(reply)) => return self.answer_now(&record, Ok(reply), place),
            Ok(Ok(planned)) => planned,
        };

        place.taken(R::NAME, record.taken, deadline);
        // What the last message left running comes to its end before this one looks at the world.
        let effect = if std::mem::take(&mut self.was_cut_off) {
            Box::pin(async move {
                abandoned_calls().await;
                effect.await
            })
        } else {
            effect
        };
        Served::Later(Performing::new(effect, ticket, call, self.domain.grace(), record, place))
    }
}

/// What is remembered of a message for its second record.
pub(crate) struct Received {
    seq: u64,
    taken: Instant,
}

impl<D: Domain> Shell<D> {
    /// Judged when taken, not when sent: an expired message must not reach the VMM.
    fn admissible(&self, call: &Call, taken: Instant) -> Result<(), Refused> {
        let actor = self.identity.actor;
        if let Some(death) = self.shared.death.get() {
            return Err(Refused::Died { actor, reason: death.reason.clone() });
        }
        if call.is_interrupted() {
            return Err(Refused::Interrupted { actor });
        }
        if taken >= call.deadline {
            return Err(Refused::Expired { actor });
        }
        Ok(())
    }

    fn answer_now<R: Request>(&mut self, record: &Received, answer: Answer<R>, place: shared::Place) -> Served<D, R>
    where
        D: Serve<R>,
    {
        Served::Now(self.answered::<R>(record, answer, place))
    }

    /// The end of every message: what others see of the actor is true before the answer is there.
    pub(crate) fn answered<R: Request>(
        &mut self,
        record: &Received,
        answer: Answer<R>,
        mut place: shared::Place,
    ) -> Answer<R> {
        self.publish();
        self.replied::<R>(record, &answer);
        place.answered(record.taken, answer.is_err());
        answer
    }

    /// Keeps the reason of a panic. The state may be half changed, so nothing is served any more.
    pub(crate) fn die(&mut self, payload: &(dyn std::any::Any + Send)) -> Refused {
        let actor = self.identity.actor;
        let reason = panic_text(payload);
        tracing::error!(sandbox = %self.identity.sandbox, %actor, %reason, "actor died");
        // The first reason counts.
        let _ = self.shared.death.set(Death { actor, reason: reason.clone() });
        let sink = &self.identity.sink;
        if sink.is_recording() {
            let cause = Some(self.identity.cause.get()).filter(|seq| *seq != 0);
            sink.record(Event::Died { place: self.place(sink.next_seq(), cause), reason: reason.clone() });
        }
        Refused::Died { actor, reason }
    }

    fn publish(&mut self) {
        if self.shared.death.get().is_none() {
            self.domain.publish(&mut self.snapshot.borrow());
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
                message: R::NAME,
                request,
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
                message: R::NAME,
                reply: answer,
                service_us: micros(record.taken.elapsed()),
            });
        }
        self.identity.cause.set(0);
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
