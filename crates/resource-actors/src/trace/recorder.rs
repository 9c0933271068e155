//! Records every call of one actor through its ports.

use std::sync::Arc;

use actor_shell::CurrentCause;
use futures::future::BoxFuture;
use sandbox_model::lifecycle::ActorName;
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::trace::{Event, Place, TraceSink};
use sandbox_model::{PortResult, SandboxId};
use serde_json::Value;

/// An interceptor that only watches.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) sandbox: SandboxId,
    pub(crate) actor: ActorName,
    pub(crate) cause: CurrentCause,
    pub(crate) sink: Arc<dyn TraceSink>,
}

impl Interceptor for Recorder {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'a, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        // The message that is served when the call is made, not when it ends.
        let cause = Some(self.cause.get()).filter(|seq| *seq != 0);
        Box::pin(async move {
            let begun_us = self.sink.now_us();
            let result = inner.await;
            let at_us = self.sink.now_us();
            self.sink.record(Event::Called {
                place: Place {
                    seq: self.sink.next_seq(),
                    cause,
                    sandbox: self.sandbox.clone(),
                    actor: self.actor,
                    at_us,
                },
                port: call.port.to_owned(),
                method: call.method.to_owned(),
                request: call.request,
                result: result.clone(),
                took_us: at_us.saturating_sub(begun_us),
            });
            result
        })
    }
}
