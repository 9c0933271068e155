//! The lives.

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, LinuxMemoryBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder,
};
use resource_actors::SandboxSpec;
use sandbox_model::ContainerId;
use sandbox_model::device::{Access, BlockDevice, DiskFormat, VsockBackend};
use sandbox_model::network::{InterworkingModel, NetworkRequest, NetworkSource};
use sandbox_model::request::{
    DevicesRequest, ResourceConfig, ResourceUpdate, RootfsRequest, RootfsSource, SandboxBindMount, ShareFsRequest,
    VfioRequest, VolumesRequest, VsockRequest,
};
use simulation::fault::Peer;

use super::{Act, Command, Lifecycle, Setting};

/// The names of the lives, with what is in each.
pub const LIFECYCLES: [(&str, &str); 16] = [
    ("L1", "a bare VM"),
    ("L2", "one endpoint with its filters"),
    ("L3", "a shared directory, a container, three volumes"),
    ("L4", "two containers that share volumes, read-only and writable"),
    ("L5", "a root disk and disks that come and go"),
    ("L6", "PCI functions at the start and later"),
    ("L7", "vCPUs and memory up and down three times"),
    ("L8", "three endpoints, and a network that comes late"),
    ("L9", "saved, killed, brought back, stopped"),
    ("L10", "the VM dies while it runs"),
    ("L10a", "the agent dies while the VM runs"),
    ("L11", "interrupted, stopped or given up at every step"),
    ("L12", "everything, three containers"),
    ("L13", "the host's other ways: kernel vsock, a cgroup of the caller's, pinned vCPUs, an own network"),
    ("L14", "a cgroup of systemd's, which is refused where systemd does not run"),
    ("L15", "killed while it runs, taken over, lived to its end"),
];

/// The life of that name, or `None` if there is none or the setting lacks what it needs.
pub fn lifecycle(id: &str, setting: &Setting) -> Option<Lifecycle> {
    let (id, title) = LIFECYCLES.into_iter().find(|(name, _)| *name == id)?;
    let mut config = setting.config.clone();
    let mut cgroups_path = setting.cgroups_path.clone();
    let acts = match id {
        "L1" => l1(),
        "L2" => whole(vec![vsock(), pod(setting)], vec![]),
        "L3" => l3(setting),
        "L4" => l4(setting),
        "L5" => l5(setting),
        "L6" => l6(setting)?,
        "L7" => l7(),
        "L8" => l8(setting),
        "L9" => l9(setting),
        "L10" => l10(setting, Peer::Vmm),
        "L10a" => l10(setting, Peer::Agent),
        "L11" | "L12" => l12(setting),
        "L13" => {
            config.runtime.enable_vcpus_pinning = true;
            cgroups_path = Some("/pods/life".to_owned());
            l13(setting)
        }
        "L14" => {
            cgroups_path = Some("system.slice:sandbox:life".to_owned());
            asks([Command::Prepare(vec![vsock()]), Command::Cleanup])
        }
        "L15" => l15(setting),
        _ => return None,
    };
    let spec = SandboxSpec { id: Lifecycle::sandbox(), config: config.into(), cgroups_path };
    Some(Lifecycle { id, title, spec, acts, is_interrupted: id == "L11" })
}

/// From the beginning to the end, with something in between.
fn whole(resources: Vec<ResourceConfig>, between: Vec<Act>) -> Vec<Act> {
    let begin = [Command::Prepare(resources), Command::Start, Command::SetUp];
    let end = [Command::Stop, Command::Cleanup];
    begin.into_iter().map(Act::Ask).chain(between).chain(end.into_iter().map(Act::Ask)).collect()
}

fn asks(commands: impl IntoIterator<Item = Command>) -> Vec<Act> {
    commands.into_iter().map(Act::Ask).collect()
}

fn l1() -> Vec<Act> {
    whole(vec![vsock()], vec![])
}

fn l3(setting: &Setting) -> Vec<Act> {
    let between = [
        rootfs("one", setting),
        volumes("one", vec![common(setting, "ro"), data(setting, "rw"), configmap(setting)]),
        limits("one", 100_000, 128, ResourceUpdate::Add),
        Command::Release(container("one")),
    ];
    whole(vec![vsock(), share(vec![])], asks(between))
}

fn l4(setting: &Setting) -> Vec<Act> {
    let between = [
        rootfs("one", setting),
        volumes("one", vec![common(setting, "ro")]),
        rootfs("two", setting),
        volumes("two", vec![common(setting, "rw"), common_at(setting, "ro", "/again")]),
        Command::Release(container("one")),
        volumes("two", vec![common_at(setting, "ro", "/third")]),
        Command::Release(container("two")),
    ];
    whole(vec![vsock(), share(vec![])], asks(between))
}

fn l5(setting: &Setting) -> Vec<Act> {
    let nodes = setting.node.iter().map(|(major, minor)| block_node("/dev/data", *major, *minor)).collect();
    let between = [
        root_disk("one", setting),
        volumes("one", vec![disk_volume(setting)]),
        devices("one", nodes),
        Command::Release(container("one")),
        root_disk("two", setting),
        Command::Release(container("two")),
    ];
    whole(vec![vsock()], asks(between))
}

