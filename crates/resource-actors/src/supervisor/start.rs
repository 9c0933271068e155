//! From `Created` to `Running` (behaviour A1).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actor_shell::Call;
use cgroup_actor::{CreateCgroups, PlaceVm};
use device_actor::{AttachDevice, AttachVfio, AttachVsock};
use guest_agent::AgentAddress;
use hypervisor::{BindSocket, StartVm as StartRequest, StartedVm};
use network_actor::NetworkIsUp;
use sandbox_model::device::{Access, DeviceConfig, VsockBackend, VsockDevice};
use sandbox_model::ledger::{EntryId, HostObject, Identity, Scope};
use sandbox_model::lifecycle::LifecycleState;
use sandbox_model::network::{GuestNetwork, NetworkRequest};
use sandbox_model::request::{ResourceConfig, ShareFsRequest, VsockRequest};
use sandbox_model::{Instant, PortError};
use sharefs_actor::{SetUpShare, VerifyShare};

use super::crew::{Crew, StepError};
use super::{
    Facts, PrepareBeforeStartVm, SetUpNetwork, SetupAfterStartVm, StartVm, Step, StepKind, Stepped, last_words,
};
use crate::cpu::{Base, BaseIs};
use crate::error::Cause;
use crate::planning::{vm_base, vm_spec};

impl Step for PrepareBeforeStartVm {
    type Done = ();
    const KIND: StepKind = StepKind::Prepare;

    fn next(_: LifecycleState, (): &()) -> LifecycleState {
        LifecycleState::Prepared
    }

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<()> {
        Box::pin(async move {
            let wishes = Wishes::from_list(&self.resources)?;
            crew.waits_for("PrepareBeforeStartVm", "cgroups, network, shared directory and vsock");
            // None of these stands on another.
            let (cgroups, network, share, vsock) = futures::join!(
                crew.create_cgroups(&call),
                optional(wishes.network, |network| crew.set_up_network(network, &call)),
                optional(wishes.share, |share| crew.set_up_share(share, &call)),
                optional(wishes.vsock, |vsock| crew.attach_vsock(vsock, &call)),
            );
            // All have ended, so an undo finds everything that there will be.
            cgroups?;
            let (network, share, vsock) = (network?, share?, vsock?);
            let known = Arc::make_mut(&mut facts);
            known.agent = vsock.map(|vsock| agent_address(vsock, crew.config.agent.server_port));
            crew.waits_for("PrepareBeforeStartVm", "its devices");
            for resource in self.resources {
                match resource {
                    ResourceConfig::Vsock(_) => {}
                    ResourceConfig::Network(_) => crew.attach_nics(network.as_ref(), &call).await?,
                    ResourceConfig::ShareFs(_) => {
                        let device = share.clone().map(DeviceConfig::ShareFs);
                        crew.attach_all("plug the shared directory", device, &call).await?;
                        known.has_share = true;
                    }
                    ResourceConfig::VmRootfs(disk) => {
                        crew.attach_all("plug the guest's root disk", [DeviceConfig::Block(disk)], &call).await?;
                    }
                    ResourceConfig::Vfio(function) => {
                        let request = AttachVfio { bdf: function.bdf.clone() };
                        crew.device.ask(&format!("plug {}", function.bdf), request, &call).await?;
                    }
                }
            }
            known.network = network.map(without_descriptors);
            Ok(((), facts))
        })
    }
}

/// What later steps know of a network. Its taps' descriptors are the network actor's and the VMM's:
/// whoever drops the last one waits for the kernel.
fn without_descriptors(mut network: NetworkIsUp) -> NetworkIsUp {
    network.nics.iter_mut().for_each(|nic| nic.queues.clear());
    network
}

/// The resources of which a sandbox has at most one.
#[derive(Default)]
struct Wishes {
    network: Option<NetworkRequest>,
    share: Option<ShareFsRequest>,
    vsock: Option<VsockRequest>,
}

