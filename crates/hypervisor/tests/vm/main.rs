//! Real VMs of QEMU: paused, and with a guest.
//!
//! Without QEMU these are skipped with a message, and fail where `CI=true`.

mod adoption;
mod bench;
mod devices;
mod guest;
mod paused;
mod tap;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use helper_process::is_alive;
use hypervisor::{BindSocket, Hypervisor, QemuFactory, StartVm, StartedVm, VmSpec, VmmFactory};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox_model::config::SandboxConfig;
use sandbox_model::device::Access;
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{DeviceId, Instant, PassedFd, PortResult, SandboxId};

fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).expect("an id")
}

/// A fresh client of the VM whose sockets are in `dir`.
fn client(dir: &Path) -> Arc<dyn Hypervisor> {
    let sandbox = SandboxId::new("pod").expect("an id");
    QemuFactory::default().create(&sandbox, dir, &SandboxConfig::default()).expect("QEMU is here")
}

/// Starts a VM as a supervisor does: its sockets first.
async fn start(vm: &dyn Hypervisor, spec: VmSpec, tag: &str) -> PortResult<StartedVm> {
    for path in vm.capabilities((), in_seconds(5)).await?.sockets {
        vm.bind_socket(BindSocket { path }, in_seconds(5)).await?;
    }
    vm.start_vm(StartVm { spec, tag: tag.to_owned() }, in_seconds(20)).await
}

/// A disk, opened as the guest will use it.
fn opened(path: &Path, access: Access) -> PassedFd {
    let file = File::options().read(true).write(access == Access::ReadWrite).open(path);
    PassedFd::new(file.expect("a file").into())
}

/// Ends a process when a test is over, also when it panics.
#[derive(Debug, Default)]
struct Guard(Option<ProcessIdentity>);

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(process) = self.0 else { return };
        let pidfd = Pid::from_raw(process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // Held before it is looked at: what is alive is what is signalled.
        if let Some(pidfd) = pidfd.filter(|_| is_alive(process)) {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}
