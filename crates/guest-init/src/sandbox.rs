//! The one sandbox of this guest: its containers, and the storages they share.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_protocol::agent::{CreateContainerRequest, CreateSandboxRequest, Device, Storage};
use agent_protocol::oci::{LinuxDevice, LinuxNamespace, Mount, Spec};
use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::{major, minor, stat};

use crate::console::say;
use crate::container::Container;
use crate::hotplug::Hotplug;
use crate::oom::OomEvents;
use crate::reaper::Reaper;
use crate::storage;

/// Name servers of the sandbox, in the form of `/etc/resolv.conf`.
const RESOLV_CONF: &str = "/run/kata-containers/sandbox/resolv.conf";

/// State and helpers of the sandbox.
pub(crate) struct Sandbox {
    /// Waits for devices.
    pub(crate) hotplug: Hotplug,
    /// Containers that ran out of memory.
    pub(crate) oom: OomEvents,
    reaper: Reaper,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    created: bool,
    hostname: String,
    has_name_servers: bool,
    shares_pid_namespace: bool,
    containers: HashMap<String, Slot>,
    /// How many use the storage at a mount point.
    storages: HashMap<String, usize>,
}

/// A container's id is taken from the moment its creation begins.
enum Slot {
    InTheMaking,
    Made(Arc<Container>),
}

impl Sandbox {
    /// A guest that has not been told anything yet.
    pub(crate) fn new(reaper: Reaper, hotplug: Hotplug) -> Self {
        Self { hotplug, oom: OomEvents::new(), reaper, state: Mutex::default() }
    }

    /// Takes on name, name servers and storages; once for each boot.
    pub(crate) async fn create(&self, request: CreateSandboxRequest) -> Result<()> {
        {
            let mut state = self.state();
            ensure!(!state.created, "the sandbox was created before");
            state.created = true;
            state.hostname.clone_from(&request.hostname);
            state.has_name_servers = !request.dns.is_empty();
            state.shares_pid_namespace = request.sandbox_pidns;
        }
        if !request.hostname.is_empty() {
            nix::unistd::sethostname(&request.hostname).context("set the host name")?;
        }
        if !request.dns.is_empty() {
            write_name_servers(&request.dns).context("write the name servers")?;
        }
        self.add_storages(&request.storages).await?;
        Ok(())
    }

    /// Prepares a container up to its start.
    pub(crate) async fn create_container(&self, request: CreateContainerRequest) -> Result<()> {
        let id = request.container_id.clone();
        check_id(&id)?;
        self.reserve(&id)?;
        let made = self.make_container(request).await;
        let mut state = self.state();
        match made {
            Ok(container) => {
                let container = Arc::new(container);
                self.oom.watch(&id, &container.cgroup);
                state.containers.insert(id, Slot::Made(container));
                Ok(())
            }
            Err(error) => {
                state.containers.remove(&id);
                Err(error)
            }
        }
    }

    /// A container by its id.
    pub(crate) fn container(&self, id: &str) -> Option<Arc<Container>> {
        match self.state().containers.get(id)? {
            Slot::Made(container) => Some(container.clone()),
            Slot::InTheMaking => None,
        }
    }

    /// Runs one more process in a container.
    pub(crate) async fn exec(
        &self,
        container: &Container,
        exec_id: &str,
        process: agent_protocol::oci::Process,
    ) -> Result<()> {
        container.exec(exec_id, process, &self.reaper).await
    }

    /// Ends a container and takes away what was made for it.
    pub(crate) async fn remove_container(&self, id: &str, container: &Container) {
        container.destroy().await;
        self.state().containers.remove(id);
        self.release_storages(&container.storages);
    }

    /// Mounts storages again with new options.
    pub(crate) async fn update_storages(&self, storages: &[Storage]) -> Result<()> {
        for storage in storages {
            let mut again = storage.clone();
            again.options.push("remount".to_owned());
            storage::add(&again, &self.hotplug).await?;
        }
        Ok(())
    }

    fn reserve(&self, id: &str) -> Result<()> {
        let mut state = self.state();
        ensure!(!state.containers.contains_key(id), "container `{id}` exists");
        state.containers.insert(id.to_owned(), Slot::InTheMaking);
        Ok(())
    }