impl Wishes {
    fn from_list(resources: &[ResourceConfig]) -> Result<Self, StepError> {
        fn once<T: Clone>(slot: &mut Option<T>, wish: &T, kind: &str) -> Result<(), StepError> {
            if slot.replace(wish.clone()).is_none() {
                return Ok(());
            }
            let what = format!("the list of resources names {kind} twice; a sandbox has one");
            Err(StepError::own("read the list of resources", Cause::Invalid { what }))
        }
        let mut wishes = Self::default();
        for resource in resources {
            match resource {
                ResourceConfig::Network(network) => once(&mut wishes.network, network, "a network")?,
                ResourceConfig::ShareFs(share) => once(&mut wishes.share, share, "a shared directory")?,
                ResourceConfig::Vsock(vsock) => once(&mut wishes.vsock, vsock, "a vsock")?,
                ResourceConfig::VmRootfs(disk) if disk.access != Access::ReadOnly => {
                    let what = format!(
                        "the guest's root disk {} is wished read-write; other guests boot from it, so it is read-only",
                        disk.path.display()
                    );
                    return Err(StepError::own("read the list of resources", Cause::Invalid { what }));
                }
                ResourceConfig::VmRootfs(_) | ResourceConfig::Vfio(_) => {}
            }
        }
        Ok(wishes)
    }
}

async fn optional<W, T, F>(wish: Option<W>, make: impl FnOnce(W) -> F) -> Result<Option<T>, StepError>
where
    F: Future<Output = Result<T, StepError>>,
{
    match wish {
        Some(wish) => make(wish).await.map(Some),
        None => Ok(None),
    }
}

fn agent_address(vsock: VsockDevice, port: u32) -> AgentAddress {
    match vsock.backend {
        VsockBackend::Kernel => AgentAddress::Vsock { cid: vsock.cid, port },
        VsockBackend::VhostUser { hybrid_socket, .. } => AgentAddress::Hybrid { socket: hybrid_socket, port },
    }
}

impl Crew {
    /// The cgroups that the configuration asks for.
    pub(super) fn cgroups_wish(&self) -> CreateCgroups {
        CreateCgroups {
            path: self.cgroups_path.clone(),
            sandbox_only: self.config.runtime.sandbox_cgroup_only,
            pin_vcpus: self.config.runtime.enable_vcpus_pinning,
        }
    }

    async fn create_cgroups(&self, call: &Call) -> Result<(), StepError> {
        let made = self.cgroup.ask("create the cgroups", self.cgroups_wish(), call).await?;
        for reason in made.not_enforced {
            tracing::warn!(sandbox = %self.sandbox, %reason, "not enforced");
        }
        Ok(())
    }

    async fn set_up_network(&self, request: NetworkRequest, call: &Call) -> Result<NetworkIsUp, StepError> {
        let request = network_actor::SetUpNetwork { request, own_namespace: self.dir.net_namespace() };
        let network = self.network.ask("set up the network", request, call).await?;
        for reason in &network.skipped {
            tracing::warn!(sandbox = %self.sandbox, %reason, "link left out");
        }
        Ok(network)
    }

    async fn set_up_share(
        &self,
        request: ShareFsRequest,
        call: &Call,
    ) -> Result<sandbox_model::device::ShareFsDevice, StepError> {
        let vm = &self.config.hypervisor;
        let request = SetUpShare {
            daemon: vm.virtio_fs_daemon.clone(),
            cache: vm.virtio_fs_cache,
            queue_size: vm.virtio_fs_queue_size,
            bind_mounts: request.sandbox_bind_mounts,
        };
        self.share.ask("make the shared directory", request, call).await
    }

    async fn attach_vsock(&self, request: VsockRequest, call: &Call) -> Result<VsockDevice, StepError> {
        let request = AttachVsock {
            request,
            daemon: self.config.hypervisor.vsock_daemon.clone(),
            socket: self.dir.vsock_socket(),
            hybrid_socket: self.dir.hybrid_socket(),
        };
        self.device.ask("plug the vsock", request, call).await
    }

