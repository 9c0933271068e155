//! Where a picture puts what: a lane for each actor and for the other side of each peer port, rows
//! within a lane so that nothing overlaps, and folds where nothing happens.

use sandbox_model::lifecycle::ActorName;

use super::Life;

/// Ports with somebody on the other side, who gets a lane: several actors call them. Calls of the
/// other ports reach the kernel and are drawn below the message that made them.
const PEERS: [(&str, &str); 2] = [("hypervisor", "vmm"), ("guest-agent", "agent")];
/// A stretch in which nothing begins or ends is folded if it is this part of the life.
const FOLD_PART: u64 = 20;
/// How wide a fold is drawn, as a part of what is not folded.
const FOLD_WIDTH: f64 = 0.02;

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    /// Rows of messages that wait in the mailbox.
    pub(crate) waiting: usize,
    /// Rows of calls.
    pub(crate) calls: usize,
}

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessagePlace {
    pub(crate) lane: usize,
    /// Its row while it waits; `None` if it did not wait.
    pub(crate) waiting: Option<usize>,
}

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallPlace {
    pub(crate) lane: usize,
    pub(crate) row: usize,
}

/// A life with a place for everything.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) lanes: Vec<Lane>,
    /// In the order of the life's messages.
    pub(crate) messages: Vec<MessagePlace>,
    /// In the order of the life's calls.
    pub(crate) calls: Vec<CallPlace>,
    pub(crate) scale: Scale,
}

impl Layout {
    pub(crate) fn new(life: &Life) -> Self {
        let names = ActorName::ALL.iter().map(|actor| actor.as_str()).chain(PEERS.iter().map(|(_, name)| *name));
        let mut lanes: Vec<_> = names.map(|name| Lane { name, waiting: 0, calls: 0 }).collect();
        let mut messages = vec![MessagePlace { lane: 0, waiting: None }; life.messages.len()];
        let mut calls = vec![CallPlace { lane: 0, row: 0 }; life.calls.len()];
        for (index, lane) in lanes.iter_mut().enumerate() {
            let here = |actor: ActorName| ActorName::ALL.get(index) == Some(&actor);
            let served: Vec<_> = (0..messages.len()).filter(|n| here(life.messages[*n].actor)).collect();
            let waited: Vec<_> =
                served.iter().copied().filter(|n| life.messages[*n].sent_us < life.messages[*n].taken_us).collect();
            let times = waited.iter().map(|n| (life.messages[*n].sent_us, life.messages[*n].taken_us));
            let (rows, count) = pack(&times.collect::<Vec<_>>());
            lane.waiting = count;
            for n in served {
                messages[n].lane = index;
            }
            for (n, row) in waited.into_iter().zip(rows) {
                messages[n].waiting = Some(row);
            }
            let made: Vec<_> =
                (0..calls.len()).filter(|n| lane_of(&life.calls[*n].port, life.calls[*n].actor) == index).collect();
            let times = made.iter().map(|n| (life.calls[*n].begun_us, life.calls[*n].ended_us));
            let (rows, count) = pack(&times.collect::<Vec<_>>());
            lane.calls = count;
            for (n, row) in made.into_iter().zip(rows) {
                calls[n] = CallPlace { lane: index, row };
            }
        }
        Self { lanes, messages, calls, scale: Scale::new(life) }
    }
}

fn lane_of(port: &str, actor: ActorName) -> usize {
    let peer = PEERS.iter().position(|(of, _)| *of == port);
    peer.map_or_else(|| lane_of_actor(actor), |peer| ActorName::ALL.len() + peer)
}

/// The lane of an actor.
pub(crate) fn lane_of_actor(actor: ActorName) -> usize {
    ActorName::ALL.iter().position(|one| *one == actor).unwrap_or(0)
}

/// Gives each interval the first row in which it overlaps none before it, and counts the rows. One
/// may begin when the other ends.
pub(crate) fn pack(times: &[(u64, u64)]) -> (Vec<usize>, usize) {
    let mut order: Vec<_> = (0..times.len()).collect();
    order.sort_by_key(|n| (times[*n].0, times[*n].1));
    let (mut rows, mut ends) = (vec![0; times.len()], Vec::new());
    for n in order {
        let (begun, ended) = times[n];
        let free = ends.iter().position(|end| *end <= begun);
        let row = free.unwrap_or(ends.len());
        match ends.get_mut(row) {
            Some(end) => *end = ended,
            None => ends.push(ended),
        }
        rows[n] = row;
    }
    (rows, ends.len())
}

/// From time to place: linear, but for folds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scale {
    begun_us: u64,
    ended_us: u64,
    /// Stretches in which nothing begins or ends, drawn narrow.
    pub(crate) folds: Vec<(u64, u64)>,
}

impl Scale {
    fn new(life: &Life) -> Self {
        let mut times: Vec<_> = [life.begun_us, life.ended_us].into();
        times.extend(life.messages.iter().flat_map(|message| [message.sent_us, message.taken_us, message.ended_us]));
        times.extend(life.calls.iter().flat_map(|call| [call.begun_us, call.ended_us]));
        times.extend(life.marks.iter().map(|mark| mark.at_us));
        times.extend(life.events.iter().map(|event| event.at_us));
        times.sort_unstable();
        times.dedup();
        let total = life.duration_us();
        let gaps = times.windows(2).map(|pair| (pair[0], pair[1]));
        let long: Vec<_> = gaps.filter(|(from, to)| (to - from) * FOLD_PART >= total && to > from).collect();
        let quiet: u64 = long.iter().map(|(from, to)| to - from).sum();
        // Where less than half is quiet the truth is also the better picture.
        let folds = if quiet * 2 >= total && quiet < total { long } else { Vec::new() };
        Self { begun_us: life.begun_us, ended_us: life.ended_us, folds }
    }

