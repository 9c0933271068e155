//! What the mailboxes of a sandbox are at, for those who look from outside.
//!
//! Nobody decides by these numbers; they are written where messages pass and read by copies.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandbox_model::Instant;
use sandbox_model::lifecycle::ActorName;
use serde::{Deserialize, Serialize};

/// Two for each doubling of a microsecond, up to 67 s; what takes longer is in the last.
const BUCKETS: usize = 54;

/// The mailboxes of one sandbox. Clones show the same.
///
/// The lock is held for a few instructions, by whoever changes or copies a number.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<[Mailbox; ActorName::ALL.len()]>>);

/// One actor's mailbox.
#[derive(Debug, Clone, Default)]
struct Mailbox {
    /// The messages that wait: their numbers, which grow, and when they were sent.
    waiting: VecDeque<(u64, Instant)>,
    sent: u64,
    now: Option<(&'static str, Instant, Instant)>,
    refused: u64,
    spawned: u32,
    served: u64,
    /// As many buckets as have been needed.
    took: Vec<u32>,
}

/// What an actor is at. Times are microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Figures {
    /// Which actor.
    pub actor: ActorName,
    /// What it serves now.
    pub now: Option<InFlight>,
    /// Messages that wait in its mailbox.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub oldest_us: Option<u64>,
    /// Messages that it has served.
    pub served: u64,
    /// Half of these took at most so long; within a quarter.
    pub p50_us: Option<u64>,
    /// 99 of 100 took at most so long; within a quarter.
    pub p99_us: Option<u64>,
    /// Messages that were not served: too many waited, or they were late.
    pub refused: u64,
    /// How often it has died and been replaced.
    pub restarted: u32,
}

/// A message that is being served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct InFlight {
    /// Its name.
    pub message: String,
    /// For how long it has been served.
    pub elapsed_us: u64,
    /// When it must be answered, from when it was taken.
    pub deadline_us: u64,
}

impl Board {
    /// What each actor is at now, in the order of [`ActorName::ALL`].
    pub fn figures(&self) -> Vec<Figures> {
        let now = Instant::now();
        let mailboxes = self.mailboxes();
        ActorName::ALL.iter().zip(mailboxes.iter()).map(|(actor, mailbox)| mailbox.figures(*actor, now)).collect()
    }

    fn mailboxes(&self) -> MutexGuard<'_, [Mailbox; ActorName::ALL.len()]> {
        // Nothing panics while it is held, and numbers are only shown.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn spawned(&self, actor: ActorName) {
        let mailbox = &mut self.mailboxes()[actor as usize];
        mailbox.spawned += 1;
        mailbox.now = None;
    }

    pub(crate) fn refused(&self, actor: ActorName) {
        self.mailboxes()[actor as usize].refused += 1;
    }

    /// A message is on its way into a mailbox. Its number is for when it waits no more.
    pub(crate) fn sent(&self, actor: ActorName, at: Instant) -> u64 {
        let mailbox = &mut self.mailboxes()[actor as usize];
        mailbox.sent += 1;
        mailbox.waiting.push_back((mailbox.sent, at));
        mailbox.sent
    }

    /// A message waits no more, and is being served: its name, since when, and until when.
    pub(crate) fn taken(&self, actor: ActorName, number: u64, now: (&'static str, Instant, Instant)) {
        let mailbox = &mut self.mailboxes()[actor as usize];
        mailbox.forget(number);
        mailbox.now = Some(now);
    }

    /// A message waits no more, and is not served.
    pub(crate) fn cancelled(&self, actor: ActorName, number: u64) {
        self.mailboxes()[actor as usize].forget(number);
    }

    /// A message is answered that was taken at `taken`. One that was answered at once was not shown as
    /// being served, and still has its number.
    pub(crate) fn answered(&self, actor: ActorName, number: Option<u64>, taken: Instant, was_refused: bool) {
        let bucket = bucket(micros(taken.elapsed()));
        let mailbox = &mut self.mailboxes()[actor as usize];
        mailbox.now = None;
        if let Some(number) = number {
            mailbox.forget(number);
        }
        if was_refused {
            mailbox.refused += 1;
        } else {
            mailbox.served += 1;
            mailbox.count(bucket);
        }
    }
}