    async fn attach_nics(&self, network: Option<&NetworkIsUp>, call: &Call) -> Result<(), StepError> {
        let nics = network.iter().flat_map(|network| &network.nics).cloned().map(DeviceConfig::Network);
        self.attach_all("plug the NIC", nics, call).await
    }

    async fn attach_all(
        &self,
        doing: &str,
        devices: impl IntoIterator<Item = DeviceConfig>,
        call: &Call,
    ) -> Result<(), StepError> {
        for config in devices {
            self.device.ask(doing, AttachDevice { config, holder: Scope::Sandbox }, call).await?;
        }
        Ok(())
    }

    /// By which the VMM's process is found after a crash.
    pub(super) fn tag(&self, entry: EntryId) -> String {
        format!("{}/{}", self.sandbox, entry.0)
    }

    /// Connects to the guest's agent and returns when it has answered.
    pub(super) async fn reach_agent(&self, step: &str, facts: &Facts, call: &Call) -> Result<(), StepError> {
        let what = "the sandbox has no vsock, so its agent cannot be reached; prepare it with one".to_owned();
        let address = facts.agent.clone().ok_or(Cause::Invalid { what });
        let address = address.map_err(|cause| StepError::own("reach the agent", cause))?;
        self.waits_for(step, "the guest's agent");
        let patience = Duration::from_millis(self.config.agent.reconnect_timeout_ms);
        let deadline = call.deadline.min(Instant::now() + patience);
        if let Err(mut error) = self.agent.connect(address, deadline).await {
            error.cause = format!("{}; the VM's last words: {}", error.cause, last_words(self).await);
            return Err(StepError::own("reach the guest's agent", error));
        }
        Ok(())
    }

    async fn tell_base(&self, base: Base, call: &Call) -> Result<(), StepError> {
        self.cpu.ask_plain("note the VM's size", BaseIs { base }, call.ask()).await
    }

    /// Interfaces, then neighbours, then routes (behaviour A5).
    async fn tell_network(&self, step: &str, guest: &GuestNetwork, deadline: Instant) -> Result<(), StepError> {
        let told = |doing: String| move |error: PortError| StepError::own(doing, error);
        for interface in &guest.interfaces {
            let doing = format!("tell the guest its interface {}", interface.name);
            self.waits_for(step, &doing);
            self.agent.update_interface(interface.clone(), deadline).await.map_err(told(doing))?;
        }
        if !guest.neighbors.is_empty() {
            let doing = "tell the guest its neighbours";
            self.waits_for(step, doing);
            self.agent.add_neighbors(guest.neighbors.clone(), deadline).await.map_err(told(doing.to_owned()))?;
        }
        if !guest.routes.is_empty() {
            let doing = "tell the guest its routes";
            self.waits_for(step, doing);
            self.agent.update_routes(guest.routes.clone(), deadline).await.map_err(told(doing.to_owned()))?;
        }
        Ok(())
    }
}

impl Step for StartVm {
    type Done = ();
    const KIND: StepKind = StepKind::StartVm;

