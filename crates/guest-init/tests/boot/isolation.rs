//! What a container may and may not, and what it may use.

use agent_protocol::agent::{
    CopyFileRequest, CreateContainerRequest, ExecProcessRequest, GetOOMEventRequest, PauseContainerRequest,
    ReadStreamRequest, ResumeContainerRequest, StartContainerRequest, StatsContainerRequest, TtyWinResizeRequest,
    UpdateContainerRequest, WriteStreamRequest,
};
use agent_protocol::oci::{LinuxCPU, LinuxCapabilities, LinuxMemory, LinuxPids, LinuxResources, POSIXRlimit, Spec};
use ttrpc::Code;

use crate::call::{SHARE, code, create_sandbox, mount, read_all, remove, run, shell, spec, storage, wait};
use crate::vm::{Vm, context, lacks_something};

#[tokio::test]
async fn containers_are_held_to_their_specification() {
    if lacks_something() {
        return;
    }
    let vm = Vm::boot().await;
    create_sandbox(&vm).await;
    identity(&vm).await;
    file_system(&vm).await;
    limits(&vm).await;
    out_of_memory(&vm).await;
    terminal(&vm).await;
    copied_files(&vm).await;
    refusals(&vm).await;
}

async fn start(vm: &Vm, container: &str, spec: Spec) {
    vm.add_rootfs(container);
    let request =
        CreateContainerRequest { container_id: container.to_owned(), OCI: Some(spec).into(), ..Default::default() };
    vm.agent().create_container(context(), &request).await.unwrap();
    let request = StartContainerRequest { container_id: container.to_owned(), ..Default::default() };
    vm.agent().start_container(context(), &request).await.unwrap();
}

async fn output(vm: &Vm, container: &str, spec: Spec) -> String {
    start(vm, container, spec).await;
    let output = read_all(vm, container, "").await;
    remove(vm, container).await;
    output
}