impl Mailbox {
    /// Almost always the first: a mailbox is served in order, and what was cancelled leaves it so too.
    fn forget(&mut self, number: u64) {
        if let Some(place) = self.waiting.iter().position(|(waiting, _)| *waiting == number) {
            self.waiting.remove(place);
        }
    }

    fn count(&mut self, bucket: usize) {
        if self.took.len() <= bucket {
            self.took.resize(bucket + 1, 0);
        }
        self.took[bucket] = self.took[bucket].saturating_add(1);
    }

    fn oldest(&self) -> Option<Instant> {
        self.waiting.iter().map(|(_, sent)| *sent).min()
    }

    fn figures(&self, actor: ActorName, at: Instant) -> Figures {
        Figures {
            actor,
            now: self.now.map(|(message, taken, deadline)| InFlight {
                message: message.to_owned(),
                elapsed_us: micros(at.saturating_duration_since(taken)),
                deadline_us: micros(deadline.saturating_duration_since(taken)),
            }),
            waiting: self.waiting.len(),
            oldest_us: self.oldest().map(|sent| micros(at.saturating_duration_since(sent))),
            served: self.served,
            p50_us: self.quantile(50),
            p99_us: self.quantile(99),
            refused: self.refused,
            restarted: self.spawned.saturating_sub(1),
        }
    }

    /// The upper end of the bucket in which the part of `percent` lies.
    fn quantile(&self, percent: u64) -> Option<u64> {
        let total: u64 = self.took.iter().map(|count| u64::from(*count)).sum();
        let wanted = (total * percent).div_ceil(100);
        let mut seen = 0;
        let index = self.took.iter().position(|count| {
            seen += u64::from(*count);
            total > 0 && seen >= wanted
        });
        index.map(upper_end)
    }
}

/// Bucket 0 is less than 1 µs; then for each doubling its lower and its upper half.
fn bucket(us: u64) -> usize {
    let Some(doubling) = us.checked_ilog2() else { return 0 };
    let half = if doubling == 0 { 0 } else { us >> (doubling - 1) & 1 };
    (1 + 2 * doubling as usize + half as usize).min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> u64 {
    let Some(above) = bucket.checked_sub(1) else { return 0 };
    let doubling = above / 2;
    if above % 2 == 1 || doubling == 0 { (2 << doubling) - 1 } else { (3 << (doubling - 1)) - 1 }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_less_than_half_above_what_is_in_it() {
        for us in (0..4096).chain([50_000, 1_000_000, 60_000_000]) {
            let end = upper_end(bucket(us));
            assert!(us <= end && end <= us + us / 2 + 1, "{us} -> {end}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_what_was_served() {
        let mut mailbox = Mailbox::default();
        assert_eq!(mailbox.quantile(50), None);
        for us in 1..=100 {
            mailbox.count(bucket(us));
        }
        assert!(mailbox.quantile(50).is_some_and(|us| (50..=75).contains(&us)));
        assert!(mailbox.quantile(99).is_some_and(|us| us >= 99));
    }

    #[tokio::test(start_paused = true)]
    async fn a_board_shows_who_waits_and_what_is_served() {
        let board = Board::default();
        let actor = ActorName::Device;
        board.spawned(actor);
        let sent = || board.sent(actor, Instant::now());
        let (first, second, third) = (sent(), sent(), sent());
        tokio::time::advance(Duration::from_millis(3)).await;
        board.cancelled(actor, third);
        let taken = Instant::now();
        board.taken(actor, first, ("AttachDevice", taken, taken + Duration::from_secs(1)));
        tokio::time::advance(Duration::from_millis(2)).await;
        let figures = &board.figures()[1];
        let now = InFlight { message: "AttachDevice".into(), elapsed_us: 2_000, deadline_us: 1_000_000 };
        assert_eq!((figures.actor, &figures.now), (actor, &Some(now)));
        assert_eq!((figures.waiting, figures.oldest_us), (1, Some(5_000)));
        board.answered(actor, None, taken, false);
        board.answered(actor, Some(second), Instant::now(), false);
        board.refused(actor);
        board.spawned(actor);
        let figures = &board.figures()[1];
        assert_eq!((figures.served, figures.refused, figures.restarted, figures.waiting), (2, 1, 1, 0));
        assert_eq!(figures.now, None);
        assert!(board.figures().iter().all(|other| other.actor == actor || other.served == 0));
    }
}
