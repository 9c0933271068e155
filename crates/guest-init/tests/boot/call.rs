//! The calls that every test makes, in short.

use agent_protocol::Empty;
use agent_protocol::agent::{
    CreateContainerRequest, CreateSandboxRequest, ReadStreamRequest, RemoveContainerRequest, StartContainerRequest,
    Storage, WaitProcessRequest,
};
use agent_protocol::oci::{Linux, LinuxNamespace, Mount, Process, Root, Spec};
use ttrpc::{Code, Error};

use crate::vm::{Vm, context};

/// Where the guest mounts the shared directory.
pub(crate) const SHARE: &str = "/run/kata-containers/shared/containers/";
/// Where the guest keeps the pod's shared memory.
pub(crate) const SHM: &str = "/run/kata-containers/sandbox/shm";

/// Creates the sandbox, with the share and shared memory.
pub(crate) async fn create_sandbox(vm: &Vm) {
    vm.agent().create_sandbox(context(), &sandbox_request()).await.unwrap();
}

/// The request for that.
pub(crate) fn sandbox_request() -> CreateSandboxRequest {
    let shared = storage("virtio-fs", "kataShared", "virtiofs", &["nodev"], SHARE);
    let options = ["noexec", "nosuid", "nodev", "mode=1777", "size=1048576"];
    let shm = storage("ephemeral", "shm", "tmpfs", &options, SHM);
    CreateSandboxRequest {
        hostname: "pod".to_owned(),
        dns: vec!["nameserver 10.0.0.53".to_owned()],
        storages: vec![shared, shm],
        sandbox_id: "sandbox".to_owned(),
        ..Default::default()
    }
}

/// Creates and starts a container that runs a shell script.
pub(crate) async fn run(vm: &Vm, container: &str, script: &str) {
    vm.add_rootfs(container);
    let request = CreateContainerRequest {
        container_id: container.to_owned(),
        OCI: Some(spec(container, script)).into(),
        ..Default::default()
    };
    vm.agent().create_container(context(), &request).await.unwrap();
    let request = StartContainerRequest { container_id: container.to_owned(), ..Default::default() };
    vm.agent().start_container(context(), &request).await.unwrap();
}

/// Waits for a process; its exit status.
pub(crate) async fn wait(vm: &Vm, container: &str, exec: &str) -> i32 {
    let request =
        WaitProcessRequest { container_id: container.to_owned(), exec_id: exec.to_owned(), ..Default::default() };
    vm.agent().wait_process(context(), &request).await.unwrap().status
}

/// Removes a container.
pub(crate) async fn remove(vm: &Vm, container: &str) -> Empty {
    vm.agent().remove_container(context(), &remove_request(container)).await.unwrap()
}

/// The request for that.
pub(crate) fn remove_request(container: &str) -> RemoveContainerRequest {
    RemoveContainerRequest { container_id: container.to_owned(), ..Default::default() }
}

/// Reads standard output to its end.
pub(crate) async fn read_all(vm: &Vm, container: &str, exec: &str) -> String {
    let request = read_request(container, exec);
    let mut output = Vec::new();
    loop {
        match vm.agent().read_stdout(context(), &request).await {
            Ok(response) => output.extend(response.data),
            Err(Error::RpcStatus(status)) if status.message().contains("eof") => break,
            Err(error) => panic!("{error}"),
        }
    }
    String::from_utf8(output).unwrap()
}

/// The request for one piece of that.
pub(crate) fn read_request(container: &str, exec: &str) -> ReadStreamRequest {
    ReadStreamRequest { container_id: container.to_owned(), exec_id: exec.to_owned(), len: 4096, ..Default::default() }
}

/// A specification of the usual kind.
pub(crate) fn spec(container: &str, script: &str) -> Spec {
    let namespace = |kind: &str| LinuxNamespace { Type: kind.to_owned(), ..Default::default() };
    Spec {
        Version: "1.0.2".to_owned(),
        Process: Some(shell(script)).into(),
        Root: Some(Root { Path: format!("{SHARE}{container}"), ..Default::default() }).into(),
        Mounts: vec![
            mount("proc", "proc", "/proc", &[]),
            mount("tmpfs", "tmpfs", "/dev", &["nosuid", "mode=755"]),
            mount("bind", SHM, "/dev/shm", &["rbind"]),
            mount("sysfs", "sysfs", "/sys", &["ro", "nosuid", "noexec", "nodev"]),
        ],
        Linux: Some(Linux {
            Namespaces: ["ipc", "uts", "mount"].map(namespace).to_vec(),
            MaskedPaths: vec!["/proc/kcore".to_owned(), "/sys/firmware".to_owned()],
            ReadonlyPaths: vec!["/proc/sys".to_owned()],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

/// A shell that runs a script.
pub(crate) fn shell(script: &str) -> Process {
    Process {
        Args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        Env: vec!["PATH=/bin".to_owned()],
        Cwd: "/".to_owned(),
        ..Default::default()
    }
}

/// A mount of a specification.
pub(crate) fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        source: source.to_owned(),
        type_: kind.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

/// A storage of a request.
pub(crate) fn storage(driver: &str, source: &str, kind: &str, options: &[&str], target: &str) -> Storage {
    Storage {
        driver: driver.to_owned(),
        source: source.to_owned(),
        fstype: kind.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        mount_point: target.to_owned(),
        ..Default::default()
    }
}

/// The status code of a call that failed.
pub(crate) fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result.unwrap_err() {
        Error::RpcStatus(status) => status.code(),
        other => panic!("{other}"),
    }
}
