//! A request on its way to a task that serves one at a time.
//!
//! What matters to a caller whose deadline passes is whether the work had begun: if not, it never
//! will, and nothing has changed; if so, the task goes on without the caller.

use sandbox_model::Instant;
use tokio::sync::oneshot;
use tokio::time::timeout_at;

/// The server's half.
#[derive(Debug)]
pub(super) struct Ticket<R> {
    begun: Option<oneshot::Sender<()>>,
    reply: oneshot::Sender<R>,
}

/// The caller's half.
#[derive(Debug)]
pub(super) struct Claim<R> {
    begun: oneshot::Receiver<()>,
    reply: oneshot::Receiver<R>,
}

/// Why there is no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoReply {
    /// The deadline passed first, or the server went; the work has not begun and never will.
    NotBegun {
        /// Whether the server is gone.
        gone: bool,
    },
    /// The deadline passed amid the work.
    Overdue,
    /// The server went amid the work.
    Gone,
}

pub(super) fn ticket<R>() -> (Ticket<R>, Claim<R>) {
    let (begun, begun_seen) = oneshot::channel();
    let (reply, reply_seen) = oneshot::channel();
    (Ticket { begun: Some(begun), reply }, Claim { begun: begun_seen, reply: reply_seen })
}

impl<R> Ticket<R> {
    /// Whether the work may begin: the caller still waits.
    pub(super) fn begin(&mut self) -> bool {
        self.begun.take().is_some_and(|begun| begun.send(()).is_ok())
    }

    /// Ends it. The caller may be gone by now.
    pub(super) fn answer(self, reply: R) {
        let _ = self.reply.send(reply);
    }
}

impl<R> Claim<R> {
    /// Waits until the work has begun.
    pub(super) async fn begun(&mut self, deadline: Instant) -> Result<(), NoReply> {
        match timeout_at(deadline, &mut self.begun).await {
            Ok(seen) => seen.map_err(|_| NoReply::NotBegun { gone: true }),
            Err(_) => {
                // From here on the server cannot begin.
                self.begun.close();
                self.begun.try_recv().map_err(|_| NoReply::NotBegun { gone: false })
            }
        }
    }

    /// Waits for the reply, once the work has begun, until `deadline`.
    pub(super) async fn reply_by(self, deadline: Instant) -> Result<R, NoReply> {
        match timeout_at(deadline, self.reply).await {
            Ok(reply) => reply.map_err(|_| NoReply::Gone),
            Err(_) => Err(NoReply::Overdue),
        }
    }

    /// Waits for the reply of a server that keeps the deadline itself.
    pub(super) async fn reply(self) -> Result<R, NoReply> {
        self.reply.await.map_err(|_| NoReply::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_that_left_stops_what_has_not_begun() {
        let (mut served, mut claim) = ticket::<u8>();
        assert_eq!(claim.begun(Instant::now()).await, Err(NoReply::NotBegun { gone: false }));
        assert!(!served.begin());
        let (mut dropped, claim) = ticket::<u8>();
        drop(claim);
        assert!(!dropped.begin());
    }

    #[tokio::test]
    async fn what_has_begun_goes_on() {
        let (mut served, mut claim) = ticket::<u8>();
        assert!(served.begin());
        claim.begun(Instant::now()).await.unwrap();
        assert_eq!(claim.reply_by(Instant::now()).await, Err(NoReply::Overdue));
        served.answer(1);
        let (mut served, claim) = ticket::<u8>();
        assert!(served.begin());
        drop(served);
        assert_eq!(claim.reply().await, Err(NoReply::Gone));
    }
}
