//! The task that owns what changes: the devices waiting for the start, and what stands behind those
//! that were plugged. It does one thing at a time, and goes on when its caller has left.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use helper_process::{SocketFile, remove_socket};
use sandbox_model::device::{PciPath, PciSlot, PlacedDevice};
use sandbox_model::{DeviceId, ErrorKind, Instant, Outcome, PortError, PortResult, SandboxId};
use tokio::sync::{mpsc, watch};

use super::accelerator::KvmProbe;
use super::adoption::adopt;
use super::backend::release;
use super::devices::{Plugged, check_place, plug, unplug};
use super::sockets::{Ends, Paths, bind_at, connect_first};
use super::ticket::{NoReply, ticket};
use super::vm::Vm;
use crate::FIRST_BRIDGE_SLOT;
use crate::{AddedDevice, AdoptVm, AdoptedVm, BindSocket, PresentDevice, RemoveSocket, StartVm, StartedVm};

/// Calls that may wait for their turn.
const QUEUE: usize = 64;

/// What the task works on.
#[derive(Debug)]
pub(super) struct Keeper {
    name: SandboxId,
    kvm: KvmProbe,
    paths: Paths,
    /// Sockets that QEMU will inherit, by path.
    bound: BTreeMap<PathBuf, OwnedFd>,
    /// The VM, once it has been started; also when it has ended since.
    vm: watch::Sender<Option<Arc<Vm>>>,
    waiting: Vec<PlacedDevice>,
    plugged: BTreeMap<DeviceId, Plugged>,
    /// Devices plugged so far, which makes their backends' names.
    count: u64,
}

type Job = Box<dyn for<'a> FnOnce(&'a mut Keeper) -> BoxFuture<'a, ()> + Send>;

/// A hand on the task.
#[derive(Debug, Clone)]
pub(super) struct KeeperHandle(mpsc::Sender<Job>);

impl KeeperHandle {
    /// Does `work` when its turn comes. `work` keeps `deadline` itself.
    ///
    /// # Errors
    /// Those of `work`; `TimedOut` if its turn has not come by `deadline`: nothing was done then.
    pub(super) async fn run<R: Send + 'static>(
        &self,
        operation: &str,
        object: &str,
        deadline: Instant,
        work: impl for<'a> FnOnce(&'a mut Keeper) -> BoxFuture<'a, PortResult<R>> + Send + 'static,
    ) -> PortResult<R> {
        let (mut ticket, mut claim) = ticket();
        let job: Job = Box::new(move |keeper| {
            Box::pin(async move {
                if ticket.begin() {
                    ticket.answer(work(keeper).await);
                }
            })
        });
        let answer = async {
            // A full queue is a caller that does not wait for its answers.
            self.0.try_send(job).map_err(|refused| NoReply::NotBegun {
                gone: matches!(refused, mpsc::error::TrySendError::Closed(_)),
            })?;
            claim.begun(deadline).await?;
            claim.reply().await
        };
        match answer.await {
            Ok(answer) => answer,
            Err(NoReply::NotBegun { gone: false } | NoReply::Overdue) => {
                Err(PortError::new(ErrorKind::TimedOut, operation, object, "the VM was busy with an earlier call"))
            }
            Err(NoReply::NotBegun { gone: true }) => {
                Err(PortError::new(ErrorKind::PeerGone, operation, object, "the VM's task is gone"))
            }
            Err(NoReply::Gone) => {
                Err(PortError::new(ErrorKind::PeerGone, operation, object, "the VM's task is gone").doubtful())
            }
        }
    }
}

impl Keeper {
    pub(super) fn new(name: SandboxId, kvm: KvmProbe, paths: Paths, vm: watch::Sender<Option<Arc<Vm>>>) -> Self {
        let (bound, waiting, plugged) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        Self { name, kvm, paths, bound, vm, waiting, plugged, count: 0 }
    }

    /// Puts it into a task of the current runtime, which ends with the last handle.
    pub(super) fn spawn(mut self) -> KeeperHandle {
        let (jobs, mut asked) = mpsc::channel::<Job>(QUEUE);
        tokio::spawn(async move {
            while let Some(job) = asked.recv().await {
                job(&mut self).await;
            }
        });
        KeeperHandle(jobs)
    }

