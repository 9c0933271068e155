//! Boots the guest in a virtual machine and goes through the protocol with it.

#[expect(
    unreachable_pub,
    reason = "the room of the machine is private to each test program"
)]
mod vm;

use agent_protocol::agent::{
    CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest,
    GuestDetailsRequest, ReadStreamRequest, RemoveContainerRequest, SignalProcessRequest,
    StartContainerRequest, Storage, WaitProcessRequest, WriteStreamRequest,
};
use agent_protocol::health::CheckRequest;
use agent_protocol::oci::{Linux, LinuxNamespace, Mount, Process, Root, Spec};
use agent_protocol::{Empty, agent::DestroySandboxRequest};
use ttrpc::{Code, Error};
use vm::{Vm, context, lacks_something};

const SHARE: &str = "/run/kata-containers/shared/containers/";
const SHM: &str = "/run/kata-containers/sandbox/shm";

#[tokio::test]
async fn a_container_runs_from_the_share() {
    if lacks_something() {
        return;
    }
    let vm = Vm::boot().await;
    println!("booted in {:?}", vm.boot);
    check_health(&vm).await;
    create_sandbox(&vm).await;
    exit_codes(&vm).await;
    streams_and_exec(&vm).await;
    signals(&vm).await;
    println!("{}", vm.console());
    vm.agent()
        .destroy_sandbox(context(), &DestroySandboxRequest::new())
        .await
        .unwrap();
    vm.ended().await;
}

async fn check_health(vm: &Vm) {
    let version = vm
        .health()
        .version(context(), &CheckRequest::new())
        .await
        .unwrap();
    assert!(!version.agent_version.is_empty());
    let request = GuestDetailsRequest {
        mem_block_size: true,
        ..Default::default()
    };
    let details = vm
        .agent()
        .get_guest_details(context(), &request)
        .await
        .unwrap();
    assert_eq!(details.mem_block_size_bytes, 128 << 20);
    assert!(
        details
            .agent_details
            .storage_handlers
            .contains(&"virtio-fs".to_owned())
    );
    let request = agent_protocol::agent::SetPolicyRequest::new();
    let refused = vm.agent().set_policy(context(), &request).await;
    assert_eq!(code(refused), Code::UNIMPLEMENTED);
}

async fn create_sandbox(vm: &Vm) {
    let shared = storage("virtio-fs", "kataShared", "virtiofs", &["nodev"], SHARE);
    let options = ["noexec", "nosuid", "nodev", "mode=1777", "size=1048576"];
    let shm = storage("ephemeral", "shm", "tmpfs", &options, SHM);
    let request = CreateSandboxRequest {
        hostname: "pod".to_owned(),
        dns: vec!["nameserver 10.0.0.53".to_owned()],
        storages: vec![shared, shm],
        sandbox_id: "sandbox".to_owned(),
        ..Default::default()
    };
    vm.agent()
        .create_sandbox(context(), &request)
        .await
        .unwrap();
    let again = vm.agent().create_sandbox(context(), &request).await;
    assert_eq!(code(again), Code::INTERNAL);
}

async fn exit_codes(vm: &Vm) {
    let script = "echo on $(hostname), pid $$; cat /etc/resolv.conf; df -k /dev/shm | tail -1; \
                  id -u; exit 42";
    run(vm, "first", script).await;
    let output = read_all(vm, "first", "").await;
    assert!(
        output.contains("on pod, pid 1\nnameserver 10.0.0.53\n"),
        "{output}"
    );
    assert!(output.contains("1024"), "{output}");
    assert_eq!(wait(vm, "first", "").await, 42);
    remove(vm, "first").await;
    run(vm, "second", "true").await;
    assert_eq!(wait(vm, "second", "").await, 0);
    remove(vm, "second").await;
    let gone = vm
        .agent()
        .remove_container(context(), &remove_request("second"))
        .await;
    assert_eq!(code(gone), Code::INVALID_ARGUMENT);
}

