//! The agent's own life: pseudo file systems, event loops, and the ttrpc server.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::{AGENT_PORT, agent_ttrpc, health_ttrpc};
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::console::say;
use crate::hotplug::Hotplug;
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::service::{NOT_SERVED, Service};
use crate::{cgroup, network};

/// The first argument that selects this life.
pub(crate) const ARGUMENT: &str = "agent";

/// How long a device may take to appear, unless `agent.hotplug_timeout` says otherwise.
const HOTPLUG_TIMEOUT: Duration = Duration::from_secs(3);

/// Sets the guest up and serves the protocol until the machine is switched off.
pub(crate) fn run() -> Result<()> {
    mount_all()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve())
}

async fn serve() -> Result<()> {
    let reaper = Reaper::start()?;
    let hotplug = Hotplug::start(hotplug_timeout())?;
    cgroup::enable_controllers();
    if let Err(error) = network::bring_up_loopback().await {
        say(format_args!("loopback: {error:#}"));
    }
    let service = Arc::new(Service::new(Sandbox::new(reaper, hotplug)));
    let mut agent = agent_ttrpc::create_agent_service(service.clone());
    if let Some(service) = agent.get_mut("grpc.AgentService") {
        // A method that is not there makes the server answer UNIMPLEMENTED, which is the truth.
        service.methods.retain(|path, _| !NOT_SERVED.iter().any(|name| path == name));
    }
    let mut server = ttrpc::asynchronous::Server::new()
        .bind(&format!("vsock://-1:{AGENT_PORT}"))
        .context("listen on vsock")?
        .register_service(health_ttrpc::create_health(service))
        .register_service(agent);
    server.start().await.context("serve")?;
    say(format_args!("serving on vsock port {AGENT_PORT}"));
    std::future::pending::<()>().await;
    Ok(())
}

fn mount_all() -> Result<()> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let no_suid = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let table: [(&str, &str, MsFlags, Option<&str>); 7] = [
        ("proc", "/proc", safe, None),
        ("sysfs", "/sys", safe, None),
        ("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=0620,ptmxmode=0666")),
        ("mqueue", "/dev/mqueue", safe, None),
        ("tmpfs", "/tmp", no_suid, Some("mode=1777")),
        ("tmpfs", "/run", no_suid, Some("mode=0755")),
        ("cgroup2", cgroup::ROOT, safe, None),
    ];
    for (kind, target, flags, data) in table {
        fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
        mount(Some(kind), target, Some(kind), flags, data).with_context(|| format!("mount {target}"))?;
    }
    fs::create_dir_all("/etc")?;
    Ok(())
}

/// The `agent.hotplug_timeout` of the kernel's command line, in seconds.
fn hotplug_timeout() -> Duration {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    parse_hotplug_timeout(&line).unwrap_or(HOTPLUG_TIMEOUT)
}

fn parse_hotplug_timeout(line: &str) -> Option<Duration> {
    line.split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("agent.hotplug_timeout="))
        .filter_map(|seconds| seconds.parse().ok().map(Duration::from_secs))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hotplug_timeout_counts() {
        assert_eq!(parse_hotplug_timeout("quiet agent.log=debug"), None);
        let line = "agent.hotplug_timeout=1 quiet agent.hotplug_timeout=10\n";
        assert_eq!(parse_hotplug_timeout(line), Some(Duration::from_secs(10)));
    }
}
