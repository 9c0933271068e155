//! `AttachVsock`: who serves the guest's vsock, and the device itself.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use actor_shell::{Call, Completion, LocalFuture, Plan, Serve};
use sandbox_model::PortResult;
use sandbox_model::device::{DeviceConfig, VsockBackend, VsockDevice};
use sandbox_model::ledger::{HostObject, Identity, Scope};

use super::{Bench, Daemon, DeviceActor, SharedDraft, attached, tag};
use crate::host::{AwaitVsockDaemon, ReadyDaemon, StartVsockDaemon};
use crate::messages::{AttachVsock, DeviceError};
use crate::table::DeviceKey;

/// The lowest context id of a guest (vsock(7): 0 to 2 are reserved).
pub(super) const CID_MIN: u32 = 3;
/// A daemon in user space has no other guests: its ids are its own.
const CID_PRIVATE: u32 = 3;

/// What `AttachVsock` keeps between its parts.
#[derive(Debug)]
pub struct VsockTicket {
    request: AttachVsock,
    draft: SharedDraft,
    /// What was started, even if more fails after it.
    daemon: Rc<RefCell<Option<Daemon>>>,
}

impl Serve<AttachVsock> for DeviceActor {
    type Ticket = VsockTicket;
    type Outcome = Result<VsockDevice, DeviceError>;

    fn plan(&mut self, request: AttachVsock, _: &Call) -> Plan<VsockTicket, Self::Outcome> {
        if self.table.by_key(&DeviceKey::Vsock).is_some() {
            return Plan::Answer(Err(DeviceError::Invalid { what: "the VM has its vsock already".into() }));
        }
        if let Some(cid) = request.request.cid.filter(|cid| !(CID_MIN..u32::MAX).contains(cid)) {
            let what = format!("the context id {cid} is reserved: guests use 3 to {}", u32::MAX - 1);
            return Plan::Answer(Err(DeviceError::Invalid { what }));
        }
        Plan::Perform(VsockTicket { request, draft: self.draft(), daemon: Rc::default() })
    }

    fn perform(&self, ticket: &mut VsockTicket, call: &Call) -> LocalFuture<Self::Outcome> {
        let (bench, request) = (self.bench(&ticket.draft, call), ticket.request.clone());
        let daemon = ticket.daemon.clone();
        Box::pin(async move { bench.attach_vsock(request, &daemon).await })
    }

    fn settle(&mut self, ticket: VsockTicket, done: Completion<Self::Outcome>) -> Self::Outcome {
        self.take_over(&ticket.draft);
        self.daemon = ticket.daemon.take();
        attached(done)
    }
}

impl Bench {
    async fn attach_vsock(
        &self,
        attach: AttachVsock,
        daemon: &RefCell<Option<Daemon>>,
    ) -> Result<VsockDevice, DeviceError> {
        let backend = self.backend(&attach).await?;
        let cid = match (attach.request.cid, &backend) {
            (Some(cid), _) => cid,
            (None, VsockBackend::Kernel) => self.clients.host.choose_cid((), self.deadline).await?,
            (None, VsockBackend::VhostUser { .. }) => CID_PRIVATE,
        };
        if let VsockBackend::VhostUser { socket, hybrid_socket } = &backend {
            let program = attach.daemon.clone();
            let start = Start { program, cid, socket, hybrid_socket, started: daemon };
            self.start_daemon(start).await?;
        }
        let vsock = VsockDevice { cid, backend };
        self.attach(DeviceConfig::Vsock(vsock.clone()), &Scope::Sandbox).await?;
        Ok(vsock)
    }

    async fn backend(&self, attach: &AttachVsock) -> PortResult<VsockBackend> {
        if let Some(wished) = &attach.request.backend {
            return Ok(wished.clone());
        }
        let support = self.clients.host.vsock_support((), self.deadline).await?;
        Ok(if support.kernel {
            VsockBackend::Kernel
        } else {
            VsockBackend::VhostUser { socket: attach.socket.clone(), hybrid_socket: attach.hybrid_socket.clone() }
        })
    }

    /// Starts the daemon and waits until it listens. It makes both sockets, so the ledger names them
    /// before it starts.
    async fn start_daemon(&self, start: Start<'_>) -> PortResult<()> {
        let journal = &self.clients.journal;
        let file = |path: &Path| HostObject::File { path: path.to_owned() };
        let (between_vmm_file, between_us_file) = (file(start.socket), file(start.hybrid_socket));
        let between_vmm = journal.make(Scope::Sandbox, between_vmm_file, |_| async {
            let between_us = journal.make(Scope::Sandbox, between_us_file, |_| async {
                self.run_daemon(start).await?;
                Ok(((), NAMED))
            });
            between_us.await?;
            Ok(((), NAMED))
        });
        between_vmm.await.map(|_| ())
    }

    async fn run_daemon(&self, start: Start<'_>) -> PortResult<ReadyDaemon> {
        let Start { program, cid, socket, hybrid_socket, started } = start;
        let (clients, deadline) = (&self.clients, self.deadline);
        let (socket, hybrid_socket) = (socket.to_owned(), hybrid_socket.to_owned());
        let object = HostObject::Process { program: "vsock".into() };
        let mut request = StartVsockDaemon {
            program,
            cid,
            socket: socket.clone(),
            hybrid_socket: hybrid_socket.clone(),
            tag: String::new(),
        };
        let made = clients.journal.make(Scope::Sandbox, object, |entry| async move {
            request.tag = tag(&clients.sandbox, entry);
            let daemon = clients.host.start_vsock_daemon(request, deadline).await?;
            let identity = Identity::Process(daemon.process);
            Ok((daemon, identity))
        });
        let (entry, daemon) = made.await?;
        started.replace(Some((entry, daemon.clone())));
        let wait = AwaitVsockDaemon { daemon, socket, hybrid_socket };
        // It runs and may have made one of its sockets: neither file is known to be absent.
        clients.host.await_vsock_daemon(wait, deadline).await.map_err(|error| error.doubtful())
    }
}

/// What a daemon is started with, and where it is put down.
struct Start<'a> {
    program: PathBuf,
    cid: u32,
    socket: &'a Path,
    hybrid_socket: &'a Path,
    started: &'a RefCell<Option<Daemon>>,
}

/// The daemon binds its sockets anew when a VMM has left it, so an inode says nothing about whose
/// they are; their names below the sandbox's own directory do.
const NAMED: Identity = Identity::Named;
