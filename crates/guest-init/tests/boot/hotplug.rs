//! Devices, CPUs and memory that come while the guest runs.

use std::process::Command;

use agent_protocol::agent::{
    ARPNeighbors, AddARPNeighborsRequest, CreateContainerRequest, Device, ListInterfacesRequest, ListRoutesRequest,
    OnlineCPUMemRequest, Routes, StartContainerRequest, UpdateInterfaceRequest, UpdateRoutesRequest,
};
use agent_protocol::types::{ARPNeighbor, IPAddress, Interface, Route};
use serde_json::json;

use crate::call::{create_sandbox, mount, read_all, remove, run, spec, storage, wait};
use crate::vm::{Vm, context, lacks_something};

const MAC: &str = "02:00:00:00:00:0a";

#[tokio::test]
async fn what_is_plugged_is_found() {
    if lacks_something() {
        return;
    }
    let vm = Vm::boot().await;
    create_sandbox(&vm).await;
    disks(&vm).await;
    network(&vm).await;
    cpus(&vm).await;
    memory(&vm).await;
}

/// One disk is mounted as a storage, one given to the container as a device.
async fn disks(vm: &Vm) {
    for (name, slot) in [("volume", 5), ("raw", 6)] {
        plug_disk(vm, name, slot).await;
    }
    vm.add_rootfs("disks");
    let volume = "/run/kata-containers/sandbox/volume";
    let mut spec = spec("disks", "echo kept > /volume/file; wc -c < /dev/raw; grep -c /volume /proc/mounts");
    spec.Mounts.push(mount("bind", volume, "/volume", &["rbind"]));
    let raw = Device {
        id: "02/06".to_owned(),
        type_: "blk".to_owned(),
        container_path: "/dev/raw".to_owned(),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        container_id: "disks".to_owned(),
        storages: vec![storage("blk", "02/05", "ext4", &["noatime"], volume)],
        devices: vec![raw],
        OCI: Some(spec).into(),
        ..Default::default()
    };
    vm.agent().create_container(context(), &request).await.unwrap();
    let request = StartContainerRequest { container_id: "disks".to_owned(), ..Default::default() };
    vm.agent().start_container(context(), &request).await.unwrap();
    assert_eq!(read_all(vm, "disks", "").await, "16777216\n1\n");
    remove(vm, "disks").await;
    // Unmounted: the host can read what was written.
    let mut debugfs = Command::new("debugfs");
    let output = debugfs.args(["-R", "cat /file"]).arg(vm.file("volume.img")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "kept\n");
}

async fn plug_disk(vm: &Vm, name: &str, slot: u32) {
    let image = vm.file(&format!("{name}.img"));
    std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    assert!(Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap().success());
    let file = json!({ "driver": "file", "filename": image });
    vm.monitor(&[
        json!({ "execute": "blockdev-add", "arguments": {
            "node-name": name, "driver": "raw", "file": file,
        }}),
        json!({ "execute": "device_add", "arguments": {
            "driver": "virtio-blk-pci", "id": name, "drive": name,
            "bus": "pci-bridge-0", "addr": format!("{slot:#x}"),
        }}),
    ])
    .await;
}

async fn network(vm: &Vm) {
    let address = |address: &str, mask: &str| IPAddress {
        address: address.to_owned(),
        mask: mask.to_owned(),
        ..Default::default()
    };
    let interface = Interface {
        name: "eth0".to_owned(),
        device: "eth0".to_owned(),
        IPAddresses: vec![address("10.9.0.2", "24"), address("fd00::2", "64")],
        mtu: 1400,
        hwAddr: MAC.to_owned(),
        ..Default::default()
    };
    let request = UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() };
    let agent = vm.agent();
    let (updated, ()) = tokio::join!(agent.update_interface(context(), &request), plug_interface(vm));
    updated.unwrap();
    let request = ListInterfacesRequest::new();
    let listed = vm.agent().list_interfaces(context(), &request).await.unwrap().Interfaces;
    let eth0 = listed.iter().find(|interface| interface.name == "eth0").unwrap();
    assert_eq!((eth0.mtu, eth0.hwAddr.as_str()), (1400, MAC));
    assert!(eth0.IPAddresses.iter().any(|ip| ip.address == "10.9.0.2" && ip.mask == "24"));
    assert!(eth0.IPAddresses.iter().any(|ip| ip.address == "fd00::2"));
    neighbours_and_routes(vm, address("10.9.0.1", "")).await;
}

