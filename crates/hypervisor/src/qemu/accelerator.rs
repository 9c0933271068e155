//! Whether KVM works here, found out by trying.
//!
//! That `/dev/kvm` opens says little: there are kinds on which a guest with the host's CPU model
//! does not start, or does and then hangs. So a tiny VM is run with the machine and CPU model of a
//! real one; its firmware is three instructions that end QEMU with a known status. It costs about
//! 50 ms, once in each process. A KVM that runs real mode and fails later passes; then the
//! deadline of the guest's boot tells, and `accelerator = "tcg"` in the configuration helps.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use helper_process::{HelperProcess, HelperSpec};
use rustix::fs::MemfdFlags;
use sandbox_model::config::Accelerator;
use sandbox_model::{PassedFd, PortError, PortResult};
use tokio::sync::OnceCell;

use super::command_line::Executor;

/// How long the tiny VM may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of the firmware, which ends at the top of the first 4 GiB; the smallest that QEMU takes.
const FIRMWARE_LEN: usize = 64 * 1024;
/// Where an x86 CPU starts, in the firmware.
const RESET_VECTOR: usize = FIRMWARE_LEN - 16;
/// `mov dx, 0x501; mov al, 0x15; out dx, al; hlt; jmp to hlt`.
const PROGRAM: [u8; 9] = [0xba, 0x01, 0x05, 0xb0, 0x15, 0xee, 0xf4, 0xeb, 0xfd];
/// What isa-debug-exit makes of the 0x15.
const EXIT_STATUS: i32 = 0x15 << 1 | 1;
/// Number of the firmware's file in QEMU.
const FIRMWARE_FD: i32 = 3;

/// The answer, for all VMs of a factory.
#[derive(Debug, Clone, Default)]
pub(super) struct KvmProbe(Arc<OnceCell<bool>>);

impl KvmProbe {
    /// Decides how `wanted` is executed. `tag` marks the process that is started to find out.
    pub(super) async fn decide(&self, wanted: Accelerator, program: &Path, machine: &str, tag: &str) -> Executor {
        let works = match wanted {
            Accelerator::Kvm => true,
            Accelerator::Tcg => false,
            Accelerator::Auto => *self.0.get_or_init(|| kvm_works(program, machine, tag)).await,
        };
        if works { Executor::Kvm } else { Executor::Tcg }
    }
}

async fn kvm_works(program: &Path, machine: &str, tag: &str) -> bool {
    match run(program, machine, tag).await {
        Ok(true) => {
            tracing::info!("KVM works");
            true
        }
        Ok(false) => false,
        Err(error) => {
            tracing::info!(%error, "KVM cannot be tried, instructions are emulated");
            false
        }
    }
}

/// Runs the tiny VM; whether it ended as it should.
async fn run(program: &Path, machine: &str, tag: &str) -> PortResult<bool> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error| PortError::os("open", "/dev/kvm", error))?;
    let spec = HelperSpec {
        program: program.to_owned(),
        args: arguments(machine).map(Into::into).into(),
        tag: tag.to_owned(),
        passed: vec![(firmware()?, FIRMWARE_FD)],
    };
    let qemu = HelperProcess::spawn(spec).await?;
    let Ok(exit) = tokio::time::timeout(PATIENCE, qemu.wait()).await else {
        qemu.kill().await?;
        tracing::info!(seconds = PATIENCE.as_secs(), "KVM hangs, instructions are emulated");
        return Ok(false);
    };
    let works = exit.code == Some(EXIT_STATUS);
    if !works {
        tracing::info!(%exit, words = qemu.last_words(), "KVM does not work, instructions are emulated");
    }
    Ok(works)
}

fn arguments(machine: &str) -> [String; 14] {
    [
        "-nodefaults".into(),
        "-no-user-config".into(),
        "-display".into(),
        "none".into(),
        "-m".into(),
        "16M".into(),
        "-device".into(),
        "isa-debug-exit,iobase=0x501,iosize=0x04".into(),
        "-machine".into(),
        format!("{machine},accel={}", Executor::Kvm.name()),
        "-cpu".into(),
        Executor::Kvm.cpu().into(),
        "-bios".into(),
        format!("/proc/self/fd/{FIRMWARE_FD}"),
    ]
}

fn firmware() -> PortResult<PassedFd> {
    let refused = |error: std::io::Error| PortError::os("memfd_create", "firmware", error);
    let mut image = vec![0xf4; FIRMWARE_LEN];
    image[RESET_VECTOR..RESET_VECTOR + PROGRAM.len()].copy_from_slice(&PROGRAM);
    let memfd = rustix::fs::memfd_create("kvm-probe", MemfdFlags::CLOEXEC).map_err(|error| refused(error.into()))?;
    let mut file = std::fs::File::from(memfd);
    file.write_all(&image).map_err(refused)?;
    Ok(PassedFd::new(file.into()))
}