fn l6(setting: &Setting) -> Option<Vec<Act>> {
    let vfio = setting.vfio.as_ref()?;
    let cold = ResourceConfig::Vfio(VfioRequest { bdf: vfio.cold.clone() });
    let hot = || vec![character(&format!("/dev/vfio/{}", vfio.hot_group))];
    let between = [
        devices("one", hot()),
        devices("two", hot()),
        Command::Release(container("one")),
        Command::Release(container("two")),
        devices("one", hot()),
    ];
    Some(whole(vec![vsock(), cold], asks(between)))
}

fn l7() -> Vec<Act> {
    let round = |name: &'static str| {
        [
            limits(name, 200_000, 256, ResourceUpdate::Add),
            limits(name, 300_000, 512, ResourceUpdate::Update),
            limits(name, 100_000, 128, ResourceUpdate::Update),
            limits(name, 0, 0, ResourceUpdate::Remove),
            Command::Release(container(name)),
        ]
    };
    whole(vec![vsock()], asks(["one", "two", "three"].into_iter().flat_map(round)))
}

fn l8(setting: &Setting) -> Vec<Act> {
    whole(vec![vsock()], asks([Command::Network(pod_request(setting))]))
}

fn l9(setting: &Setting) -> Vec<Act> {
    let begin = [
        Command::Prepare(vec![vsock(), pod(setting), share(vec![])]),
        Command::Start,
        Command::SetUp,
        rootfs("one", setting),
        volumes("one", vec![common(setting, "ro"), data(setting, "rw")]),
        limits("one", 100_000, 128, ResourceUpdate::Add),
        Command::Save,
    ];
    let end = [volumes("one", vec![common_at(setting, "ro", "/later")]), Command::Stop, Command::Cleanup];
    let mut acts = asks(begin);
    acts.push(Act::Kill);
    acts.extend(asks(end));
    acts
}

fn l10(setting: &Setting, peer: Peer) -> Vec<Act> {
    let mut acts = asks([
        Command::Prepare(vec![vsock(), pod(setting), share(vec![])]),
        Command::Start,
        Command::SetUp,
        rootfs("one", setting),
        volumes("one", vec![common(setting, "ro")]),
    ]);
    acts.push(Act::Dies(peer));
    acts.extend(asks([Command::Release(container("one")), Command::Stop, Command::Cleanup]));
    acts
}

fn l12(setting: &Setting) -> Vec<Act> {
    let mut resources = vec![vsock(), pod(setting), share(sandbox_mounts(setting)), vm_rootfs(setting)];
    let hot = setting.vfio.iter().map(|vfio| character(&format!("/dev/vfio/{}", vfio.hot_group)));
    let nodes = setting.node.iter().map(|(major, minor)| block_node("/dev/data", *major, *minor));
    resources.extend(setting.vfio.iter().map(|vfio| ResourceConfig::Vfio(VfioRequest { bdf: vfio.cold.clone() })));
    let between = [
        rootfs("one", setting),
        volumes("one", vec![common(setting, "ro"), data(setting, "rw"), configmap(setting)]),
        devices("one", hot.collect()),
        limits("one", 100_000, 128, ResourceUpdate::Add),
        rootfs("two", setting),
        volumes("two", vec![common(setting, "rw"), disk_volume(setting)]),
        limits("two", 200_000, 256, ResourceUpdate::Add),
        root_disk("three", setting),
        volumes("three", vec![common(setting, "ro"), shm()]),
        devices("three", nodes.collect()),
        limits("three", 100_000, 128, ResourceUpdate::Add),
        limits("two", 300_000, 512, ResourceUpdate::Update),
        Command::Release(container("one")),
        Command::Save,
        Command::Release(container("three")),
    ];
    whole(resources, asks(between))
}

fn l13(setting: &Setting) -> Vec<Act> {
    let addresses = vec!["10.7.0.2/24".parse().expect("a literal address")];
    let network = ResourceConfig::Network(NetworkRequest {
        source: NetworkSource::Own { addresses },
        model: InterworkingModel::TcFilter,
        queue_pairs: 2,
    });
    let kernel = ResourceConfig::Vsock(VsockRequest { cid: None, backend: Some(VsockBackend::Kernel) });
    let with_cpuset = |name: &str, cpus: &str, update| {
        let cpu = LinuxCpuBuilder::default().quota(100_000).period(100_000_u64).cpus(cpus).build();
        let limits = LinuxResourcesBuilder::default().cpu(cpu.expect("all fields are set")).build();
        Command::Limits(container(name), Some(Box::new(limits.expect("all fields are set"))), update)
    };
    let between = [
        rootfs("one", setting),
        with_cpuset("one", "0-1", ResourceUpdate::Add),
        with_cpuset("one", "1", ResourceUpdate::Update),
        with_cpuset("one", "1", ResourceUpdate::Remove),
    ];
    whole(vec![kernel, network, share(vec![])], asks(between))
}