    /// Makes a socket for QEMU and listens on it.
    pub(super) async fn bind(&mut self, BindSocket { path }: BindSocket) -> PortResult<SocketFile> {
        if path != self.paths.qmp && path != self.paths.console {
            let cause = "it is none of this VM's sockets";
            return Err(PortError::new(ErrorKind::Invalid, "bind", path.display().to_string(), cause));
        }
        let (listener, file) = bind_at(&path)?;
        self.bound.insert(path, listener);
        Ok(file)
    }

    /// Removes a socket.
    pub(super) async fn unbind(&mut self, request: RemoveSocket) -> PortResult<()> {
        self.bound.remove(&request.path);
        remove_socket(&request.path, request.file)
    }

    fn running(&self) -> Option<Arc<Vm>> {
        self.vm.borrow().clone()
    }

    /// Plugs a device, or keeps it for the start.
    pub(super) async fn add(&mut self, device: PlacedDevice, deadline: Instant) -> PortResult<AddedDevice> {
        // Neither the name nor the place of a device that may be there is used again.
        if self.plugged.values().any(|plugged| plugged.is_doubtful) {
            self.query(deadline).await?;
        }
        if self.plugged.contains_key(&device.id) || self.waiting.iter().any(|waiting| waiting.id == device.id) {
            return Err(PortError::new(ErrorKind::Exists, "device_add", device.id.as_str(), "it was added before"));
        }
        let path = path_of(device.slot);
        match self.running() {
            Some(vm) => self.plug(&vm, &device, deadline).await?,
            None => {
                check_place(&device, u8::MAX)?;
                self.waiting.push(device);
            }
        }
        Ok(AddedDevice { pci_path: Some(path) })
    }

    async fn plug(&mut self, vm: &Vm, device: &PlacedDevice, deadline: Instant) -> PortResult<()> {
        self.count += 1;
        match plug(vm, device, self.count, deadline).await {
            Ok(backends) => {
                self.plugged.insert(device.id.clone(), Plugged { place: device.slot, backends, is_doubtful: false });
                Ok(())
            }
            Err(failed) => {
                if failed.error.outcome == Outcome::Doubtful {
                    let plugged = Plugged { place: device.slot, backends: failed.left, is_doubtful: true };
                    self.plugged.insert(device.id.clone(), plugged);
                }
                Err(failed.error)
            }
        }
    }

    /// Unplugs a device, and what stands behind it.
    pub(super) async fn remove(&mut self, id: DeviceId, deadline: Instant) -> PortResult<()> {
        let Some(vm) = self.running() else {
            let before = self.waiting.len();
            self.waiting.retain(|device| device.id != id);
            return if self.waiting.len() < before { Ok(()) } else { Err(not_found(&id)) };
        };
        let Some(plugged) = self.plugged.get_mut(&id) else { return Err(not_found(&id)) };
        let unplugged = unplug(&vm, id.as_str(), deadline).await;
        plugged.is_doubtful |= unplugged.as_ref().is_err_and(|error| error.outcome == Outcome::Doubtful);
        let is_gone = unplugged.as_ref().err().is_none_or(PortError::is_absent);
        if is_gone && let Some(plugged) = self.plugged.remove(&id) {
            release(&vm, id.as_str(), plugged.backends).await;
        }
        unplugged
    }

    /// The devices that exist, of those that were added. Settles what was doubtful.
    pub(super) async fn query(&mut self, deadline: Instant) -> PortResult<Vec<PresentDevice>> {
        let Some(vm) = self.running() else {
            return Ok(self.waiting.iter().map(|device| present(&device.id, device.slot)).collect());
        };
        if vm.process.try_exit().is_some() {
            return Ok(Vec::new());
        }
        let names = vm.device_names(deadline).await?;
        let is_there = |id: &DeviceId| names.iter().any(|name| name == id.as_str());
        // QEMU answers in order: what is absent now is what a doubtful call has not made, or what
        // the guest let go after its deadline.
        let (there, gone) = std::mem::take(&mut self.plugged).into_iter().partition(|(id, _)| is_there(id));
        self.plugged = there;
        for (id, plugged) in gone {
            release(&vm, id.as_str(), plugged.backends).await;
        }
        Ok(self.plugged.iter().map(|(id, plugged)| present(id, plugged.place)).collect())
    }

