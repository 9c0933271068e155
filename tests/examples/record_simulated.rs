//! Records simulated lives in virtual time, to look at with `sandboxctl trace timeline`.
//!
//! `cargo run -p lifecycle-tests --example record_simulated -- COUNT FILE`
//!
//! Each call takes as long as its name says and always the same; every third life, the first one
//! excepted, has a call that fails.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use futures::future::BoxFuture;
use lifecycle_tests::simulated::{add_container, boot, container, create, in_virtual_time, limits, system};
use resource_actors::system::Intercept;
use resource_actors::trace::TraceFile;
use resource_actors::{ResourceSystem, SandboxHandle};
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::request::ResourceUpdate;
use sandbox_model::trace::Header;
use sandbox_model::{ErrorKind, PortError, PortResult};
use serde_json::Value;
use simulation::World;

/// Lives that go on at the same time.
const AT_ONCE: usize = 24;
/// Calls that fail in turn, each with what the kernel or the VMM would say.
const FAILING: [(&str, ErrorKind, &str); 4] = [
    ("create_tap", ErrorKind::Busy, "Device or resource busy (os error 16)"),
    ("start_vm", ErrorKind::PeerGone, "exit status 1: cannot allocate memory"),
    ("attach", ErrorKind::Denied, "Permission denied (os error 13)"),
    ("resize_memory", ErrorKind::Refused, "no free DIMM slot"),
];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (count, file) = (arguments.next().context("COUNT FILE")?, arguments.next().context("COUNT FILE")?);
    let count: usize = count.parse().context("COUNT is a number")?;
    let header = Header { seed: Some(1), ..Header::new("simulated", "simulated") };
    let trace = TraceFile::create(Path::new(&file), header)?;
    let sink = trace.sink();
    in_virtual_time(|| async move {
        let world = Arc::new(World::new());
        let weather: Intercept = Arc::new(|sandbox, _, _| Some(Arc::new(Weather { life: number(sandbox.as_str()) })));
        let system = system(&world, Some(sink), Some(weather));
        let lives = (0..count).map(|n| live(&system, n));
        futures::stream::iter(lives).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
        system.shutdown().await;
    });
    trace.finish().context("finish the trace")
}

/// One life, whatever becomes of it.
async fn live(system: &ResourceSystem, n: usize) {
    tokio::time::sleep(Duration::from_micros(n as u64 % 24 * 700)).await;
    let Ok(sandbox) = create(system, &format!("pod-{n:04}")).await else { return };
    if let Err(error) = run(&sandbox).await {
        println!("{}: {error}", sandbox.id());
    }
    drop(sandbox.cleanup().await);
}

async fn run(sandbox: &SandboxHandle) -> Result<()> {
    boot(sandbox).await?;
    // Two callers at once: the second waits in the supervisor's mailbox.
    let (one, two) = futures::join!(add_container(sandbox, "one"), add_container(sandbox, "two"));
    one.and(two)?;
    let limits = limits(250_000, 400 << 20);
    sandbox.update_linux_resources(container("two"), Some(limits), ResourceUpdate::Update).await?;
    tokio::time::sleep(Duration::from_millis(900)).await;
    sandbox.release_container(container("one")).await?;
    sandbox.stop().await?;
    Ok(())
}

fn number(sandbox: &str) -> usize {
    sandbox.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Gives each call a duration, and lets one call of some lives fail.
#[derive(Debug)]
struct Weather {
    life: usize,
}

impl Weather {
    fn duration(&self, method: &str) -> Duration {
        let typical_us = match method {
            "connect" => 120_000,
            "start_vm" => 38_000,
            "stop_vm" => 24_000,
            "start_daemon" | "start_vsock_daemon" => 9_000,
            "add_device" | "remove_device" => 3_200,
            "create_namespace" | "remove_tap" => 2_500,
            "make_group" | "remove_group" => 900,
            _ => 120 + method.len() as u64 * 14,
        };
        // Lives differ, and each is the same in every recording.
        let luck = (self.life * 7919 + method.len() * 104_729) % 100;
        Duration::from_micros(typical_us * (60 + luck as u64) / 100)
    }

    fn fault(&self, call: &PortCall) -> Option<PortError> {
        let (method, kind, cause) = FAILING[self.life / 3 % FAILING.len()];
        let fails = self.life % 3 == 1 && call.method == method;
        fails.then(|| PortError::new(kind, method, call.port, cause))
    }
}

impl Interceptor for Weather {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'a, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        Box::pin(async move {
            if call.method != "wait_exit" {
                tokio::time::sleep(self.duration(call.method)).await;
            }
            match self.fault(&call) {
                Some(error) => Err(error),
                None => inner.await,
            }
        })
    }
}
