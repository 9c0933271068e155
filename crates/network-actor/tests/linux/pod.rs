//! The network actor on the real kernel, in namespaces of its own making.

use crate::support::{Pod, Sandbox, as_root, ip, run};
use sandbox_model::ledger::Ledger;
use sandbox_model::network::{IpNet, MacAddress};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn a_pods_network_is_set_up_told_to_the_guest_and_undone_without_a_trace() {
    as_root(async || {
        let pod = Pod::new();
        let before = pod.snapshot();
        let sandbox = Sandbox::new("pod-full");
        let up = sandbox.set_up(pod.source(), 1).await.unwrap();
        assert_host_side(&pod);
        assert_guest_side(&pod, &up.guest);
        assert_eq!(up.nics.len(), 1);
        let nic = &up.nics[0];
        assert_eq!((nic.tap.as_str(), nic.mtu, nic.queue_pairs, nic.queues.len()), ("tap0_kata", 1400, 1, 1));
        assert_eq!(nic.mac, up.guest.interfaces[0].mac);
        assert_eq!(sandbox.ledger.live().len(), 2, "a tap and a qdisc");
        let again = sandbox.set_up(pod.source(), 1).await;
        assert_eq!(again.unwrap_err(), "the sandbox has its network already");

        let entries: Vec<_> = sandbox.ledger.live().into_iter().rev().collect();
        let report = sandbox.undo().await;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(pod.snapshot(), before);
        assert_eq!(pod.route_sockets(), 0, "the socket is closed with the last entry");
        let report = sandbox.undo_entries(entries).await;
        assert!(report.is_clean() && report.items.len() == 2, "twice does no harm: {report:?}");
        assert_eq!(pod.snapshot(), before);

        drop(up);
        sandbox.set_up(pod.source(), 1).await.unwrap();
        assert!(pod.has_link("tap0_kata"), "a second set-up in the same namespace");
        assert!(sandbox.undo().await.is_clean());
        assert_eq!(pod.snapshot(), before);
    });
}

fn assert_host_side(pod: &Pod) {
    let links = pod.json("ip", "link");
    let tap = links.as_array().unwrap().iter().find(|link| link["ifname"] == "tap0_kata").unwrap();
    assert_eq!(tap["ifalias"], "resource-actors:pod-full");
    assert_eq!(tap["mtu"], 1400);
    let info = &tap["linkinfo"]["info_data"];
    assert_eq!((info["type"].as_str(), info["persist"].as_bool()), (Some("tap"), Some(false)), "{tap}");
    assert_eq!((info["vnet_hdr"].as_bool(), info["pi"].as_bool()), (Some(true), Some(false)), "{tap}");
    assert!(tap["flags"].as_array().unwrap().iter().any(|flag| flag == "UP"));
    for (from, to) in [("eth0", "tap0_kata"), ("tap0_kata", "eth0")] {
        let filters = pod.json("tc", &format!("filter show dev {from} ingress"));
        let actions: Vec<_> = filters
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|filter| filter["options"]["actions"].as_array())
            .flatten()
            .collect();
        assert_eq!(actions.len(), 1, "{filters:?}");
        assert_eq!(actions[0]["kind"], "mirred");
        assert_eq!(actions[0]["mirred_action"], "redirect");
        assert_eq!(actions[0]["direction"], "egress");
        assert_eq!(actions[0]["to_dev"], to);
    }
    assert_eq!(pod.route_sockets(), 1);
}

fn assert_guest_side(pod: &Pod, guest: &sandbox_model::network::GuestNetwork) {
    let links = pod.json("ip", "link show dev eth0");
    let mac: MacAddress = links[0]["address"].as_str().unwrap().parse().unwrap();
    let interface = &guest.interfaces[0];
    assert_eq!((interface.name.as_str(), interface.mtu, interface.mac), ("eth0", 1400, mac));
    assert_eq!((interface.link_kind.as_str(), interface.raw_flags), ("veth", 0));
    assert!(interface.addresses.contains(&net("10.9.0.2/24")) && interface.addresses.contains(&net("fd09::2/64")));
    assert!(interface.addresses.iter().any(|net| net.address.to_string().starts_with("fe80")), "{interface:?}");
    let routes: Vec<String> = guest
        .routes
        .iter()
        .map(|route| {
            let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            format!(
                "{} via {} src {} {} scope {} flags {} mtu {}",
                text(route.destination.map(|to| to.to_string())),
                text(route.gateway.map(|ip| ip.to_string())),
                text(route.source.map(|ip| ip.to_string())),
                if route.is_ipv6 { "v6" } else { "v4" },
                route.scope,
                route.flags,
                route.mtu
            )
        })
        .collect();
    let expected = [
        "10.88.0.1/32 via - src - v4 scope 253 flags 0 mtu 0",
        "- via 10.9.0.1 src - v4 scope 0 flags 4 mtu 0",
        "10.77.0.0/16 via 10.9.0.1 src 10.9.0.2 v4 scope 0 flags 0 mtu 1300",
        "- via fd09::1 src - v6 scope 0 flags 0 mtu 0",
    ];
    assert_eq!(routes, expected);
    let neighbors: Vec<_> = guest.neighbors.iter().map(|n| (n.address.to_string(), n.mac.to_string())).collect();
    assert_eq!(neighbors, [("10.9.0.9".to_owned(), "02:00:00:00:00:09".to_owned())]);
    assert_eq!(guest.neighbors[0].state, 0x80, "NUD_PERMANENT");
}