    async fn make_container(&self, request: CreateContainerRequest) -> Result<Container> {
        let mut spec = request.OCI.into_option().context("no specification")?;
        ensure!(spec.Process.is_some(), "the specification has no process");
        let storages = self.add_storages(&request.storages).await?;
        let made = async {
            for device in &request.devices {
                self.give_device(&mut spec, device).await?;
            }
            self.complete(&mut spec, request.sandbox_pidns);
            Container::create(&request.container_id, spec, storages.clone(), &self.reaper).await
        };
        let made = made.await;
        if made.is_err() {
            self.release_storages(&storages);
        }
        made
    }

    /// Adds to a specification what only the guest knows.
    fn complete(&self, spec: &mut Spec, shares_pid_namespace: bool) {
        let state = self.state();
        if spec.Hostname.is_empty() {
            spec.Hostname.clone_from(&state.hostname);
        }
        let linux = spec.Linux.mut_or_insert_default();
        linux.Namespaces.retain(|namespace| namespace.Type != "pid");
        if !shares_pid_namespace && !state.shares_pid_namespace {
            let namespace = LinuxNamespace { Type: "pid".to_owned(), ..Default::default() };
            linux.Namespaces.push(namespace);
        }
        let target = "/etc/resolv.conf";
        if state.has_name_servers && !spec.Mounts.iter().any(|entry| entry.destination == target) {
            spec.Mounts.push(Mount {
                destination: target.to_owned(),
                source: RESOLV_CONF.to_owned(),
                type_: "bind".to_owned(),
                options: vec!["bind".to_owned(), "ro".to_owned()],
                ..Mount::default()
            });
        }
    }

    /// Waits for a plugged device and gives its node the number it has in this guest.
    async fn give_device(&self, spec: &mut Spec, device: &Device) -> Result<()> {
        let source = match device.type_.as_str() {
            "blk" if !device.id.is_empty() => &device.id,
            "blk" | "mmioblk" => &device.vm_path,
            other => bail!("devices of type `{other}` are not served by this guest"),
        };
        let node = storage::device_node(source, &self.hotplug).await?;
        let number = stat(&node).with_context(|| node.display().to_string())?.st_rdev;
        let devices = &mut spec.Linux.mut_or_insert_default().Devices;
        let position = devices.iter().position(|known| known.Path == device.container_path);
        let index = position.unwrap_or_else(|| {
            devices.push(LinuxDevice {
                Path: device.container_path.clone(),
                Type: "b".to_owned(),
                ..LinuxDevice::default()
            });
            devices.len() - 1
        });
        devices[index].Major = i64::try_from(major(number))?;
        devices[index].Minor = i64::try_from(minor(number))?;
        Ok(())
    }

    /// Mounts storages; one that is there already gets one more user. All or none.
    async fn add_storages(&self, storages: &[Storage]) -> Result<Vec<String>> {
        let mut added = Vec::new();
        for storage in storages {
            if let Err(error) = self.add_storage(storage).await {
                self.release_storages(&added);
                return Err(error);
            }
            added.push(storage.mount_point.clone());
        }
        Ok(added)
    }

    async fn add_storage(&self, storage: &Storage) -> Result<()> {
        if let Some(users) = self.state().storages.get_mut(&storage.mount_point) {
            *users += 1;
            return Ok(());
        }
        storage::add(storage, &self.hotplug).await?;
        say(format_args!("storage {} at {}", storage.driver, storage.mount_point));
        self.state().storages.insert(storage.mount_point.clone(), 1);
        Ok(())
    }

    fn release_storages(&self, mount_points: &[String]) {
        let mut state = self.state();
        // In reverse: a later one may be mounted inside an earlier one.
        for mount_point in mount_points.iter().rev() {
            let Some(users) = state.storages.get_mut(mount_point) else {
                continue;
            };
            *users -= 1;
            if *users == 0 {
                storage::remove(Path::new(mount_point));
                state.storages.remove(mount_point);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ids become names of directories.
fn check_id(id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ensure!(
        !id.is_empty() && id.len() <= 128 && id.bytes().all(plain) && !id.starts_with('.'),
        "`{id}` is not a container id"
    );
    Ok(())
}

fn write_name_servers(lines: &[String]) -> Result<()> {
    let path = Path::new(RESOLV_CONF);
    fs::create_dir_all(path.parent().context("directory")?)?;
    let mut text = lines.join("\n");
    text.push('\n');
    fs::write(path, &text)?;
    fs::write("/etc/resolv.conf", &text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_name() {
        assert!(check_id("0a-b_c.d").is_ok());
        for wrong in ["", ".", "..", "a/b", "a b", ".hidden"] {
            assert!(check_id(wrong).is_err(), "{wrong}");
        }
    }
}
