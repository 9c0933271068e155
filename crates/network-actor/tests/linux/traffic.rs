//! Frames through the redirect, namespaces of our own, and what it all costs.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::support::{Pod, Sandbox, as_root, json, run};
use sandbox_model::ledger::Ledger;
use sandbox_model::network::{MacAddress, NetworkSource};
use tokio::time::sleep;

/// `struct virtio_net_hdr`, in front of every frame (`IFF_VNET_HDR`).
const VNET_HEADER_BYTES: usize = 10;

/// Answers ARP and ICMP echo on a tap as `mac`, like a guest, until the time is over. Returns the
/// EtherTypes seen.
async fn play_guest(tap: &OwnedFd, mac: MacAddress, time: Duration) -> BTreeSet<u16> {
    let mut seen = BTreeSet::new();
    let end = Instant::now() + time;
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        let Ok(length) = rustix::io::read(tap, &mut buffer) else {
            sleep(Duration::from_millis(2)).await;
            continue;
        };
        let frame = &buffer[VNET_HEADER_BYTES..length];
        let ether_type = u16::from_be_bytes([frame[12], frame[13]]);
        seen.insert(ether_type);
        let reply = match ether_type {
            0x0806 if frame[20..22] == [0, 1] => arp_reply(frame, mac),
            0x0800 if frame[23] == 1 && frame[34] == 8 => echo_reply(frame, mac),
            _ => continue,
        };
        let mut bytes = vec![0; VNET_HEADER_BYTES];
        bytes.extend(reply);
        rustix::io::write(tap, &bytes).unwrap();
    }
    seen
}

fn arp_reply(request: &[u8], mac: MacAddress) -> Vec<u8> {
    let (asker, asked) = (&request[22..32], &request[38..42]);
    let mut frame = [&asker[..6], &mac.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
    frame.extend([&mac.0[..], asked, asker].concat());
    frame
}

fn echo_reply(request: &[u8], mac: MacAddress) -> Vec<u8> {
    let mut frame = request.to_vec();
    frame[..6].copy_from_slice(&request[6..12]);
    frame[6..12].copy_from_slice(&mac.0);
    frame[26..30].copy_from_slice(&request[30..34]);
    frame[30..34].copy_from_slice(&request[26..30]);
    frame[34] = 0;
    // The type went from 8 to 0: the sum grows by 0x0800, with the carry around (RFC 1624).
    let sum = u32::from(u16::from_be_bytes([frame[36], frame[37]])) + 0x0800;
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[36..38].copy_from_slice(&(sum as u16).to_be_bytes());
    frame
}

async fn ping(namespace: &str, address: &str, tap: &OwnedFd, mac: MacAddress) -> (bool, BTreeSet<u16>) {
    let mut child = std::process::Command::new("ip")
        .args(["netns", "exec", namespace, "ping", "-c", "2", "-i", "0.2", "-W", "2", address])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let seen = play_guest(tap, mac, Duration::from_millis(1200)).await;
    (child.wait().unwrap().success(), seen)
}

#[test]
fn frames_cross_between_the_pods_peer_and_the_tap_both_ways() {
    as_root(async || {
        for queue_pairs in [1, 2] {
            let pod = Pod::new();
            let sandbox = Sandbox::new("pod-frames");
            let up = sandbox.set_up(pod.source(), queue_pairs).await.unwrap();
            let nic = &up.nics[0];
            assert_eq!((nic.queues.len(), nic.queue_pairs), (usize::from(queue_pairs), queue_pairs));
            if queue_pairs == 1 {
                let (answered, seen) = ping(&pod.peer, "10.9.0.2", nic.queues[0].get().unwrap(), nic.mac).await;
                assert!(answered, "seen: {seen:x?}");
                assert!(seen.contains(&0x0806) && seen.contains(&0x0800), "{seen:x?}");
            } else {
                let links = pod.json("ip", "link show dev tap0_kata");
                let info = &links[0]["linkinfo"]["info_data"];
                assert_eq!(info["multi_queue"].as_bool(), Some(true), "{info}");
                assert_eq!(info["numqueues"].as_u64(), Some(2), "{info}");
            }
            assert!(sandbox.undo().await.is_clean());
        }
    });
}

#[test]
fn a_namespace_of_our_own_is_made_reached_and_undone_also_after_a_crash() {
    as_root(async || {
        for crashed in [false, true] {
            let name = format!("netactor-own-{}-{crashed}", std::process::id());
            // Where `ip netns exec` finds it.
            std::fs::create_dir_all("/run/netns").unwrap();
            let path = std::path::PathBuf::from(format!("/run/netns/{name}"));
            let sandbox = Sandbox::new("own-1");
            let addresses = vec!["10.9.1.2/24".parse().unwrap(), "fd09:1::2/64".parse().unwrap()];
            let source = NetworkSource::Own { addresses };
            let up = sandbox.set_up_at(source, 1, path.clone()).await.unwrap();
            assert_eq!(sandbox.ledger.live().len(), 3, "file, namespace, tap");
            let addresses = run("ip", &format!("-n {name} -br addr show dev tap0_kata"));
            assert!(addresses.contains("10.9.1.1/24") && addresses.contains("fd09:1::1/64"), "{addresses}");
            let links = json("ip", &name, "link");
            assert!(links.as_array().unwrap().iter().all(|link| link["flags"].to_string().contains("\"UP\"")));
            let interface = &up.guest.interfaces[0];
            assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1500));
            let gateways: Vec<_> = up.guest.routes.iter().map(|r| r.gateway.unwrap().to_string()).collect();
            assert_eq!(gateways, ["10.9.1.1", "fd09:1::1"]);
            let (answered, seen) = ping(&name, "10.9.1.2", up.nics[0].queues[0].get().unwrap(), interface.mac).await;
            assert!(answered, "seen: {seen:x?}");

            let sandbox = if crashed {
                drop(up);
                let sandbox = sandbox.crash().await;
                sandbox.ledger.forget_outcomes();
                sandbox
            } else {
                sandbox
            };
            let entries: Vec<_> = sandbox.ledger.live().into_iter().rev().collect();
            let report = sandbox.undo().await;
            assert!(report.is_clean(), "{report:?}");
            assert!(!path.exists());
            assert!(sandbox.undo_entries(entries).await.is_clean(), "twice does no harm");
        }
    });
}

