//! What is asked of a sandbox for a bundle. Plain functions.

use std::path::{Path, PathBuf};

use guest_agent::CreateSandbox;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use sandbox_model::Secret;
use sandbox_model::config::{SandboxConfig, SharedFs};
use sandbox_model::device::{Access, BlockDevice, DiskFormat};
use sandbox_model::layout::DEFAULT_SHM_BYTES;
use sandbox_model::network::{InterworkingModel, IpNet, NetworkRequest, NetworkSource};
use sandbox_model::request::{ResourceConfig, ShareFsRequest, VsockRequest};
use sandbox_model::storage::Storage;

use crate::bundle::read_bounded;

/// The largest `resolv.conf` that is taken along.
const RESOLV_CONF_BYTES_MAX: u64 = 64 << 10;

/// The resources to prepare before the VM starts, in Kata's order (behaviour A1).
pub(super) fn resources(
    config: &SandboxConfig,
    spec: &Spec,
    netns: Option<&Path>,
    addresses: &[IpNet],
) -> Vec<ResourceConfig> {
    let mut resources = vec![ResourceConfig::Vsock(VsockRequest { cid: None, backend: None })];
    if let Some(source) = network_source(config, spec, netns, addresses) {
        let model = config.runtime.internetworking_model;
        let queue_pairs = config.hypervisor.network_queues;
        resources.push(ResourceConfig::Network(NetworkRequest { source, model, queue_pairs }));
    }
    if config.hypervisor.shared_fs != SharedFs::None {
        let sandbox_bind_mounts = config.runtime.sandbox_bind_mounts.clone();
        resources.push(ResourceConfig::ShareFs(ShareFsRequest { sandbox_bind_mounts }));
    }
    if let (Some(image), None) = (&config.hypervisor.image, &config.hypervisor.initrd) {
        resources.push(ResourceConfig::VmRootfs(BlockDevice {
            path: image.clone(),
            access: Access::ReadOnly,
            format: DiskFormat::Raw,
            direct: config.hypervisor.block_device_cache_direct,
            serial: None,
        }));
    }
    resources
}

/// A flag counts more than the bundle; without either there is no network.
fn network_source(
    config: &SandboxConfig,
    spec: &Spec,
    netns: Option<&Path>,
    addresses: &[IpNet],
) -> Option<NetworkSource> {
    if !addresses.is_empty() {
        return Some(NetworkSource::Own { addresses: addresses.to_vec() });
    }
    if let Some(path) = netns {
        return Some(NetworkSource::Namespace { path: path.to_owned() });
    }
    if config.runtime.disable_new_netns || config.runtime.internetworking_model == InterworkingModel::None {
        return None;
    }
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let network = namespaces.into_iter().flatten().find(|one| one.typ() == LinuxNamespaceType::Network)?;
    let path = network.path().clone().filter(|path| !path.as_os_str().is_empty())?;
    Some(NetworkSource::Namespace { path })
}

/// What the guest's agent is told of the sandbox.
pub(super) fn sandbox(id: &str, config: &SandboxConfig, spec: &Spec, storages: Vec<Storage>) -> CreateSandbox {
    CreateSandbox {
        hostname: spec.hostname().clone().unwrap_or_else(|| id.to_owned()),
        dns: Secret::new(resolv_conf(spec).map(|path| dns(&path)).unwrap_or_default()),
        storages,
        sandbox_id: id.to_owned(),
        kernel_modules: config.agent.kernel_modules.clone(),
    }
}

/// The file that the bundle mounts as `/etc/resolv.conf`.
fn resolv_conf(spec: &Spec) -> Option<PathBuf> {
    let mut mounts = spec.mounts().iter().flatten();
    mounts.find(|mount| mount.destination() == Path::new("/etc/resolv.conf"))?.source().clone()
}

fn dns(path: &Path) -> Vec<String> {
    match read_bounded(path, RESOLV_CONF_BYTES_MAX).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) {
        Ok(text) => text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect(),
        Err(error) => {
            tracing::warn!("the guest gets no name servers: {}: {error}", path.display());
            Vec::new()
        }
    }
}