#[test]
fn a_fresh_actor_undoes_a_crash_from_the_ledger_alone() {
    as_root(async || {
        for outcomes_known in [true, false] {
            let pod = Pod::new();
            let before = pod.snapshot();
            let sandbox = Sandbox::new("pod-crash");
            let up = sandbox.set_up(pod.source(), 1).await.unwrap();
            // As the VMM does, which outlives us.
            let vmm: Vec<_> = up.nics[0].queues.iter().map(|q| q.get().unwrap().try_clone().unwrap()).collect();
            drop(up);
            let sandbox = sandbox.crash().await;
            if !outcomes_known {
                sandbox.ledger.forget_outcomes();
            }
            assert!(pod.has_link("tap0_kata"), "held by the VMM");
            let refused = sandbox.set_up(pod.source(), 1).await;
            assert!(refused.is_err(), "what is left is undone first");
            let report = sandbox.undo().await;
            assert!(report.is_clean(), "{report:?}");
            assert_eq!(pod.snapshot(), before);
            assert!(sandbox.ledger.live().is_empty());
            drop(vmm);
        }
    });
}

#[test]
fn taps_that_go_one_after_the_other_do_not_take_each_others_answers() {
    as_root(async || {
        let pod = Pod::new();
        for (link, address) in [("eth1", "10.9.1.2/24"), ("eth2", "10.9.2.2/24"), ("eth3", "10.9.3.2/24")] {
            pod.add_veth(link, address, 1400);
        }
        let before = pod.snapshot();
        for round in 0..20 {
            let sandbox = Sandbox::new("pod-many");
            let up = sandbox.set_up(pod.source(), 1).await.unwrap();
            assert_eq!(up.nics.len(), 4);
            let report = sandbox.undo().await;
            assert!(report.is_clean(), "round {round}: {report:?}");
        }
        assert_eq!(pod.snapshot(), before);
    });
}

#[test]
fn a_tap_dies_with_its_last_descriptor_and_its_entry_is_then_gone() {
    as_root(async || {
        let pod = Pod::new();
        let before = pod.snapshot();
        let sandbox = Sandbox::new("pod-gone");
        drop(sandbox.set_up(pod.source(), 1).await.unwrap());
        let sandbox = sandbox.crash().await;
        assert!(!pod.has_link("tap0_kata"));
        assert!(sandbox.undo().await.is_clean());
        assert_eq!(pod.snapshot(), before);

        let sandbox = Sandbox::new("pod-lost");
        drop(sandbox.set_up(pod.source(), 1).await.unwrap());
        let sandbox = sandbox.crash().await;
        ip(&format!("netns del {}", pod.name));
        ip(&format!("netns add {}", pod.name));
        let report = sandbox.undo().await;
        assert!(report.is_clean(), "another namespace of that name holds nothing of ours: {report:?}");
    });
}

#[test]
fn what_a_failed_set_up_left_is_undone() {
    as_root(async || {
        let pod = Pod::new();
        // A veth may be that large, a tap not.
        pod.add_veth("eth1", "10.10.0.2/24", 65535);
        let before = pod.snapshot();
        let sandbox = Sandbox::new("pod-half");
        let error = sandbox.set_up(pod.source(), 1).await.unwrap_err();
        assert!(error.contains("RTM_SETLINK tap1_kata (mtu 65535)"), "{error}");
        assert!(pod.has_link("tap0_kata"), "the first stands, and is in the ledger");
        assert!(!pod.has_link("tap1_kata"), "the second is taken back");
        assert_eq!(sandbox.ledger.live().len(), 2);
        assert!(sandbox.undo().await.is_clean());
        assert_eq!(pod.snapshot(), before);
    });
}