async fn streams_and_exec(vm: &Vm) {
    run(vm, "third", "cat; echo end").await;
    let request = WriteStreamRequest {
        container_id: "third".to_owned(),
        data: b"over stdin\n".to_vec(),
        ..Default::default()
    };
    let written = vm.agent().write_stdin(context(), &request).await.unwrap();
    assert_eq!(written.len, 11);
    let mut process = shell("echo error >&2; echo $0; exit 7");
    process.User.mut_or_insert_default().UID = 65534;
    let request = ExecProcessRequest {
        container_id: "third".to_owned(),
        exec_id: "more".to_owned(),
        process: Some(process).into(),
        ..Default::default()
    };
    vm.agent().exec_process(context(), &request).await.unwrap();
    assert_eq!(read_all(vm, "third", "more").await, "sh\n");
    let request = read_request("third", "more");
    let error = vm.agent().read_stderr(context(), &request).await.unwrap();
    assert_eq!(error.data, b"error\n");
    assert_eq!(wait(vm, "third", "more").await, 7);
    let request = CloseStdinRequest {
        container_id: "third".to_owned(),
        ..Default::default()
    };
    vm.agent().close_stdin(context(), &request).await.unwrap();
    assert_eq!(read_all(vm, "third", "").await, "over stdin\nend\n");
    assert_eq!(wait(vm, "third", "").await, 0);
    remove(vm, "third").await;
}

async fn signals(vm: &Vm) {
    run(vm, "fourth", "echo started; sleep 1000").await;
    let request = SignalProcessRequest {
        container_id: "fourth".to_owned(),
        signal: 9,
        ..Default::default()
    };
    vm.agent()
        .signal_process(context(), &request)
        .await
        .unwrap();
    assert_eq!(wait(vm, "fourth", "").await, 128 + 9);
    remove(vm, "fourth").await;
    // Removing takes what still runs with it.
    run(vm, "fifth", "sleep 1000 & sleep 1000").await;
    remove(vm, "fifth").await;
}

async fn run(vm: &Vm, container: &str, script: &str) {
    vm.add_rootfs(container);
    let request = CreateContainerRequest {
        container_id: container.to_owned(),
        OCI: Some(spec(container, script)).into(),
        ..Default::default()
    };
    vm.agent()
        .create_container(context(), &request)
        .await
        .unwrap();
    let request = StartContainerRequest {
        container_id: container.to_owned(),
        ..Default::default()
    };
    vm.agent()
        .start_container(context(), &request)
        .await
        .unwrap();
}

async fn wait(vm: &Vm, container: &str, exec: &str) -> i32 {
    let request = WaitProcessRequest {
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
        ..Default::default()
    };
    vm.agent()
        .wait_process(context(), &request)
        .await
        .unwrap()
        .status
}

async fn remove(vm: &Vm, container: &str) -> Empty {
    vm.agent()
        .remove_container(context(), &remove_request(container))
        .await
        .unwrap()
}

fn remove_request(container: &str) -> RemoveContainerRequest {
    RemoveContainerRequest {
        container_id: container.to_owned(),
        ..Default::default()
    }
}

async fn read_all(vm: &Vm, container: &str, exec: &str) -> String {
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

fn read_request(container: &str, exec: &str) -> ReadStreamRequest {
    ReadStreamRequest {
        container_id: container.to_owned(),
        exec_id: exec.to_owned(),
        len: 4096,
        ..Default::default()
    }
}

fn spec(container: &str, script: &str) -> Spec {
    let namespace = |kind: &str| LinuxNamespace {
        Type: kind.to_owned(),
        ..Default::default()
    };
    Spec {
        Version: "1.0.2".to_owned(),
        Process: Some(shell(script)).into(),
        Root: Some(Root {
            Path: format!("{SHARE}{container}"),
            ..Default::default()
        })
        .into(),
        Mounts: vec![
            mount("proc", "proc", "/proc", &[]),
            mount("tmpfs", "tmpfs", "/dev", &["nosuid", "mode=755"]),
            mount("bind", SHM, "/dev/shm", &["rbind"]),
            mount(
                "sysfs",
                "sysfs",
                "/sys",
                &["ro", "nosuid", "noexec", "nodev"],
            ),
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

fn shell(script: &str) -> Process {
    Process {
        Args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        Env: vec!["PATH=/bin".to_owned()],
        Cwd: "/".to_owned(),
        ..Default::default()
    }
}

fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        source: source.to_owned(),
        type_: kind.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

fn storage(driver: &str, source: &str, kind: &str, options: &[&str], target: &str) -> Storage {
    Storage {
        driver: driver.to_owned(),
        source: source.to_owned(),
        fstype: kind.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        mount_point: target.to_owned(),
        ..Default::default()
    }
}

fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result.unwrap_err() {
        Error::RpcStatus(status) => status.code(),
        other => panic!("{other}"),
    }
}
