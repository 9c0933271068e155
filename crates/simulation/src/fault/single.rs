//! An interceptor that lets chosen calls fail, for tests of a single actor.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::{PortError, PortResult};
use serde_json::Value;

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// It does not happen and fails.
    Fails(PortError),
    /// It happens, and fails all the same.
    HappensAndFails(PortError),
    /// It does not happen and never returns.
    Hangs,
    /// It happens and never returns.
    HappensAndHangs,
}

/// Faults that wait for their calls; each strikes once.
#[derive(Debug, Default)]
pub struct Faults {
    waiting: Mutex<Vec<(&'static str, Fault)>>,
    calls: Mutex<Vec<String>>,
}

impl Faults {
    /// No faults.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Lets the next call of `method` meet `fault`.
    pub fn on(&self, method: &'static str, fault: Fault) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((method, fault));
    }

    /// The methods that were called, in order; forgotten by this.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn next(&self, method: &str) -> Option<Fault> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let place = waiting.iter().position(|(waits_for, _)| *waits_for == method)?;
        Some(waiting.remove(place).1)
    }
}

impl Interceptor for Faults {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call.method.to_owned());
        let fault = self.next(call.method);
        Box::pin(async move {
            match fault {
                None => inner.await,
                Some(Fault::Fails(error)) => Err(error),
                Some(Fault::HappensAndFails(error)) => inner.await.and(Err(error)),
                Some(Fault::Hangs) => std::future::pending().await,
                Some(Fault::HappensAndHangs) => {
                    let _ = inner.await;
                    std::future::pending().await
                }
            }
        })
    }
}
