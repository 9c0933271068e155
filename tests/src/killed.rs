//! Processes that die in the middle: a runtime is dropped with all its actors, the world and the
//! store stay.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use resource_actors::system::Intercept;
use sandbox_model::PortResult;
use sandbox_model::port::{Interceptor, PortCall};
use serde_json::Value;
use tokio::sync::Notify;

use crate::simulated::in_virtual_time;

/// Where a process dies: at which call through a port, before its effect or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Counted from 0 over all actors.
    pub call: usize,
    /// Whether the call has had its effect.
    pub done: bool,
}

impl At {
    /// Every point of a life with `calls` calls, in order.
    pub fn every(calls: usize) -> impl Iterator<Item = Self> {
        (0..calls).flat_map(|call| [false, true].map(|done| Self { call, done }))
    }
}

/// What happens where a process was to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    Panic,
}

/// What an injected panic says.
pub const PANIC: &str = "an injected panic";

#[derive(Debug)]
struct Killer {
    at: Option<At>,
    end: End,
    calls: AtomicUsize,
    dies: Notify,
}

#[derive(Debug)]
struct Hand(Arc<Killer>);

impl Interceptor for Hand {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'a, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        // It waits beside everything else, outside of any actor.
        if call.method == "wait_exit" {
            return inner;
        }
        let number = self.0.calls.fetch_add(1, Ordering::Relaxed);
        let Some(at) = self.0.at.filter(|at| at.call == number) else { return inner };
        Box::pin(async move {
            if at.done {
                let _ = inner.await;
            }
            match self.0.end {
                End::Kill => {
                    self.0.dies.notify_one();
                    std::future::pending().await
                }
                End::Panic => panic!("{PANIC}"),
            }
        })
    }
}

/// Runs a process on simulated ports until it ends or dies; returns what it came to, unless it died,
/// and how many calls it made; `wait_exit` does not count.
pub fn process<T, F: Future<Output = T>>(at: Option<At>, life: impl FnOnce(Intercept) -> F) -> (Option<T>, usize) {
    let killer = Arc::new(Killer { at, end: End::Kill, calls: AtomicUsize::new(0), dies: Notify::new() });
    let intercept = everywhere(&killer);
    let outcome = in_virtual_time(|| async {
        tokio::select! {
            biased;
            () = killer.dies.notified() => None,
            done = life(intercept) => Some(done),
        }
    });
    (outcome, killer.calls.load(Ordering::Relaxed))
}

fn everywhere(killer: &Arc<Killer>) -> Intercept {
    let hand = killer.clone();
    Arc::new(move |_, _, _| Some(Arc::new(Hand(hand.clone())) as Arc<dyn Interceptor>))
}

/// Lets the actor that makes a call panic over it.
pub fn panic_at(at: At) -> Intercept {
    everywhere(&Arc::new(Killer { at: Some(at), end: End::Panic, calls: AtomicUsize::new(0), dies: Notify::new() }))
}