    fn next(_: LifecycleState, (): &()) -> LifecycleState {
        LifecycleState::Started
    }

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<()> {
        Box::pin(async move {
            let host =
                crew.facts.size((), call.deadline).await.map_err(|error| StepError::own("size the host", error))?;
            let invalid = |what| StepError::own("describe the VM", Cause::Invalid { what });
            let vhost_user = matches!(facts.agent, Some(AgentAddress::Hybrid { .. }));
            let spec = vm_spec(&crew.config, host, vhost_user).map_err(invalid)?;
            let base = vm_base(&crew.config, host).map_err(invalid)?;

            crew.waits_for("StartVm", "the VMM's process");
            let vm = start_paused(&crew, spec, call.deadline).await?;
            crew.watch_vm();
            crew.daemons_are_known.send_replace(true);
            if facts.has_share {
                // A virtiofsd locks itself in when the VMM talks to it for the first time, not before.
                crew.share.ask("check that virtiofsd has locked itself in", VerifyShare {}, &call).await?;
            }
            if let Some(process) = vm.process {
                // Before its first instruction: nothing of the guest is charged elsewhere.
                let request = PlaceVm { process, vcpu_threads: vm.vcpu_threads.clone() };
                crew.cgroup.ask("move the VM into its cgroup", request, &call).await?;
            }
            crew.tell_base(base.clone(), &call).await?;
            let resumed = crew.vmm.resume_vm((), call.deadline).await;
            resumed.map_err(|error| StepError::own("let the vCPUs run", error))?;
            let known = Arc::make_mut(&mut facts);
            (known.base, known.vm) = (Some(base), Some(vm));
            Ok(((), facts))
        })
    }
}

async fn start_paused(crew: &Crew, spec: hypervisor::VmSpec, deadline: Instant) -> Result<StartedVm, StepError> {
    let failed = |error| StepError::own("start the VMM", error);
    // Each is named in the ledger before the process: undone after it.
    for path in crew.vmm.capabilities((), deadline).await.map_err(failed)?.sockets {
        let object = HostObject::File { path: path.clone() };
        let bound = crew.journal.make(Scope::Sandbox, object, |_| async move {
            let file = crew.vmm.bind_socket(BindSocket { path }, deadline).await?;
            Ok(((), file.into()))
        });
        bound.await.map_err(failed)?;
    }
    let object = HostObject::Process { program: "vmm".to_owned() };
    let made = crew.journal.make(Scope::Sandbox, object, |entry| async move {
        let vm = crew.vmm.start_vm(StartRequest { spec, tag: crew.tag(entry) }, deadline).await?;
        let identity = vm.process.map_or(Identity::Named, Identity::Process);
        Ok((vm, identity))
    });
    made.await.map(|(_, vm)| vm).map_err(failed)
}

impl Step for SetupAfterStartVm {
    type Done = ();
    const KIND: StepKind = StepKind::SetupAfterStartVm;

    fn next(_: LifecycleState, (): &()) -> LifecycleState {
        LifecycleState::Running
    }

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<()> {
        const STEP: &str = "SetupAfterStartVm";
        Box::pin(async move {
            crew.reach_agent(STEP, &facts, &call).await?;
            let details = crew.agent.guest_details((), call.deadline).await;
            let details = details.map_err(|error| StepError::own("ask the guest for its memory block size", error))?;
            if let Some(base) = &mut Arc::make_mut(&mut facts).base {
                base.block_mib = details.memory_block_bytes >> 20;
                crew.tell_base(base.clone(), &call).await?;
            }
            if let Some(network) = &facts.network {
                crew.tell_network(STEP, &network.guest, call.deadline).await?;
            }
            Ok(((), facts))
        })
    }
}

impl Step for SetUpNetwork {
    type Done = ();
    const KIND: StepKind = StepKind::SetUpNetwork;

    fn run(self, crew: Rc<Crew>, mut facts: Arc<Facts>, call: Call) -> Stepped<()> {
        const STEP: &str = "SetUpNetwork";
        Box::pin(async move {
            crew.waits_for(STEP, "the network");
            let network = crew.set_up_network(self.network, &call).await?;
            crew.waits_for(STEP, "its devices");
            crew.attach_nics(Some(&network), &call).await?;
            // A guest that has not answered yet is told with the rest, in `SetupAfterStartVm`.
            if crew.status.borrow().state == LifecycleState::Running {
                crew.tell_network(STEP, &network.guest, call.deadline).await?;
            }
            Arc::make_mut(&mut facts).network = Some(without_descriptors(network));
            Ok(((), facts))
        })
    }
}
