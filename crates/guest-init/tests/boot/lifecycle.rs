//! Containers from their creation to their removal, and what a client sees of them.

use agent_protocol::agent::{
    CloseStdinRequest, DestroySandboxRequest, ExecProcessRequest, GuestDetailsRequest, SetPolicyRequest,
    SignalProcessRequest, WriteStreamRequest,
};
use agent_protocol::health::CheckRequest;
use ttrpc::Code;

use crate::call::{
    code, create_sandbox, read_all, read_request, remove, remove_request, run, sandbox_request, shell, wait,
};
use crate::vm::{Vm, context, lacks_something};

#[tokio::test]
async fn a_container_runs_from_the_share() {
    if lacks_something() {
        return;
    }
    let mut vm = Vm::boot().await;
    println!("booted in {:?}", vm.boot);
    check_health(&vm).await;
    create_sandbox(&vm).await;
    let again = vm.agent().create_sandbox(context(), &sandbox_request()).await;
    assert_eq!(code(again), Code::INTERNAL);
    exit_codes(&vm).await;
    streams_and_exec(&vm).await;
    signals(&vm).await;
    vm.agent().destroy_sandbox(context(), &DestroySandboxRequest::new()).await.unwrap();
    vm.ended().await;
}

async fn check_health(vm: &Vm) {
    let version = vm.health().version(context(), &CheckRequest::new()).await.unwrap();
    assert!(!version.agent_version.is_empty());
    let request = GuestDetailsRequest { mem_block_size: true, ..Default::default() };
    let details = vm.agent().get_guest_details(context(), &request).await.unwrap();
    assert_eq!(details.mem_block_size_bytes, 128 << 20);
    assert!(details.agent_details.storage_handlers.contains(&"virtio-fs".to_owned()));
    let request = SetPolicyRequest::new();
    let refused = vm.agent().set_policy(context(), &request).await;
    assert_eq!(code(refused), Code::UNIMPLEMENTED);
}

async fn exit_codes(vm: &Vm) {
    let script = "echo on $(hostname), pid $$; cat /etc/resolv.conf; df -k /dev/shm | tail -1; \
                  id -u; exit 42";
    run(vm, "first", script).await;
    let output = read_all(vm, "first", "").await;
    assert!(output.contains("on pod, pid 1\nnameserver 10.0.0.53\n"), "{output}");
    assert!(output.contains("1024"), "{output}");
    assert_eq!(wait(vm, "first", "").await, 42);
    remove(vm, "first").await;
    run(vm, "second", "true").await;
    assert_eq!(wait(vm, "second", "").await, 0);
    remove(vm, "second").await;
    let gone = vm.agent().remove_container(context(), &remove_request("second")).await;
    assert_eq!(code(gone), Code::INVALID_ARGUMENT);
}

async fn streams_and_exec(vm: &Vm) {
    run(vm, "third", "cat; echo end").await;
    let request =
        WriteStreamRequest { container_id: "third".to_owned(), data: b"over stdin\n".to_vec(), ..Default::default() };
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
    let request = CloseStdinRequest { container_id: "third".to_owned(), ..Default::default() };
    vm.agent().close_stdin(context(), &request).await.unwrap();
    assert_eq!(read_all(vm, "third", "").await, "over stdin\nend\n");
    assert_eq!(wait(vm, "third", "").await, 0);
    remove(vm, "third").await;
}

async fn signals(vm: &Vm) {
    run(vm, "fourth", "echo started; sleep 1000").await;
    let request = SignalProcessRequest { container_id: "fourth".to_owned(), signal: 9, ..Default::default() };
    vm.agent().signal_process(context(), &request).await.unwrap();
    assert_eq!(wait(vm, "fourth", "").await, 128 + 9);
    remove(vm, "fourth").await;
    // Removing takes what still runs with it.
    run(vm, "fifth", "sleep 1000 & sleep 1000").await;
    remove(vm, "fifth").await;
}
