//! A corner of the real kernel to measure in: namespaces of a thread of our own, pods filled as CNI
//! fills them, and the ports that act on all of it. Only the VM is simulated.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use cgroup_actor::LinuxCgroupHost;
use cgroup_actor::host::{
    CgroupHost, GroupPath, MadeGroup, MakeGroup, PinThreads, Place, RemoveGroup, SetCpuset, Survey,
};
use network_actor::LinuxNetworkHost;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use resource_actors::Ports;
use sandbox_model::network::NetworkSource;
use sandbox_model::{Instant, PortResult};
use sharefs_actor::LinuxShareFsHost;
use simulation::{RealMountsSimulatedDaemon, SimulatedAgentFactory, SimulatedDeviceHost, SimulatedVmmFactory, World};

use crate::life::Life;

/// Volumes of a container, as in the life that is compared with.
const VOLUMES: [&str; 4] = ["data", "config", "secrets", "cache"];

/// Runs `body` on a thread with mount and network namespaces of its own, which its threads inherit
/// and which vanish with it. `/run` is an empty tmpfs there.
///
/// # Errors
/// The namespaces cannot be had, which takes root, or what `body` says.
pub fn in_private_namespaces<T: Send>(body: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    let main = || {
        let failed = |what: &str, errno: nix::errno::Errno| format!("{what}: {errno}; this row needs root");
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(|errno| failed("unshare", errno))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(|e| failed("make / private", e))?;
        let mode = Some("mode=0755");
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), mode).map_err(|e| failed("tmpfs on /run", e))?;
        body()
    };
    std::thread::scope(|scope| scope.spawn(main).join().unwrap_or_else(|_| Err("the thread panicked".to_owned())))
}

/// Namespaces as CNI leaves them, each with a `veth` that has an address and a default route; and
/// what containers mount.
#[derive(Debug)]
pub struct Pods {
    count: usize,
}

impl Pods {
    /// Makes them in the namespaces of the caller's thread.
    ///
    /// # Errors
    /// `ip` or a mount failed.
    pub fn make(count: usize) -> Result<Self, String> {
        ip(&["link", "set", "lo", "up"])?;
        for index in 0..count {
            Self::fill(index)?;
        }
        let lower = Path::new("/run/images/lower");
        for dir in ["lower", "upper", "work", "rootfs"].into_iter().chain(VOLUMES) {
            let path = Path::new("/run/images").join(dir);
            fs::create_dir_all(&path).map_err(|error| format!("mkdir {}: {error}", path.display()))?;
        }
        let options = format!("lowerdir={},upperdir=/run/images/upper,workdir=/run/images/work", lower.display());
        mount(Some("overlay"), "/run/images/rootfs", Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(|errno| format!("mount overlay: {errno}"))?;
        Ok(Self { count })
    }

    fn fill(index: usize) -> Result<(), String> {
        let (pod, peer) = (format!("pod{index}"), format!("veth{index}"));
        ip(&["netns", "add", &pod])?;
        ip(&["link", "add", &peer, "type", "veth", "peer", "name", "eth0", "netns", &pod])?;
        ip(&["link", "set", &peer, "up"])?;
        ip(&["-n", &pod, "link", "set", "lo", "up"])?;
        ip(&["-n", &pod, "addr", "add", "10.88.0.2/24", "dev", "eth0"])?;
        ip(&["-n", &pod, "link", "set", "eth0", "up"])?;
        ip(&["-n", &pod, "route", "add", "default", "via", "10.88.0.1"])
    }

    /// The file of a pod's namespace.
    pub fn path(&self, index: usize) -> PathBuf {
        format!("/run/netns/pod{}", index % self.count).into()
    }

    /// The index of a link in the first pod.
    ///
    /// # Errors
    /// `ip` failed, or there is no such link.
    pub fn index_of(&self, link: &str) -> Result<u32, String> {
        let shown = output(&["-n", "pod0", "-o", "link", "show", "dev", link])?;
        shown.split(':').next().and_then(|index| index.parse().ok()).ok_or_else(|| format!("no index in {shown:?}"))
    }

    /// A life in a pod.
    pub fn life(&self, index: usize) -> Life {
        let volume = |name| Path::new("/run/images").join(name);
        Life {
            network: NetworkSource::Namespace { path: self.path(index) },
            rootfs: "/run/images/rootfs".into(),
            volumes: VOLUMES.map(volume).to_vec(),
            ..Life::simulated()
        }
    }

    /// What is in a pod beyond what CNI has left, and what is mounted for sandboxes.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn leftovers(&self) -> Result<Vec<String>, String> {
        let mut left = Vec::new();
        for index in 0..self.count {
            let pod = format!("pod{index}");
            let links = output(&["-n", &pod, "-o", "link", "show"])?;
            left.extend(
                links.lines().filter(|line| !line.contains(" lo:") && !line.contains(" eth0@")).map(str::to_owned),
            );
        }
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").map_err(|error| error.to_string())?;
        left.extend(mounts.lines().filter(|line| line.contains("/run/resource-actors/")).map(str::to_owned));
        Ok(left)
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    output(arguments).map(drop)
}

fn output(arguments: &[&str]) -> Result<String, String> {
    let ran = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let ran = ran.map_err(|error| format!("ip {}: {error}", arguments.join(" ")))?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&ran.stderr).trim()))
}

/// Ports onto the real kernel with simulated VMs.
pub fn ports(world: &Arc<World>) -> Ports {
    Ports {
        vmm: Arc::new(SimulatedVmmFactory::new(world.clone())),
        agent: Arc::new(SimulatedAgentFactory::new(world.clone())),
        network: Arc::new(LinuxNetworkHost::new()),
        share: Arc::new(RealMountsSimulatedDaemon::new(Arc::new(LinuxShareFsHost), world.clone())),
        cgroup: Arc::new(EmptyCgroups(LinuxCgroupHost::new())),
        device: Arc::new(SimulatedDeviceHost::new(world.clone())),
    }
}

/// Real cgroups, in which nobody is placed: a simulated VM has no process.
#[derive(Debug)]
struct EmptyCgroups(LinuxCgroupHost);

#[sandbox_model::port::async_trait]
impl CgroupHost for EmptyCgroups {
    async fn systemd_runs(&self, (): (), deadline: Instant) -> PortResult<bool> {
        self.0.systemd_runs((), deadline).await
    }

    async fn survey(&self, request: GroupPath, deadline: Instant) -> PortResult<Survey> {
        self.0.survey(request, deadline).await
    }

    async fn make_group(&self, request: MakeGroup, deadline: Instant) -> PortResult<MadeGroup> {
        self.0.make_group(request, deadline).await
    }

    async fn remove_group(&self, request: RemoveGroup, deadline: Instant) -> PortResult<()> {
        self.0.remove_group(request, deadline).await
    }

    async fn place(&self, _: Place, _: Instant) -> PortResult<()> {
        Ok(())
    }

    async fn set_cpuset(&self, request: SetCpuset, deadline: Instant) -> PortResult<()> {
        self.0.set_cpuset(request, deadline).await
    }

    async fn pin_threads(&self, _: PinThreads, _: Instant) -> PortResult<()> {
        Ok(())
    }
}