fn l15(setting: &Setting) -> Vec<Act> {
    let mut between = asks([
        rootfs("one", setting),
        volumes("one", vec![common(setting, "ro"), data(setting, "rw"), disk_volume(setting)]),
        limits("one", 100_000, 128, ResourceUpdate::Add),
    ]);
    between.push(Act::TakeOver);
    between.extend(asks([
        volumes("one", vec![common_at(setting, "ro", "/later")]),
        limits("one", 200_000, 256, ResourceUpdate::Update),
        root_disk("two", setting),
        Command::Release(container("one")),
    ]));
    whole(vec![vsock(), pod(setting), share(vec![])], between)
}

/// An id.
fn container(name: &str) -> ContainerId {
    ContainerId::new(name).expect("a literal id")
}

fn vsock() -> ResourceConfig {
    ResourceConfig::Vsock(VsockRequest { cid: None, backend: None })
}

fn pod_request(setting: &Setting) -> NetworkRequest {
    let source = NetworkSource::Namespace { path: setting.pod.clone() };
    NetworkRequest { source, model: InterworkingModel::TcFilter, queue_pairs: 1 }
}

fn pod(setting: &Setting) -> ResourceConfig {
    ResourceConfig::Network(pod_request(setting))
}

fn share(sandbox_bind_mounts: Vec<SandboxBindMount>) -> ResourceConfig {
    ResourceConfig::ShareFs(ShareFsRequest { sandbox_bind_mounts })
}

fn sandbox_mounts(setting: &Setting) -> Vec<SandboxBindMount> {
    vec![SandboxBindMount { source: setting.volumes.join("common"), access: Access::ReadOnly }]
}

fn vm_rootfs(setting: &Setting) -> ResourceConfig {
    let path = setting.root_disk.with_extension("vm");
    ResourceConfig::VmRootfs(BlockDevice {
        path,
        access: Access::ReadOnly,
        format: DiskFormat::Raw,
        direct: false,
        serial: None,
    })
}

fn rootfs(name: &str, setting: &Setting) -> Command {
    let source = RootfsSource::Directory { path: setting.images.join(name) };
    Command::Rootfs(RootfsRequest { container: container(name), source, read_only: false })
}

fn root_disk(name: &str, setting: &Setting) -> Command {
    let source =
        RootfsSource::Block { path: setting.root_disk.clone(), fstype: "ext4".to_owned(), options: Vec::new() };
    Command::Rootfs(RootfsRequest { container: container(name), source, read_only: true })
}

fn volumes(name: &str, mounts: Vec<Mount>) -> Command {
    Command::Volumes(VolumesRequest { container: container(name), mounts })
}

fn devices(name: &str, devices: Vec<LinuxDevice>) -> Command {
    Command::Devices(Box::new(DevicesRequest { container: container(name), devices, resources: None }))
}

/// A container's limits: microseconds of CPU in 100 ms, MiB of memory.
fn limits(name: &str, quota_us: i64, memory_mib: i64, update: ResourceUpdate) -> Command {
    let limits = (update != ResourceUpdate::Remove).then(|| Box::new(limited(quota_us, memory_mib)));
    Command::Limits(container(name), limits, update)
}

fn limited(quota_us: i64, memory_mib: i64) -> LinuxResources {
    let cpu = LinuxCpuBuilder::default().quota(quota_us).period(100_000_u64).build().expect("all fields are set");
    let memory = LinuxMemoryBuilder::default().limit(memory_mib << 20).build().expect("all fields are set");
    LinuxResourcesBuilder::default().cpu(cpu).memory(memory).build().expect("all fields are set")
}

fn bind(source: std::path::PathBuf, destination: &str, access: &str) -> Mount {
    let options = vec!["rbind".to_owned(), access.to_owned()];
    let mount = MountBuilder::default().source(source).destination(destination).typ("bind").options(options);
    mount.build().expect("all fields are set")
}

fn common(setting: &Setting, access: &str) -> Mount {
    common_at(setting, access, "/common")
}

fn common_at(setting: &Setting, access: &str, destination: &str) -> Mount {
    bind(setting.volumes.join("common"), destination, access)
}

fn data(setting: &Setting, access: &str) -> Mount {
    bind(setting.volumes.join("data"), "/data", access)
}

fn configmap(setting: &Setting) -> Mount {
    bind(setting.volumes.join("config.file"), "/etc/config", "ro")
}

fn disk_volume(setting: &Setting) -> Mount {
    bind(setting.volume_disk.clone(), "/disk", "rw")
}

fn shm() -> Mount {
    let mount = MountBuilder::default().source("shm").destination("/dev/shm").typ("bind").options(Vec::new());
    mount.build().expect("all fields are set")
}

fn block_node(path: &str, major: i64, minor: i64) -> LinuxDevice {
    let device = LinuxDeviceBuilder::default().path(path).typ(LinuxDeviceType::B).major(major).minor(minor);
    device.build().expect("all fields are set")
}

fn character(path: &str) -> LinuxDevice {
    let device = LinuxDeviceBuilder::default().path(path).typ(LinuxDeviceType::C).major(10).minor(196);
    device.build().expect("all fields are set")
}
