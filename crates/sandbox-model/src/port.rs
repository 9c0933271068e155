//! Ports: what an actor may ask of the world.
//!
//! A port is declared once, by [`port!`](crate::port!). That gives the trait that a real and a
//! simulated implementation provide, and a proxy that lets an [`Interceptor`] stand around every
//! call: the recorder, the replayer and the fault injector are interceptors, written once for all
//! ports.

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::trace::{Content, Ended, Written};
use crate::{ErrorKind, PortError, PortResult};

#[doc(hidden)]
pub use async_trait::async_trait;

/// One call through a port, as data.
#[derive(Debug, Clone)]
pub struct PortCall {
    /// The port's name (`network-host`).
    pub port: &'static str,
    /// The method's name (`create_tap`).
    pub method: &'static str,
    /// The request.
    pub request: Value,
    /// When it must be answered. Not part of a record: it follows from the step's.
    pub deadline: crate::Instant,
}

/// Stands around the calls of one actor through one port.
pub trait Interceptor: fmt::Debug + Send + Sync {
    /// Answers `call`, by driving `inner` or without it.
    ///
    /// `inner` does nothing until it is polled: an interceptor that answers from a trace drops it. It
    /// stands on its own, so that one may let it happen after the caller has given up.
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'static, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>>;
}

/// Told of the calls of one actor through its ports.
pub trait Witness: fmt::Debug + Send + Sync {
    /// A call is about to be made.
    fn begun(&self, port: &'static str, method: &'static str, request: &dyn Content) -> BegunCall;

    /// It has ended.
    fn ended(&self, call: BegunCall, result: Ended<&dyn Content>);
}

/// What a witness keeps of a call until its end.
#[derive(Debug)]
pub struct BegunCall {
    /// The port's name.
    pub port: &'static str,
    /// The method's name.
    pub method: &'static str,
    /// The request, which goes to the port itself.
    pub request: Written,
    /// The message that was served when the call was made.
    pub cause: Option<u64>,
    /// When that was.
    pub begun_us: u64,
}

/// A call under way. One that is dropped has ended too: a replay then knows that nothing came back.
#[doc(hidden)]
#[derive(Debug)]
pub struct OpenCall<'a> {
    witness: &'a dyn Witness,
    call: Option<BegunCall>,
}

impl<'a> OpenCall<'a> {
    /// Tells `witness` that a call begins.
    pub fn begin(witness: &'a dyn Witness, port: &'static str, method: &'static str, request: &dyn Content) -> Self {
        Self { witness, call: Some(witness.begun(port, method, request)) }
    }

    /// Tells it how the call ended.
    pub fn end<T: Serialize>(mut self, result: &PortResult<T>) {
        self.tell(match result {
            Ok(reply) => Ended::Ok(reply),
            Err(error) => Ended::Err(error.clone()),
        });
    }

    fn tell(&mut self, result: Ended<&dyn Content>) {
        if let Some(call) = self.call.take() {
            self.witness.ended(call, result);
        }
    }
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        self.tell(if std::thread::panicking() { Ended::Panicked } else { Ended::Dropped });
    }
}

/// What a proxy puts around its port.
#[derive(Debug, Clone)]
pub enum Around {
    /// Someone who decides what becomes of a call.
    Interceptor(Arc<dyn Interceptor>),
    /// Someone who hears of it, and costs no more than that.
    Witness(Arc<dyn Witness>),
}

impl<I: Interceptor + 'static> From<Arc<I>> for Around {
    fn from(interceptor: Arc<I>) -> Self {
        Self::Interceptor(interceptor)
    }
}

/// A port with nothing behind it: every call is refused. A replay, which answers from a trace and
/// never calls through, stands on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Absent;

/// Turns a request or reply into data.
#[doc(hidden)]
pub fn to_value<T: Serialize>(port: &str, method: &str, value: &T) -> PortResult<Value> {
    serde_json::to_value(value).map_err(|error| {
        PortError::new(ErrorKind::Protocol, method.to_owned(), port.to_owned(), format!("not recordable: {error}"))
    })
}

/// Turns data into a reply.
#[doc(hidden)]
pub fn from_value<T: DeserializeOwned>(port: &str, method: &str, value: Value) -> PortResult<T> {
    serde_json::from_value(value).map_err(|error| {
        PortError::new(
            ErrorKind::Protocol,
            method.to_owned(),
            port.to_owned(),
            format!("the recorded answer does not fit: {error}"),
        )
    })
}

