//! vsock: context ids of the kernel, and the daemon in user space.
#![expect(unsafe_code, reason = "the kernel tells whether a context id is free only by ioctl")]

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actor_shell::to_its_end;
use helper_process::{HelperProcess, HelperSpec, SocketFile};
use nix::errno::Errno;
use sandbox_model::{ErrorKind, Instant, Live, PortError, PortResult};

use crate::host::{AdoptDaemon, AwaitVsockDaemon, ReadyDaemon, StartVsockDaemon, StartedDaemon};

/// How long the daemon may take to end by itself.
pub(super) const TERM: Duration = Duration::from_secs(1);
/// Random ids that are tried (behaviour A8).
const CID_TRIES: usize = 50;
/// The lowest id of a guest, vsock(7).
const CID_MIN: u32 = 3;

nix::ioctl_write_ptr!(vhost_vsock_set_guest_cid, 0xAF, 0x60, u64);

/// The kernel's vsock for guests.
pub(super) fn device(dev: &Path) -> PathBuf {
    dev.join("vhost-vsock")
}

/// A random id that the kernel grants. It is free again when this returns; that the VMM is refused
/// it then takes a collision of random 32 bit numbers within milliseconds.
pub(super) fn choose_cid(device: &Path) -> PortResult<u32> {
    let name = || device.display().to_string();
    let vhost = OpenOptions::new().read(true).write(true).open(device);
    let vhost = vhost.map_err(|error| PortError::os("open", name(), error))?;
    let mut random = File::open("/dev/urandom").map_err(|error| PortError::os("open", "/dev/urandom", error))?;
    for _ in 0..CID_TRIES {
        let mut bytes = [0; 4];
        random.read_exact(&mut bytes).map_err(|error| PortError::os("read", "/dev/urandom", error))?;
        let cid = CID_MIN + u32::from_ne_bytes(bytes) % (u32::MAX - CID_MIN);
        // SAFETY: the descriptor is open, and the kernel reads one u64 from the pointer, which
        // outlives the call.
        match unsafe { vhost_vsock_set_guest_cid(vhost.as_raw_fd(), &u64::from(cid)) } {
            Ok(_) => return Ok(cid),
            Err(Errno::EADDRINUSE) => {}
            Err(error) => return Err(PortError::os("VHOST_VSOCK_SET_GUEST_CID", name(), error)),
        }
    }
    let cause = format!("{CID_TRIES} random context ids were all taken");
    Err(PortError::new(ErrorKind::Exists, "VHOST_VSOCK_SET_GUEST_CID", name(), cause))
}

/// Starts the daemon.
pub(super) async fn start(request: StartVsockDaemon, deadline: Instant) -> PortResult<StartedDaemon> {
    let program = request.program.display().to_string();
    let args = ["--guest-cid".into(), request.cid.to_string().into(), "--socket".into(), request.socket.into()];
    let args = args.into_iter().chain(["--uds-path".into(), request.hybrid_socket.into()]).collect();
    let spec = HelperSpec { program: request.program, args, tag: request.tag, passed: Vec::new() };
    let started = to_its_end(Box::pin(HelperProcess::spawn(spec)));
    let started = tokio::time::timeout_at(deadline, started).await;
    let helper = started.unwrap_or_else(|_| Err(PortError::timed_out("exec", program, "fork and exec hang")))?;
    Ok(StartedDaemon { process: helper.identity(), handle: Live::new(helper) })
}

/// Takes hold of a daemon that runs.
pub(super) async fn adopt(request: AdoptDaemon, deadline: Instant) -> PortResult<StartedDaemon> {
    let AdoptDaemon { process, tag } = request;
    let helper = HelperProcess::adopt("vhost-device-vsock", process, &tag, deadline).await?;
    Ok(StartedDaemon { process, handle: Live::new(helper) })
}

/// Waits until both sockets are there and served.
pub(super) async fn wait(request: AwaitVsockDaemon, deadline: Instant) -> PortResult<ReadyDaemon> {
    let Some(helper) = request.daemon.handle.get() else {
        let cause = "the message carries no handle of the daemon";
        let object = request.socket.display().to_string();
        return Err(PortError::new(ErrorKind::Invalid, "wait for socket", object, cause));
    };
    helper.wait_for_socket(&request.socket, deadline).await?;
    helper.wait_for_socket(&request.hybrid_socket, deadline).await?;
    Ok(ReadyDaemon { socket: SocketFile::at(&request.socket)?, hybrid_socket: SocketFile::at(&request.hybrid_socket)? })
}