async fn plug_interface(vm: &Vm) {
    vm.monitor(&[
        json!({ "execute": "netdev_add", "arguments": {
            "type": "user", "id": "net", "restrict": true,
        }}),
        json!({ "execute": "device_add", "arguments": {
            "driver": "virtio-net-pci", "id": "nic", "netdev": "net", "mac": MAC,
            "bus": "pci-bridge-0", "addr": "0x7", "romfile": "",
        }}),
    ])
    .await;
}

async fn neighbours_and_routes(vm: &Vm, gateway: IPAddress) {
    let neighbour = ARPNeighbor {
        toIPAddress: Some(gateway).into(),
        device: "eth0".to_owned(),
        lladdr: "02:00:00:00:00:01".to_owned(),
        state: 0x80,
        ..Default::default()
    };
    let neighbours = ARPNeighbors { ARPNeighbors: vec![neighbour], ..Default::default() };
    let request = AddARPNeighborsRequest { neighbors: Some(neighbours).into(), ..Default::default() };
    vm.agent().add_arp_neighbors(context(), &request).await.unwrap();
    let route = |dest: &str, gateway: &str, scope: u32| Route {
        dest: dest.to_owned(),
        gateway: gateway.to_owned(),
        device: "eth0".to_owned(),
        scope,
        ..Default::default()
    };
    // The default route comes first on the wire, but needs the second one.
    let routes = vec![route("", "10.10.0.1", 0), route("10.10.0.1/32", "", 253)];
    let routes = Routes { Routes: routes, ..Default::default() };
    let request = UpdateRoutesRequest { routes: Some(routes).into(), ..Default::default() };
    vm.agent().update_routes(context(), &request).await.unwrap();
    let listed = vm.agent().list_routes(context(), &ListRoutesRequest::new()).await.unwrap();
    let default = listed.Routes.iter().find(|route| route.gateway == "10.10.0.1").unwrap();
    assert_eq!((default.dest.as_str(), default.device.as_str()), ("", "eth0"));
    run(vm, "net", "arp -n | grep -c 02:00:00:00:00:01; ip -4 addr show eth0 | grep -c 10.9.0.2").await;
    assert_eq!(read_all(vm, "net", "").await, "1\n1\n");
    remove(vm, "net").await;
}

async fn cpus(vm: &Vm) {
    let request = OnlineCPUMemRequest { nb_cpus: 2, cpu_only: true, ..Default::default() };
    let agent = vm.agent();
    let plug = [json!({ "execute": "device_add", "arguments": {
        "driver": "max-x86_64-cpu", "id": "cpu-1",
        "socket-id": 1, "core-id": 0, "thread-id": 0,
    }})];
    let (online, ()) = tokio::join!(agent.online_cpu_mem(context(), &request), vm.monitor(&plug));
    online.unwrap();
    run(vm, "cpus", "exit $(grep -c ^processor /proc/cpuinfo)").await;
    assert_eq!(wait(vm, "cpus", "").await, 2);
    remove(vm, "cpus").await;
}

async fn memory(vm: &Vm) {
    let before = total_mib(vm, "before").await;
    vm.monitor(&[
        json!({ "execute": "object-add", "arguments": {
            "qom-type": "memory-backend-memfd", "id": "more", "size": 128 << 20, "share": true,
        }}),
        json!({ "execute": "device_add", "arguments": {
            "driver": "pc-dimm", "id": "dimm", "memdev": "more",
        }}),
    ])
    .await;
    let mut after = before;
    for attempt in 0..20 {
        // One pass for what is there: the caller has to know when that is.
        let request = OnlineCPUMemRequest::new();
        vm.agent().online_cpu_mem(context(), &request).await.unwrap();
        after = total_mib(vm, &format!("after-{attempt}")).await;
        if after > before {
            break;
        }
    }
    assert_eq!(after - before, 128);
}

async fn total_mib(vm: &Vm, container: &str) -> u64 {
    run(vm, container, "awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo").await;
    let output = read_all(vm, container, "").await;
    remove(vm, container).await;
    output.trim().parse().unwrap()
}
