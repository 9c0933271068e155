//! Shared file systems without a kernel, and the real ones without a daemon.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{ErrorKind, Instant, Live, PortError, PortResult};
use sharefs_actor::{
    AdoptDaemon, AdoptedDaemon, Attach, Below, Daemon, Detach, EndDaemon, Export, Inode, Look, Mounted, Remove, Seen,
    ShareFsHost, Source, SourceKind, StartDaemon, VerifyDaemon,
};

use crate::World;

const DIRECTORY: &str = "directory";
const FILE: &str = "file";
const MOUNT: &str = "mount";
const PROCESS: &str = "process";
/// `st_dev` of everything here.
const DEVICE: u64 = 1;

/// Simulated directories, mounts and daemon.
///
/// Every source exists and is a directory, unless its path ends in `.missing` or `.file`.
#[derive(Debug, Clone)]
pub struct SimulatedShareFs {
    world: Arc<World>,
}

impl SimulatedShareFs {
    /// The share-fs host of `world`.
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    fn make(&self, operation: &str, kind: &'static str, at: &Below) -> PortResult<u64> {
        self.world.make(operation, kind, text(&at.absolute()))
    }

    fn remove(&self, operation: &str, kind: &'static str, at: &Below, made: Option<u64>) -> PortResult<()> {
        let name = text(&at.absolute());
        match (self.world.identity(kind, &name), made) {
            (Some(found), Some(made)) if found != made => {
                Err(PortError::new(ErrorKind::Foreign, operation, name, "simulated: another one is there"))
            }
            _ => self.world.remove(operation, kind, &name),
        }
    }

    /// A mount whose mount point is seen through the exported directory.
    fn mounted(&self, at: &Path) -> Option<Seen> {
        let mount_id = self.world.identity(MOUNT, &text(at))?;
        Some(Seen { inode: Inode { device: DEVICE, inode: mount_id }, mount_id })
    }

    /// A directory that holds something is not removed.
    fn nothing_in(&self, directory: &Path) -> PortResult<()> {
        match self.world.any_below(&inside(directory)) {
            None => Ok(()),
            Some(found) => {
                Err(PortError::new(ErrorKind::Busy, "rmdir", text(directory), format!("simulated: holds {found}")))
            }
        }
    }
}

#[async_trait]
impl ShareFsHost for SimulatedShareFs {
    async fn make_directory(&self, request: Below, _: Instant) -> PortResult<Inode> {
        Ok(Inode { device: DEVICE, inode: self.make("mkdirat", DIRECTORY, &request)? })
    }

    async fn make_file(&self, request: Below, _: Instant) -> PortResult<Inode> {
        Ok(Inode { device: DEVICE, inode: self.make("openat", FILE, &request)? })
    }

    async fn remove_directory(&self, request: Remove, _: Instant) -> PortResult<()> {
        self.nothing_in(&request.at.absolute())?;
        self.remove("rmdir", DIRECTORY, &request.at, request.made.map(|made| made.inode))
    }

    async fn remove_file(&self, request: Remove, _: Instant) -> PortResult<()> {
        self.remove("unlinkat", FILE, &request.at, request.made.map(|made| made.inode))
    }

    async fn export(&self, request: Export, _: Instant) -> PortResult<Mounted> {
        Ok(Mounted { mount_id: self.make("move_mount", MOUNT, &request.to)? })
    }

    async fn open_source(&self, request: PathBuf, _: Instant) -> PortResult<Source> {
        let path = text(&request);
        if path.ends_with(".missing") {
            let cause = "simulated: No such file or directory";
            return Err(PortError::new(ErrorKind::NotFound, "open", path, cause));
        }
        let kind = if path.ends_with(".file") { SourceKind::File } else { SourceKind::Directory };
        // The same path is the same object: FNV-1a, since nothing of the host's is in the world.
        let inode = path
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Ok(Source { path: request, inode: Inode { device: DEVICE, inode }, mount_id: 1, kind, handle: Live::absent() })
    }

    async fn attach(&self, request: Attach, _: Instant) -> PortResult<Mounted> {
        Ok(Mounted { mount_id: self.make("move_mount", MOUNT, &request.at)? })
    }

    async fn detach(&self, request: Detach, _: Instant) -> PortResult<()> {
        self.remove("umount2", MOUNT, &request.at, request.mount_id)?;
        // As MNT_DETACH: what is mounted below goes along.
        self.world.remove_below(MOUNT, &inside(&request.at.absolute()));
        Ok(())
    }

    async fn look(&self, request: Look, _: Instant) -> PortResult<Vec<Option<Seen>>> {
        let seen = |path: &PathBuf| {
            let name = text(&request.dir.join(path));
            let mount = self.world.identity(MOUNT, &name);
            let below = self.world.identity(DIRECTORY, &name).or_else(|| self.world.identity(FILE, &name));
            let inode = Inode { device: DEVICE, inode: below? };
            Some(Seen { inode, mount_id: mount.unwrap_or_default() })
        };
        // What lies on the exported mount is what lies below it, with the mounts on top.
        let exported = |path: &PathBuf| seen(path).or_else(|| self.mounted(&request.dir.join(path)));
        Ok(request.paths.iter().map(exported).collect())
    }