#[test]
fn nothing_of_ours_stays_in_the_process_and_no_thread_in_a_pods_namespace() {
    as_root(async || {
        let pod = Pod::new();
        let sandbox = Sandbox::new("pod-counts");
        let up = sandbox.set_up(pod.source(), 1).await.unwrap();
        assert_eq!(pod.route_sockets(), 1, "one netlink socket for the namespace's life");
        let home = std::fs::read_link("/proc/self/ns/net").unwrap();
        // Other tests of this binary enter namespaces too, each for less than a millisecond.
        let mut strays = 1;
        for _ in 0..200 {
            strays = std::fs::read_dir("/proc/self/task")
                .unwrap()
                .filter_map(|task| std::fs::read_link(task.ok()?.path().join("ns/net")).ok())
                .filter(|namespace| *namespace != home)
                .count();
            if strays == 0 {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(strays, 0, "threads in a pod's namespace");
        drop(up);
        assert!(sandbox.undo().await.is_clean());
        // The link is gone, and the kernel waits for all who might still look at it: until it has,
        // the call that removed the link holds its socket.
        let mut sockets = 1;
        for _ in 0..200 {
            sockets = pod.route_sockets();
            if sockets == 0 {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(sockets, 0);
    });
}

#[test]
fn what_set_up_and_removal_cost() {
    as_root(async || {
        let pod = Pod::new();
        let (mut set_up, mut undo) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let sandbox = Sandbox::new("pod-bench");
            let start = Instant::now();
            let up = sandbox.set_up(pod.source(), 1).await.unwrap();
            set_up.push(start.elapsed());
            drop(up);
            let start = Instant::now();
            assert!(sandbox.undo().await.is_clean());
            undo.push(start.elapsed());
        }
        set_up.sort();
        undo.sort();
        let shown =
            |times: &[Duration]| format!("median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
        println!("set-up of one veth: {}; removal: {}", shown(&set_up), shown(&undo));
    });
}
