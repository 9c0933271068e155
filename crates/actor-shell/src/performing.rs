//! A message that is being performed: nothing else of its actor runs until it has settled.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use actix::dev::{MessageResponse, OneshotSender};
use actix::{ActorFuture, AsyncContext, Context};
use tokio::time::{sleep, sleep_until};

use crate::shared::Place;
use crate::shell::{Answer, Envelope, Received, Shell};
use crate::{Call, Completion, LocalFuture, Request, Serve};

/// What becomes of a message that has been taken.
pub(crate) enum Served<D: Serve<R>, R: Request> {
    /// It has been answered, without anything to wait for.
    Now(Answer<R>),
    /// It holds the mailbox until it has settled.
    Later(Performing<D, R>),
}

impl<D: Serve<R>, R: Request> MessageResponse<Shell<D>, Envelope<R>> for Served<D, R> {
    fn handle(self, ctx: &mut Context<Shell<D>>, reply: Option<OneshotSender<Answer<R>>>) {
        match self {
            Self::Now(answer) => {
                if let Some(reply) = reply {
                    // Whoever asked may have gone away.
                    let _ = reply.send(answer);
                }
            }
            // `wait` is what keeps the next message out.
            Self::Later(performing) => {
                ctx.wait(Performing { reply, ..performing });
            }
        }
    }
}

/// Drives an effect to its end, its deadline or an interruption, each plus the domain's grace, and
/// settles it.
pub(crate) struct Performing<D: Serve<R>, R: Request> {
    effect: Option<LocalFuture<D::Outcome>>,
    /// What cuts it off; made when the effect has to wait for something.
    limit: Option<LocalFuture<Completion<D::Outcome>>>,
    call: Call,
    grace: Duration,
    /// What is needed to settle it, once.
    rest: Option<(D::Ticket, Received, Place)>,
    reply: Option<OneshotSender<Answer<R>>>,
}

// Nothing in it is pinned in place: its futures are boxed.
impl<D: Serve<R>, R: Request> Unpin for Performing<D, R> {}

impl<D: Serve<R>, R: Request> Performing<D, R> {
    pub(crate) fn new(
        effect: LocalFuture<D::Outcome>,
        ticket: D::Ticket,
        call: Call,
        grace: Duration,
        record: Received,
        place: Place,
    ) -> Self {
        let rest = Some((ticket, record, place));
        Self { effect: Some(effect), limit: None, call, grace, rest, reply: None }
    }

    fn poll_effect(&mut self, cx: &mut TaskContext<'_>) -> Poll<std::thread::Result<Completion<D::Outcome>>> {
        let Some(effect) = &mut self.effect else { return Poll::Pending };
        match catch_unwind(AssertUnwindSafe(|| effect.as_mut().poll(cx))) {
            Err(payload) => return Poll::Ready(Err(payload)),
            Ok(Poll::Ready(outcome)) => return Poll::Ready(Ok(Completion::Finished(outcome))),
            Ok(Poll::Pending) => {}
        }
        let limit = self.limit.get_or_insert_with(|| Box::pin(cut_off(self.call.clone(), self.grace)));
        limit.as_mut().poll(cx).map(Ok)
    }
}

/// Resolves when a message must go on no more.
async fn cut_off<T>(call: Call, grace: Duration) -> Completion<T> {
    let interrupted = async {
        call.interrupted().await;
        sleep(grace).await;
    };
    tokio::select! {
        biased;
        () = sleep_until(call.deadline + grace) => Completion::DeadlinePassed,
        () = interrupted => Completion::Interrupted,
    }
}

impl<D: Serve<R>, R: Request> ActorFuture<Shell<D>> for Performing<D, R> {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        shell: &mut Shell<D>,
        _: &mut Context<Shell<D>>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        let done = ready!(self.poll_effect(cx));
        // Its effect has ended before it settles: nobody else looks at the domain's plans.
        self.effect = None;
        let Some((ticket, record, place)) = self.rest.take() else { return Poll::Ready(()) };
        shell.was_cut_off = !matches!(done, Ok(Completion::Finished(_)));
        let answer = match done {
            Err(payload) => Err(shell.die(&*payload)),
            Ok(done) => {
                let settled = catch_unwind(AssertUnwindSafe(|| shell.domain.settle(ticket, done)));
                settled.map_err(|payload| shell.die(&*payload))
            }
        };
        let answer = shell.answered::<R>(&record, answer, place);
        if let Some(reply) = self.reply.take() {
            // Whoever asked may have gone away.
            let _ = reply.send(answer);
        }
        Poll::Ready(())
    }
}