    async fn start_daemon(&self, request: StartDaemon, _: Instant) -> PortResult<Daemon> {
        let process = start_process(&self.world, &request.tag)?;
        let inode = self.make("bind", FILE, &request.socket)?;
        Ok(Daemon { process, socket: Inode { device: DEVICE, inode }, handle: Live::absent() })
    }

    async fn verify_daemon(&self, request: VerifyDaemon, _: Instant) -> PortResult<()> {
        verify_process(&self.world, request.process)
    }

    async fn adopt_daemon(&self, request: AdoptDaemon, _: Instant) -> PortResult<AdoptedDaemon> {
        adopt_process(&self.world, &request)
    }

    async fn end_daemon(&self, request: EndDaemon, _: Instant) -> PortResult<()> {
        self.world.remove("end process", PROCESS, &process_name(&request.tag))
    }
}

/// Real directories and mounts with a simulated daemon: for a host on which no VM is started.
///
/// The daemon's socket is a real one that nobody listens on, so that undoing it is real too.
#[derive(Debug, Clone)]
pub struct RealMountsSimulatedDaemon {
    mounts: Arc<dyn ShareFsHost>,
    world: Arc<World>,
}

impl RealMountsSimulatedDaemon {
    /// `mounts` for everything but the daemon, which lives in `world`.
    pub fn new(mounts: Arc<dyn ShareFsHost>, world: Arc<World>) -> Self {
        Self { mounts, world }
    }
}

#[async_trait]
impl ShareFsHost for RealMountsSimulatedDaemon {
    async fn make_directory(&self, request: Below, deadline: Instant) -> PortResult<Inode> {
        self.mounts.make_directory(request, deadline).await
    }

    async fn make_file(&self, request: Below, deadline: Instant) -> PortResult<Inode> {
        self.mounts.make_file(request, deadline).await
    }

    async fn remove_directory(&self, request: Remove, deadline: Instant) -> PortResult<()> {
        self.mounts.remove_directory(request, deadline).await
    }

    async fn remove_file(&self, request: Remove, deadline: Instant) -> PortResult<()> {
        self.mounts.remove_file(request, deadline).await
    }

    async fn export(&self, request: Export, deadline: Instant) -> PortResult<Mounted> {
        self.mounts.export(request, deadline).await
    }

    async fn open_source(&self, request: PathBuf, deadline: Instant) -> PortResult<Source> {
        self.mounts.open_source(request, deadline).await
    }

    async fn attach(&self, request: Attach, deadline: Instant) -> PortResult<Mounted> {
        self.mounts.attach(request, deadline).await
    }

    async fn detach(&self, request: Detach, deadline: Instant) -> PortResult<()> {
        self.mounts.detach(request, deadline).await
    }

    async fn look(&self, request: Look, deadline: Instant) -> PortResult<Vec<Option<Seen>>> {
        self.mounts.look(request, deadline).await
    }

    async fn start_daemon(&self, request: StartDaemon, _: Instant) -> PortResult<Daemon> {
        let socket = bind(&request.socket.absolute())?;
        let process = start_process(&self.world, &request.tag).map_err(PortError::doubtful)?;
        Ok(Daemon { process, socket, handle: Live::absent() })
    }

    async fn verify_daemon(&self, request: VerifyDaemon, _: Instant) -> PortResult<()> {
        verify_process(&self.world, request.process)
    }

    async fn adopt_daemon(&self, request: AdoptDaemon, _: Instant) -> PortResult<AdoptedDaemon> {
        adopt_process(&self.world, &request)
    }

    async fn end_daemon(&self, request: EndDaemon, _: Instant) -> PortResult<()> {
        self.world.remove("end process", PROCESS, &process_name(&request.tag))
    }
}

fn bind(path: &Path) -> PortResult<Inode> {
    use std::os::unix::fs::MetadataExt;
    let refused = |error| PortError::os("bind", text(path), error);
    drop(UnixListener::bind(path).map_err(refused)?);
    let made = std::fs::symlink_metadata(path).map_err(|error| refused(error).doubtful())?;
    Ok(Inode { device: made.dev(), inode: made.ino() })
}

fn start_process(world: &World, tag: &str) -> PortResult<ProcessIdentity> {
    let start_ticks = world.make("exec", PROCESS, process_name(tag))?;
    // Nothing real is ever addressed by it: no process has this pid.
    Ok(ProcessIdentity { pid: i32::MAX, start_ticks })
}

fn verify_process(world: &World, process: ProcessIdentity) -> PortResult<()> {
    if world.is_alive(process.start_ticks) {
        return Ok(());
    }
    Err(PortError::new(
        ErrorKind::PeerGone,
        "verify virtiofsd",
        format!("pid {}", process.pid),
        "simulated: it has ended",
    ))
}

fn adopt_process(world: &World, request: &AdoptDaemon) -> PortResult<AdoptedDaemon> {
    let name = process_name(&request.tag);
    if world.identity(PROCESS, &name) == Some(request.process.start_ticks) {
        return Ok(AdoptedDaemon { handle: Live::absent() });
    }
    Err(PortError::new(ErrorKind::NotFound, "take hold of", name, "simulated: no such process"))
}

/// With what the names of all begin that is in `directory`.
fn inside(directory: &Path) -> String {
    let mut name = text(directory);
    name.push('/');
    name
}

fn process_name(tag: &str) -> String {
    format!("virtiofsd {tag}")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