    /// How wide a fold is, in microseconds of what is not folded.
    pub(crate) fn fold_width(&self) -> f64 {
        let quiet: u64 = self.folds.iter().map(|(from, to)| to - from).sum();
        (self.ended_us - self.begun_us - quiet) as f64 * FOLD_WIDTH
    }

    /// A time as microseconds of what is drawn, from 0.
    pub(crate) fn place(&self, us: u64) -> f64 {
        let mut place = us.saturating_sub(self.begun_us) as f64;
        for (from, to) in &self.folds {
            let inside = us.clamp(*from, *to) - from;
            let part = inside as f64 / (to - from) as f64;
            place += part * self.fold_width() - inside as f64;
        }
        place
    }

    /// The end as a place.
    pub(crate) fn width(&self) -> f64 {
        self.place(self.ended_us)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn overlaps(mut bars: Vec<(u64, u64)>) -> bool {
        bars.sort_unstable();
        bars.windows(2).any(|pair| pair[0].1 > pair[1].0)
    }

    #[test]
    fn intervals_share_a_row_only_if_they_do_not_overlap() {
        assert_eq!(pack(&[(0, 5), (5, 6), (3, 4), (4, 9), (1, 2)]), (vec![0, 0, 1, 1, 1], 2));
        assert_eq!(pack(&[]), (vec![], 0));
        assert_eq!(pack(&[(2, 2), (2, 2)]), (vec![0, 0], 1), "nothing takes no room");
    }

    #[test]
    fn nothing_in_a_row_overlaps() {
        for life in &sample::story().lives {
            let layout = Layout::new(life);
            for (index, lane) in layout.lanes.iter().enumerate() {
                let here = |n: &usize| layout.messages[*n].lane == index;
                let served: Vec<_> = (0..life.messages.len()).filter(here).collect();
                let handling = served.iter().map(|n| (life.messages[*n].taken_us, life.messages[*n].ended_us));
                assert!(!overlaps(handling.collect()), "{} serves one at a time", lane.name);
                for row in 0..lane.waiting {
                    let waiting = served.iter().filter(|n| layout.messages[**n].waiting == Some(row));
                    let times = waiting.map(|n| (life.messages[*n].sent_us, life.messages[*n].taken_us));
                    assert!(!overlaps(times.collect()), "{} waiting {row}", lane.name);
                }
                for row in 0..lane.calls {
                    let calls = (0..life.calls.len()).filter(|n| layout.calls[*n] == CallPlace { lane: index, row });
                    let times = calls.map(|n| (life.calls[n].begun_us, life.calls[n].ended_us));
                    assert!(!overlaps(times.collect()), "{} calls {row}", lane.name);
                }
            }
        }
    }

    #[test]
    fn a_call_lies_within_its_message() {
        for life in &sample::story().lives {
            let by_seq = life.by_seq();
            // Whoever waits for the VM's end does so beside the messages.
            for call in life.calls.iter().filter(|call| call.method != "wait_exit") {
                let message = by_seq[&call.cause.unwrap()];
                assert_eq!(message.actor, call.actor);
                assert!(message.taken_us <= call.begun_us && call.ended_us <= message.ended_us, "{call:?}");
            }
        }
    }

    #[test]
    fn peers_have_lanes_of_their_own() {
        let story = sample::story();
        let life = &story.lives[0];
        let layout = Layout::new(life);
        let lane = |n: usize| layout.lanes[layout.calls[n].lane].name;
        for (n, call) in life.calls.iter().enumerate() {
            let expected = match call.port.as_str() {
                "hypervisor" => "vmm",
                "guest-agent" => "agent",
                _ => call.actor.as_str(),
            };
            assert_eq!(lane(n), expected);
        }
    }

    #[test]
    fn a_fold_keeps_order_and_says_nothing_of_the_rest() {
        let scale = Scale { begun_us: 100, ended_us: 10_200, folds: vec![(150, 10_150)] };
        assert_eq!(scale.fold_width(), 2.0);
        let places: Vec<_> = [100, 125, 150, 5_150, 10_150, 10_200].map(|us| scale.place(us)).into();
        assert_eq!(places, [0.0, 25.0, 50.0, 51.0, 52.0, 102.0]);
        assert_eq!(scale.width(), 102.0);
    }

    #[test]
    fn only_quiet_lives_are_folded() {
        let story = sample::story();
        for life in &story.lives {
            let scale = Scale::new(life);
            let quiet: u64 = scale.folds.iter().map(|(from, to)| to - from).sum();
            assert!(scale.folds.is_empty() || quiet * 2 >= life.duration_us());
            let inside = |us: u64| scale.folds.iter().any(|(from, to)| *from < us && us < *to);
            assert!(!life.messages.iter().any(|message| inside(message.taken_us) || inside(message.ended_us)));
        }
    }
}
