//! Where the corpora come from: lives on the simulated host, and documents as users write them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use resource_actors::ResourceSystem;
use resource_actors::ledger::DirectoryStore;
use resource_actors::trace::TraceFile;
use sandbox_model::trace::{Header, TRACE_VERSION};
use simulation::{SimulatedFacts, World, simulated_ports};

use super::ledger::PLACE;
use crate::simulated::{add_container, boot, create, in_virtual_time};
use crate::tamper::unsealed;

/// A container's specification with all that a plan looks at.
const SPEC: &str = r#"{"ociVersion":"1.2.0","root":{"path":"rootfs","readonly":true},
"process":{"args":["sh"],"cwd":"/","user":{"uid":0,"gid":0}},
"mounts":[{"destination":"/proc","type":"proc","source":"proc"},
{"destination":"/data","type":"bind","source":"/srv/data","options":["rbind","ro"]},
{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["size=65536k"]},
{"destination":"/cache","type":"ephemeral","source":"/var/lib/x/cache"}],
"annotations":{"io.kubernetes.cri.sandbox-memory":"1048576"},
"linux":{"resources":{"cpu":{"shares":512,"quota":150000,"period":100000,"cpus":"0-3,7","mems":"0"},
"memory":{"limit":314572800,"swap":-1},"pids":{"limit":100}},
"devices":[{"path":"/dev/sdb","type":"b","major":8,"minor":16},{"path":"/dev/vfio/12","type":"c","major":241,"minor":0}],
"namespaces":[{"type":"pid"},{"type":"network","path":"/run/netns/pod"}]}}"#;

/// A configuration and annotations.
const CONFIGURATION: &str = "[hypervisor.qemu]
path = \"/usr/bin/qemu-system-x86_64\"
kernel = \"/opt/vmlinux\"
initrd = \"/opt/initrd\"
kernel_params = \"quiet\"
machine_type = \"q35\"
default_vcpus = 1.5
default_maxvcpus = 4
default_memory = 2048
enable_annotations = [\"default_memory\", \"kernel_params\", \"machine_type\", \"kernel_modules\"]
vfio_devices = [\"0000:3b:00.1\"]

[agent.kata]
kernel_modules = [\"e1000 a=1\"]

[runtime]
internetworking_model = \"tcfilter\"
sandbox_bind_mounts = [\"/srv/a:ro\"]

[runtime.deadlines]
step_ms = 1000
---
hypervisor.default_memory=512
hypervisor.kernel_params=quiet loglevel=3
hypervisor.machine_type=q35,kernel=/etc/shadow
runtime.sandbox_bind_mounts=/etc
agent.kernel_modules=i915;e1000
";

/// What QEMU 7.2 says: its greeting, answers, an error, events.
const CONTROL: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, \"capabilities\": [\"oob\"]}}\r
{\"return\": {}, \"id\": 1}\r
{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"RESUME\"}\r
{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": 2}\r
{\"timestamp\": {\"seconds\": 1, \"microseconds\": 3}, \"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"blk-0\", \"path\": \"/machine/peripheral/blk-0\"}}\r
{\"id\": 3, \"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"Device 'x' not found\"}}\r
{\"return\": [], \"id\": 4}\r
";

/// The ledger and saved state of a sandbox, and the trace of its life.
fn life() -> (String, String, Vec<u8>) {
    let state = tempfile::tempdir().expect("a directory");
    let path = state.path().join("trace.jsonl");
    let header: Header = serde_json::from_value(serde_json::json!({
        "version": TRACE_VERSION, "build": "seed", "vmm": "simulated", "host": "private", "config_digest": "", "seed": 1,
    }))
    .expect("a header");
    let file = TraceFile::create(&path, header).expect("a trace");
    let sink = file.sink();
    let world = Arc::new(World::new());
    let (ledger, saved) = in_virtual_time(|| async {
        let system = ResourceSystem::builder(simulated_ports(&world))
            .store(Arc::new(DirectoryStore::new(state.path().join("state"))))
            .facts(Arc::new(SimulatedFacts::default()))
            .trace(sink)
            .here();
        let sandbox = create(&system, "victim").await.expect("a sandbox");
        boot(&sandbox).await.expect("it boots");
        add_container(&sandbox, "web").await.expect("a container");
        sandbox.save().await.expect("it is saved");
        let read = |name: &str| fs::read_to_string(state.path().join("state/victim").join(name)).expect("a file");
        let kept = (read("ledger.jsonl"), read("saved.json"));
        sandbox.cleanup().await.expect("it is released");
        kept
    });
    file.finish().expect("a whole trace");
    let place = state.path().join("state");
    let place = place.to_str().expect("text");
    let trace = fs::read_to_string(&path).expect("a trace").replace(place, "/run/seeds").into_bytes();
    (unsealed(&ledger).join("\n").replace(place, PLACE), saved.replace(place, PLACE), trace)
}

/// Writes a corpus for each target below `corpora`.
///
/// # Panics
/// When it cannot be written.
pub fn write(corpora: &Path) {
    let (ledger, saved, trace) = life();
    let ok = |payload: &[u8]| [&[0x0a, 0x00, 0x12, u8::try_from(payload.len()).unwrap_or(0)][..], payload].concat();
    let replies: [(&str, u8, Vec<u8>); 5] = [
        ("read", 0, ok(&[0x0a, 3, b'a', b'b', b'c'])),
        ("wait", 1, ok(&[0x08, 0])),
        ("written", 2, ok(&[0x08, 5])),
        ("oom", 4, ok(&[0x0a, 3, b'w', b'e', b'b'])),
        ("error", 6, [&[0x0a, 9, 0x08, 5, 0x12, 5][..], b"there", &[0x12, 0]].concat()),
    ];
    let mut files = vec![
        ("z1_spec", "container", SPEC.as_bytes().to_vec()),
        ("z2_configuration", "file-and-annotations", CONFIGURATION.as_bytes().to_vec()),
        ("z3_ledger", "ledger", [b"S", ledger.as_bytes()].concat()),
        ("z3_ledger", "saved", [b"V", saved.as_bytes()].concat()),
        ("z4_control_channel", "qemu", [b"\x40", CONTROL.as_bytes()].concat()),
        ("z6_trace", "life", trace),
        ("z9_life_with_faults", "one", vec![2, 0, 40, 0, 1]),
        ("z9_life_with_faults", "two", vec![11, 0, 90, 0, 2, 1, 10, 3, 5]),
    ];
    files
        .extend(replies.map(|(name, method, answer)| ("z5_agent_replies", name, [&[method, 0][..], &answer].concat())));
    for (target, name, bytes) in files {
        let directory = corpora.join(target);
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join(name), bytes).expect("a file");
    }
}