async fn identity(vm: &Vm) {
    let script = "id -u; id -g; id -G; grep -E '^(Cap(Bnd|Eff)|NoNewPrivs)' /proc/self/status; \
                  ulimit -n; pwd; echo $HOME";
    let mut spec = spec("identity", script);
    let process = spec.Process.mut_or_insert_default();
    let user = process.User.mut_or_insert_default();
    (user.UID, user.GID, user.AdditionalGids) = (1000, 1001, vec![1002]);
    process.Cwd = "/tmp".to_owned();
    process.NoNewPrivileges = true;
    process.Rlimits = vec![POSIXRlimit { Type: "RLIMIT_NOFILE".to_owned(), Hard: 100, Soft: 64, ..Default::default() }];
    process.Capabilities =
        Some(LinuxCapabilities { Bounding: vec!["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()], ..Default::default() })
            .into();
    let expected = "1000\n1001\n1001 1002\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000021\n\
                    NoNewPrivs:\t1\n64\n/tmp\n/\n";
    assert_eq!(output(vm, "identity", spec).await, expected);
}

async fn file_system(vm: &Vm) {
    let script = "touch /x 2>&1; touch /proc/sys/x 2>&1; wc -c < /proc/kcore; ls /sys/firmware | wc -l; \
                  touch /data/x 2>&1; ls /dev/fd/0 /dev/null; \
                  ls /run/kata-containers 2>&1; grep -c . /proc/mounts > /dev/null && echo done";
    let mut spec = spec("files", script);
    spec.Root.mut_or_insert_default().Readonly = true;
    std::fs::create_dir_all(vm.share().join("data")).unwrap();
    // The mount point must be there before the root is read-only.
    std::fs::create_dir_all(vm.share().join("files/data")).unwrap();
    spec.Mounts.push(mount("bind", &format!("{SHARE}data"), "/data", &["rbind", "ro"]));
    let output = output(vm, "files", spec).await;
    assert!(output.contains("touch: /x: Read-only file system"), "{output}");
    assert!(output.contains("touch: /data/x: Read-only file system"), "{output}");
    assert!(output.contains("\n0\n0\n"), "{output}");
    assert!(output.contains("ls: /run/kata-containers: No such file"), "{output}");
    assert!(output.ends_with("done\n"), "{output}");
}

async fn limits(vm: &Vm) {
    let id = || "limits".to_owned();
    let mut spec = spec("limits", "while true; do sleep 0.1; done");
    spec.Linux.mut_or_insert_default().Resources = Some(resources(64 << 20, 50)).into();
    start(vm, "limits", spec).await;
    let stats = stats(vm, "limits").await;
    assert_eq!(stats, (64 << 20, 50));
    let request = UpdateContainerRequest {
        container_id: id(),
        resources: Some(resources(32 << 20, 40)).into(),
        ..Default::default()
    };
    vm.agent().update_container(context(), &request).await.unwrap();
    assert_eq!(self::stats(vm, "limits").await, (32 << 20, 40));
    let request = PauseContainerRequest { container_id: id(), ..Default::default() };
    vm.agent().pause_container(context(), &request).await.unwrap();
    let request = ResumeContainerRequest { container_id: id(), ..Default::default() };
    vm.agent().resume_container(context(), &request).await.unwrap();
    let request = PauseContainerRequest { container_id: id(), ..Default::default() };
    vm.agent().pause_container(context(), &request).await.unwrap();
    // A paused container can be removed.
    remove(vm, "limits").await;
}

fn resources(memory: i64, pids: i64) -> LinuxResources {
    LinuxResources {
        Memory: Some(LinuxMemory { Limit: memory, ..Default::default() }).into(),
        CPU: Some(LinuxCPU { Shares: 512, Quota: 50_000, Period: 100_000, ..Default::default() }).into(),
        Pids: Some(LinuxPids { Limit: pids, ..Default::default() }).into(),
        ..Default::default()
    }
}

/// Limits of memory and processes, as the statistics tell them.
async fn stats(vm: &Vm, container: &str) -> (u64, u64) {
    let request = StatsContainerRequest { container_id: container.to_owned(), ..Default::default() };
    let stats = vm.agent().stats_container(context(), &request).await.unwrap().cgroup_stats;
    assert!(stats.cpu_stats.cpu_usage.total_usage > 0);
    (stats.memory_stats.usage.limit, stats.pids_stats.limit)
}

async fn out_of_memory(vm: &Vm) {
    let mut spec = spec("greedy", "dd if=/dev/zero of=/dev/null bs=64M count=1");
    spec.Linux.mut_or_insert_default().Resources = Some(resources(8 << 20, 50)).into();
    start(vm, "greedy", spec).await;
    let request = GetOOMEventRequest::new();
    let event = vm.agent().get_oom_event(context(), &request).await.unwrap();
    assert_eq!(event.container_id, "greedy");
    remove(vm, "greedy").await;
}

async fn terminal(vm: &Vm) {
    let mut spec = spec("terminal", "read size; stty size; test -t 0; exit $?");
    spec.Process.mut_or_insert_default().Terminal = true;
    start(vm, "terminal", spec).await;
    let request =
        TtyWinResizeRequest { container_id: "terminal".to_owned(), row: 30, column: 100, ..Default::default() };
    vm.agent().tty_win_resize(context(), &request).await.unwrap();
    let request =
        WriteStreamRequest { container_id: "terminal".to_owned(), data: b"\n".to_vec(), ..Default::default() };
    vm.agent().write_stdin(context(), &request).await.unwrap();
    let output = read_all(vm, "terminal", "").await;
    assert!(output.contains("30 100"), "{output}");
    assert_eq!(wait(vm, "terminal", "").await, 0);
    remove(vm, "terminal").await;
}

async fn copied_files(vm: &Vm) {
    let path = "/run/kata-containers/copied/file";
    let mut request = CopyFileRequest {
        path: path.to_owned(),
        file_size: 6,
        file_mode: 0o100_640,
        data: b"one".to_vec(),
        ..Default::default()
    };
    vm.agent().copy_file(context(), &request).await.unwrap();
    (request.offset, request.data) = (3, b"two".to_vec());
    vm.agent().copy_file(context(), &request).await.unwrap();
    request.path = "/etc/passwd".to_owned();
    assert_eq!(code(vm.agent().copy_file(context(), &request).await), Code::INTERNAL);
    let mut spec = spec("copied", "cat /copied; stat -c %a /copied");
    spec.Mounts.push(mount("bind", path, "/copied", &["bind", "ro"]));
    assert_eq!(output(vm, "copied", spec).await, "onetwo640\n");
}

/// What fails leaves nothing in the way of the next try.
async fn refusals(vm: &Vm) {
    vm.add_rootfs("refused");
    let mut request = CreateContainerRequest {
        container_id: "refused".to_owned(),
        storages: vec![storage("no-such", "", "", &[], "/run/nowhere")],
        OCI: Some(spec("refused", "true")).into(),
        ..Default::default()
    };
    assert_eq!(code(vm.agent().create_container(context(), &request).await), Code::INTERNAL);
    request.storages.clear();
    let process = request.OCI.mut_or_insert_default().Process.mut_or_insert_default();
    process.Args[0] = "no-such-program".to_owned();
    assert_eq!(code(vm.agent().create_container(context(), &request).await), Code::INTERNAL);
    run(vm, "refused", "cat").await;
    let request = ExecProcessRequest {
        container_id: "refused".to_owned(),
        exec_id: "late".to_owned(),
        process: Some(shell("true")).into(),
        ..Default::default()
    };
    vm.agent().exec_process(context(), &request).await.unwrap();
    assert_eq!(wait(vm, "refused", "late").await, 0);
    let request = ReadStreamRequest { container_id: "nobody".to_owned(), ..Default::default() };
    let unknown = vm.agent().read_stdout(context(), &request).await;
    assert_eq!(code(unknown), Code::INVALID_ARGUMENT);
    remove(vm, "refused").await;
}