/// Size of `/dev/shm`: what the bundle's own mount says, or the default.
pub(super) fn shm_bytes(spec: &Spec) -> u64 {
    let mut mounts = spec.mounts().iter().flatten();
    let Some(shm) = mounts.find(|mount| mount.destination() == Path::new("/dev/shm")) else { return DEFAULT_SHM_BYTES };
    if shm.typ().as_deref() == Some("bind") {
        let statistics = shm.source().as_ref().and_then(|source| nix::sys::statvfs::statvfs(source).ok());
        return statistics.map_or(DEFAULT_SHM_BYTES, |fs| fs.blocks().saturating_mul(fs.fragment_size()));
    }
    let options = shm.options().as_deref().unwrap_or_default();
    options.iter().find_map(|option| bytes(option.strip_prefix("size=")?)).unwrap_or(DEFAULT_SHM_BYTES)
}

/// `65536k` as tmpfs reads it.
fn bytes(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        'k' | 'K' => 10,
        'm' | 'M' => 20,
        'g' | 'G' => 30,
        _ => 0,
    };
    let digits = if unit == 0 { text } else { &text[..text.len() - 1] };
    digits.parse::<u64>().ok()?.checked_mul(1 << unit).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> Spec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_network_comes_from_flag_then_bundle() {
        let mut config = SandboxConfig::default();
        let with = spec(json!({"linux": {"namespaces": [{"type": "network", "path": "/run/netns/b"}]}}));
        let own = spec(json!({"linux": {"namespaces": [{"type": "network"}]}}));
        let namespace = |path: &str| Some(NetworkSource::Namespace { path: path.into() });
        let addresses = ["10.0.0.2/24".parse().unwrap()];
        assert_eq!(network_source(&config, &with, None, &[]), namespace("/run/netns/b"));
        assert_eq!(network_source(&config, &with, Some(Path::new("/n")), &[]), namespace("/n"));
        assert!(matches!(network_source(&config, &with, None, &addresses), Some(NetworkSource::Own { .. })));
        assert_eq!(network_source(&config, &own, None, &[]), None);
        config.runtime.disable_new_netns = true;
        assert_eq!(network_source(&config, &with, None, &[]), None);
    }

    #[test]
    fn name_servers_are_read_from_a_small_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let (file, fifo) = (dir.path().join("resolv.conf"), dir.path().join("fifo"));
        std::fs::write(&file, "nameserver 10.0.0.53 \n\n").unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(dns(&file), ["nameserver 10.0.0.53"]);
        for bad in [fifo.as_path(), Path::new("/dev/zero"), dir.path()] {
            assert!(dns(bad).is_empty(), "{}", bad.display());
        }
    }

    #[test]
    fn the_root_disk_is_left_out_beside_an_initrd() {
        let mut config = SandboxConfig::default();
        config.hypervisor.image = Some("/i".into());
        let disks = |config: &SandboxConfig| {
            let resources = resources(config, &Spec::default(), None, &[]);
            resources.iter().filter(|resource| matches!(resource, ResourceConfig::VmRootfs(_))).count()
        };
        assert_eq!(disks(&config), 1);
        config.hypervisor.initrd = Some("/r".into());
        assert_eq!(disks(&config), 0);
    }

    #[test]
    fn shm_is_as_large_as_the_bundle_says() {
        let with = |option: &str| {
            spec(json!({"mounts": [{"destination": "/dev/shm", "type": "tmpfs", "options": ["nosuid", option]}]}))
        };
        assert_eq!(shm_bytes(&with("size=65536k")), 65536 << 10);
        assert_eq!(shm_bytes(&with("size=1G")), 1 << 30);
        assert_eq!(shm_bytes(&with("size=4096")), 4096);
        for bad in ["size=", "size=x", "size=-1", "size=99999999999999999999g", "noexec"] {
            assert_eq!(shm_bytes(&with(bad)), DEFAULT_SHM_BYTES, "{bad}");
        }
    }
}