#[test]
fn strangers_objects_are_an_error_and_left_alone() {
    as_root(async || {
        let pod = Pod::new();
        ip(&format!("-n {} tuntap add tap0_kata mode tap", pod.name));
        let before = pod.snapshot();
        let sandbox = Sandbox::new("pod-tap");
        let error = sandbox.set_up(pod.source(), 1).await.unwrap_err();
        assert!(error.contains("tap0_kata") && error.contains("there already"), "{error}");
        assert!(sandbox.undo().await.is_clean() && sandbox.ledger.live().is_empty());
        assert_eq!(pod.snapshot(), before);
        ip(&format!("-n {} link del tap0_kata", pod.name));

        for kind in ["ingress", "clsact"] {
            run("tc", &format!("-n {} qdisc add dev eth0 {kind}", pod.name));
            let before = pod.snapshot();
            let error = sandbox.set_up(pod.source(), 1).await.unwrap_err();
            assert!(error.contains("qdisc"), "{error}");
            assert!(sandbox.undo().await.is_clean());
            assert_eq!(pod.snapshot(), before);
            run("tc", &format!("-n {} qdisc del dev eth0 {kind}", pod.name));
        }
    });
}

#[test]
fn an_undo_leaves_alone_what_has_taken_the_place_of_ours() {
    as_root(async || {
        let pod = Pod::new();
        let sandbox = Sandbox::new("pod-foreign");
        drop(sandbox.set_up(pod.source(), 1).await.unwrap());
        let sandbox = sandbox.crash().await;
        run("tc", &format!("-n {} qdisc del dev eth0 ingress", pod.name));
        run("tc", &format!("-n {} qdisc add dev eth0 clsact", pod.name));
        ip(&format!("-n {} tuntap add tap0_kata mode tap", pod.name));
        let before = pod.snapshot();
        let report = sandbox.undo().await;
        let kinds: Vec<_> = report.failed().map(|(_, error)| error.kind).collect();
        assert_eq!(kinds, [sandbox_model::ErrorKind::Foreign; 2], "{report:?}");
        assert_eq!(pod.snapshot(), before);
        assert_eq!(sandbox.ledger.live().len(), 2, "the next clean-up tries again");
    });
}

#[test]
fn links_that_cannot_be_redirected_are_left_out_with_a_reason() {
    as_root(async || {
        let pod = Pod::new();
        for command in [
            "link add br0 type bridge",
            "addr add 10.20.0.1/24 dev br0",
            "link add bare0 type veth peer name bare1",
            "link add link eth0 name mv0 type macvlan mode bridge",
            "addr add 10.21.0.1/24 dev mv0",
        ] {
            ip(&format!("-n {} {command}", pod.name));
        }
        let before = pod.snapshot();
        let sandbox = Sandbox::new("pod-kinds");
        let up = sandbox.set_up(pod.source(), 1).await.unwrap();
        let names: Vec<_> = up.guest.interfaces.iter().map(|i| (i.name.as_str(), i.link_kind.as_str())).collect();
        assert_eq!(names, [("eth0", "veth"), ("mv0", "macvlan")]);
        assert!(up.skipped.iter().any(|s| s.starts_with("br0:") && s.contains("bridge")), "{:?}", up.skipped);
        assert!(up.skipped.iter().any(|s| s.starts_with("bare0:")), "{:?}", up.skipped);
        assert!(sandbox.undo().await.is_clean());
        assert_eq!(pod.snapshot(), before);
    });
}

#[test]
fn what_is_no_namespace_for_a_sandbox_is_refused() {
    as_root(async || {
        let sandbox = Sandbox::new("pod-refused");
        for (path, reason) in [
            ("/proc/self/ns/net", "it is ours"),
            // Where even root may not look at process 1 the kernel refuses first.
            ("/proc/1/ns/net", "/proc/1/ns/net"),
            ("/proc/self/ns/uts", "another kind"),
            ("/etc/hostname", "no namespace"),
            ("/dev/tty0", "/dev/tty0"),
            ("relative", "not absolute"),
            ("/run/netns/netactor-nonexistent", "No such file"),
        ] {
            let source = sandbox_model::network::NetworkSource::Namespace { path: path.into() };
            let error = sandbox.set_up(source, 1).await.unwrap_err();
            assert!(error.contains(reason), "{path}: {error}");
        }
        assert!(sandbox.ledger.live().is_empty());
    });
}