    /// Starts QEMU and plugs the devices that wait. When this fails nothing runs.
    pub(super) async fn start(&mut self, request: StartVm, deadline: Instant) -> PortResult<StartedVm> {
        if self.running().is_some() {
            return Err(PortError::new(ErrorKind::Exists, "start", self.name.as_str(), "it was started before"));
        }
        let sockets = [
            self.ends(&self.paths.qmp.clone(), deadline).await?,
            self.ends(&self.paths.console.clone(), deadline).await?,
        ];
        let spec = &request.spec;
        let executor = self.kvm.decide(spec.accelerator, &spec.program, &spec.machine, &request.tag).await;
        let vm = Arc::new(Vm::spawn(request, self.name.as_str(), executor, sockets).await?);
        // From here on it can be stopped, and its end awaited.
        self.vm.send_replace(Some(vm.clone()));
        match self.set_up(&vm, deadline).await {
            Ok(started) => Ok(started),
            Err(error) => {
                self.plugged.clear();
                Err(self.abandon(&vm, error).await)
            }
        }
    }

    /// Both ends of a socket that was bound.
    async fn ends(&mut self, path: &Path, deadline: Instant) -> PortResult<Ends> {
        let Some(listener) = self.bound.remove(path) else {
            let cause = "its socket was not bound before";
            return Err(PortError::new(ErrorKind::Invalid, "start", path.display().to_string(), cause));
        };
        connect_first(path, listener, deadline).await
    }

    /// Takes over a QEMU that runs.
    pub(super) async fn adopt(&mut self, request: AdoptVm, deadline: Instant) -> PortResult<AdoptedVm> {
        if self.running().is_some() || !self.waiting.is_empty() {
            let cause = "this client has a VM, or devices for one";
            return Err(PortError::new(ErrorKind::Exists, "adopt", self.name.as_str(), cause));
        }
        let adopted = adopt(&self.paths, request, deadline).await?;
        (self.plugged, self.count) = (adopted.devices, adopted.count);
        self.vm.send_replace(Some(Arc::new(adopted.vm)));
        Ok(adopted.report)
    }

    /// Ends a VM whose start failed: nothing of it remains, or the outcome is doubtful.
    async fn abandon(&self, vm: &Vm, mut error: PortError) -> PortError {
        error.outcome = match vm.process.kill().await {
            Ok(_) => Outcome::NotDone,
            Err(_) => Outcome::Doubtful,
        };
        if error.kind == ErrorKind::PeerGone {
            // It ended by itself: what counts is not the command that it did not answer.
            self.name.as_str().clone_into(&mut error.object);
            "start QEMU for".clone_into(&mut error.operation);
        }
        error
    }

    async fn set_up(&mut self, vm: &Vm, deadline: Instant) -> PortResult<StartedVm> {
        vm.greet(deadline).await?;
        for device in std::mem::take(&mut self.waiting) {
            self.plug(vm, &device, deadline).await?;
        }
        Ok(StartedVm {
            process: Some(vm.process.identity()),
            vcpu_threads: vm.vcpu_threads(deadline).await?,
            accelerator: vm.executor.name().to_owned(),
        })
    }
}

/// Where the guest finds a device in that slot.
fn path_of(place: PciSlot) -> PciPath {
    PciPath::behind_bridge(FIRST_BRIDGE_SLOT + place.bridge, place.slot)
}

fn present(id: &DeviceId, place: PciSlot) -> PresentDevice {
    PresentDevice { id: id.clone(), pci_path: Some(path_of(place)) }
}

fn not_found(id: &DeviceId) -> PortError {
    PortError::new(ErrorKind::NotFound, "device_del", id.as_str(), "no such device was added")
}

#[cfg(test)]
mod tests;