/// Declares a port: a trait of asynchronous calls, each with one request struct and a deadline, and
/// its proxy.
///
/// ```
/// use sandbox_model::port;
///
/// port! {
///     /// Answers greetings.
///     pub trait Greeter as "greeter", proxy GreeterProxy {
///         /// Greets `request` by name.
///         fn greet(String) -> String;
///     }
/// }
///
/// #[derive(Debug)]
/// struct Polite;
///
/// #[sandbox_model::port::async_trait]
/// impl Greeter for Polite {
///     async fn greet(&self, request: String, _: sandbox_model::Instant) -> sandbox_model::PortResult<String> {
///         Ok(format!("good day, {request}"))
///     }
/// }
/// ```
#[macro_export]
macro_rules! port {
    (
        $(#[$doc:meta])*
        pub trait $name:ident as $label:literal, proxy $proxy:ident {
            $( $(#[$method_doc:meta])* fn $method:ident($request:ty) -> $reply:ty; )*
        }
    ) => {
        $(#[$doc])*
        #[$crate::port::async_trait]
        pub trait $name: ::std::fmt::Debug + Send + Sync {
            $(
                $(#[$method_doc])*
                ///
                /// # Errors
                /// A [`PortError`]($crate::PortError) that names the operation, its object and the cause; past
                /// `deadline` its kind is `TimedOut` and its outcome `Doubtful`.
                async fn $method(&self, request: $request, deadline: $crate::Instant) -> $crate::PortResult<$reply>;
            )*
        }

        #[$crate::port::async_trait]
        impl $name for $crate::port::Absent {
            $(
                async fn $method(&self, _: $request, _: $crate::Instant) -> $crate::PortResult<$reply> {
                    let (kind, method) = ($crate::ErrorKind::Unsupported, stringify!($method));
                    Err($crate::PortError::new(kind, method, $label, "nothing stands behind this port"))
                }
            )*
        }

        /// The same port with an [`Interceptor`]($crate::port::Interceptor) or a
        /// [`Witness`]($crate::port::Witness) around every call.
        #[derive(Debug)]
        pub struct $proxy {
            inner: ::std::sync::Arc<dyn $name>,
            around: $crate::port::Around,
        }

        impl $proxy {
            /// The port's name in calls and records.
            pub const PORT: &'static str = $label;
            /// The names of its methods, in the order of their declaration.
            pub const METHODS: &'static [&'static str] = &[$(stringify!($method)),*];

            /// Puts `around` around `inner`.
            pub fn wrap(
                inner: ::std::sync::Arc<dyn $name>,
                around: impl Into<$crate::port::Around>,
            ) -> ::std::sync::Arc<dyn $name> {
                ::std::sync::Arc::new(Self { inner, around: around.into() })
            }
        }

        #[$crate::port::async_trait]
        impl $name for $proxy {
            $(
                async fn $method(&self, request: $request, deadline: $crate::Instant) -> $crate::PortResult<$reply> {
                    let method = stringify!($method);
                    let interceptor = match &self.around {
                        $crate::port::Around::Interceptor(interceptor) => interceptor,
                        $crate::port::Around::Witness(witness) => {
                            let open = $crate::port::OpenCall::begin(&**witness, $label, method, &request);
                            let result = self.inner.$method(request, deadline).await;
                            open.end(&result);
                            return result;
                        }
                    };
                    let call = $crate::port::PortCall {
                        port: $label,
                        method,
                        request: $crate::port::to_value($label, method, &request)?,
                        deadline,
                    };
                    // The live reply keeps its handles; what the interceptor returns decides
                    // whether it or the recorded one is used.
                    let kept = ::std::sync::Arc::new(::std::sync::OnceLock::new());
                    let keep = kept.clone();
                    let inner = self.inner.clone();
                    let answer = interceptor.around(call, Box::pin(async move {
                        let reply = inner.$method(request, deadline).await?;
                        let value = $crate::port::to_value($label, method, &reply)?;
                        let _ = keep.set(reply);
                        Ok(value)
                    })).await?;
                    match ::std::sync::Arc::into_inner(kept).and_then(::std::sync::OnceLock::into_inner) {
                        Some(reply) => Ok(reply),
                        None => $crate::port::from_value($label, method, answer),
                    }
                }
            )*
        }
    };
}
