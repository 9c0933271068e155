//! A QEMU that says of itself what the test wants.

use std::sync::{Arc, Mutex};

use super::*;

/// Answers what is asked by a table of `command path property`; what was asked comes back.
struct Said {
    answers: Vec<(&'static str, Value)>,
}

impl Said {
    /// A VM with one disk of ours and what QEMU has besides.
    fn usual() -> Self {
        let part = |name: &str, kind: &str| json!({ "name": name, "type": format!("child<{kind}>") });
        Self {
            answers: vec![
                ("query-status", json!({ "status": "running", "running": true })),
                ("query-kvm", json!({ "enabled": true, "present": true })),
                ("query-memory-size-summary", json!({ "base-memory": 128 << 20, "plugged-memory": 256 << 20 })),
                (
                    "qom-list /machine/peripheral",
                    json!([
                        { "name": "type", "type": "string" },
                        part("block-1", "virtio-blk-pci"),
                        part("dimm-0", "pc-dimm"),
                        part("cpu-1", "max-x86_64-cpu"),
                        part("pci-bridge-0", "pci-bridge"),
                        part("pci-bridge-1", "pci-bridge"),
                        part("elsewhere", "virtio-rng-pci"),
                        part("no device id/..", "virtio-rng-pci"),
                    ]),
                ),
                ("qom-get /machine memory", json!({ "size": 128 << 20, "max-size": 1 << 30 })),
                ("qom-list /objects", json!([part("mem0", "memory-backend-memfd")])),
                (
                    "qom-get /machine/peripheral/block-1 parent_bus",
                    json!("/machine/peripheral/pci-bridge-1/pci-bridge-1"),
                ),
                ("qom-get /machine/peripheral/block-1 addr", json!(0x58)),
                ("qom-get /machine/peripheral/block-1 drive", json!("drive-7")),
                ("qom-get /machine/peripheral/elsewhere parent_bus", json!("/machine/q35/pcie.0")),
                ("query-fdsets", json!([{ "fdset-id": 7, "fds": [] }, { "fdset-id": 9, "fds": [] }])),
                ("query-named-block-nodes", json!([{ "node-name": "drive-7" }, { "node-name": "#block123" }])),
                ("query-chardev", json!([{ "label": "qmp" }, { "label": "char-11" }])),
                ("query-cpus-fast", json!([])),
            ],
        }
    }

    fn but(mut self, asked: &'static str, answer: Value) -> Self {
        self.answers.retain(|(known, _)| *known != asked);
        self.answers.push((asked, answer));
        self
    }

    /// Surveys such a VM. Also what was asked that is no question.
    async fn survey(self) -> (PortResult<(Limits, Table)>, Vec<String>) {
        let (mut vm, mut peer) = Vm::scripted().await;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let answering = tokio::spawn(async move {
            loop {
                let command = peer.hear().await;
                let words = [&command["execute"], &command["arguments"]["path"], &command["arguments"]["property"]];
                let question = words.iter().filter_map(|word| word.as_str()).collect::<Vec<_>>().join(" ");
                let known = self.answers.iter().find(|(known, _)| *known == question);
                let known = known.map_or(json!({}), |(_, answer)| answer.clone());
                if !question.starts_with("qom-") && !question.starts_with("query-") {
                    heard.lock().unwrap().push(format!("{question} {}", command["arguments"]));
                }
                peer.say(&json!({ "return": known, "id": command["id"] }).to_string()).await;
            }
        });
        let found = survey(&mut vm, Instant::now() + Duration::from_secs(20)).await;
        answering.abort();
        vm.process.kill().await.unwrap();
        let asked = asked.lock().unwrap().clone();
        (found.map(|table| (vm.limits, table)), asked)
    }
}

#[tokio::test]
async fn the_tables_are_rebuilt_and_what_nobody_uses_goes() {
    let (found, changed) = Said::usual().survey().await;
    let (limits, (report, devices, count)) = found.unwrap();
    assert_eq!(limits, Limits { bridges: 2, memory_max_mib: 1024, shared_memory: true });
    assert_eq!(
        (report.condition, report.memory_mib, report.vm.accelerator.as_str()),
        (VmCondition::Running, 384, "kvm")
    );
    let [(id, plugged)] = devices.iter().collect::<Vec<_>>()[..] else { panic!("{devices:?}") };
    assert_eq!((id.as_str(), plugged.place), ("block-1", PciSlot { bridge: 1, slot: 11 }));
    assert_eq!(plugged.backends, [Backend::FdSet(7), Backend::Node("drive-7".into())]);
    assert_eq!(count, 11, "no name is used again");
    assert_eq!(changed, [r#"chardev-remove {"id":"char-11"}"#, r#"remove-fd {"fdset-id":9}"#]);
}

#[tokio::test]
async fn what_cannot_be_true_is_not_believed() {
    for (asked, answer) in [
        ("query-fdsets", json!([{ "fdset-id": u64::MAX, "fds": [] }])),
        ("query-chardev", json!([{ "label": format!("char-{}", u64::MAX) }])),
        ("qom-get /machine/peripheral/block-1 addr", json!(-1)),
        ("qom-get /machine/peripheral/block-1 addr", json!("0b.0")),
        ("query-cpus-fast", json!([{ "cpu-index": 0, "thread-id": 1 }])),
    ] {
        let (found, changed) = Said::usual().but(asked, answer.clone()).survey().await;
        assert_eq!(found.unwrap_err().kind, ErrorKind::Protocol, "{asked} {answer}");
        assert!(changed.is_empty() || asked == "query-cpus-fast", "{changed:?}");
    }
    // A lie of the guest's VMM about itself only harms itself.
    for (asked, answer) in [
        ("qom-list /machine/peripheral", json!({})),
        ("qom-get /machine/peripheral/block-1 parent_bus", json!(7)),
        ("qom-get /machine/peripheral/block-1 parent_bus", json!("/machine/pci-bridge-256")),
    ] {
        let (found, _) = Said::usual().but(asked, answer.clone()).survey().await;
        assert!(found.unwrap().1.1.is_empty(), "{asked} {answer}");
    }
}

#[test]
fn each_state_of_qemu_has_its_condition() {
    for (status, wanted) in [
        ("running", VmCondition::Running),
        ("prelaunch", VmCondition::NotYetRun),
        ("paused", VmCondition::Paused),
        ("io-error", VmCondition::Halted),
        ("guest-panicked", VmCondition::Halted),
        ("shutdown", VmCondition::Halted),
        ("something new", VmCondition::Halted),
    ] {
        assert_eq!(condition(&json!({ "status": status })), wanted, "{status}");
    }
    assert_eq!(condition(&Value::Null), VmCondition::Halted);
}
