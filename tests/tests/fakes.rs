//! The stand-ins against the truth: QEMU is given the same command line and the same commands, and
//! what it says must have the same shape.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// How long either may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A VMM that was started with our command line, and its control channel.
struct Subject {
    process: Child,
    reader: BufReader<UnixStream>,
    next_id: u64,
    events: Vec<Value>,
}

impl Subject {
    fn start(program: &Path, dir: &Path) -> Self {
        let socket = dir.join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let qmp = rustix::io::fcntl_dupfd_cloexec(listener.as_fd(), 200).unwrap();
        drop(listener);
        let script = format!(
            "exec {} -name shape,debug-threads=on -machine q35,accel=tcg,memory-backend=mem0 -cpu max \
             -smp 1,maxcpus=3,sockets=3,cores=1,threads=1 -m 128M,slots=4,maxmem=1024M \
             -object memory-backend-memfd,id=mem0,size=128M,share=on -nodefaults -no-user-config -S -display none \
             -chardev socket,id=qmp,fd=3,server=on,wait=off -mon chardev=qmp,mode=control \
             -device pci-bridge,id=pci-bridge-0,bus=pcie.0,chassis_nr=1,addr=2,shpc=off,io-reserve=4k,mem-reserve=1m,pref64-reserve=1m \
             3<&0",
            program.display()
        );
        // The shell's redirection puts the listening socket where the command line says.
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::from(qmp)).stdout(Stdio::null()).stderr(Stdio::inherit());
        let process = command.spawn().unwrap();
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut subject = Self { process, reader: BufReader::new(stream), next_id: 0, events: Vec::new() };
        let greeting = subject.hear();
        assert!(greeting["QMP"]["version"]["qemu"]["major"].is_u64(), "{greeting}");
        subject.ask("qmp_capabilities", json!({}), None);
        subject
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Asks with a descriptor or without: the reply without its id.
    fn ask(&mut self, name: &str, arguments: Value, fd: Option<&OwnedFd>) -> Value {
        self.next_id += 1;
        let mut message = json!({ "execute": name, "id": self.next_id });
        if arguments != json!({}) {
            message["arguments"] = arguments;
        }
        let line = format!("{message}\n");
        if let Some(fd) = fd {
            let passed = [fd.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&passed));
            let bytes = [IoSlice::new(line.as_bytes())];
            let sent = sendmsg(self.reader.get_ref(), &bytes, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
            assert_eq!(sent, line.len());
        } else {
            self.reader.get_mut().write_all(line.as_bytes()).unwrap();
        }
        loop {
            let mut heard = self.hear();
            if heard.get("event").is_some() {
                self.events.push(heard);
                continue;
            }
            assert_eq!(heard["id"], self.next_id, "{heard}");
            heard.as_object_mut().unwrap().remove("id");
            return heard;
        }
    }

    /// Ends it: its exit code.
    fn quit(mut self) -> Option<i32> {
        self.ask("quit", json!({}), None);
        self.process.wait().unwrap().code()
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The shape of a reply: kinds of values, keys of objects, an error's class.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| {
                let is_class = key == "class";
                (key.clone(), if is_class { value.clone() } else { shape(value) })
            })
            .collect(),
        // Of a list, what its elements may be: not how many.
        Value::Array(items) => {
            let mut shapes: Vec<Value> = items.iter().map(shape).collect();
            shapes.sort_by_key(Value::to_string);
            shapes.dedup();
            shapes.into()
        }
        Value::String(_) => "text".into(),
        Value::Number(_) => "number".into(),
        Value::Bool(_) => "bool".into(),
        Value::Null => "null".into(),
    }
}

/// The shape of `stand_in` must be found in that of `truth`: a stand-in may say less, nothing else.
fn is_within(stand_in: &Value, truth: &Value) -> bool {
    match (stand_in, truth) {
        (Value::Object(small), Value::Object(large)) => {
            small.iter().all(|(key, value)| large.get(key).is_some_and(|found| is_within(value, found)))
        }
        (Value::Array(small), Value::Array(large)) => {
            small.iter().all(|item| large.iter().any(|found| is_within(item, found)))
        }
        (small, large) => small == large,
    }
}

/// A step of the conversation: what it is called, the command, and whether a file goes with it.
type Step = (&'static str, Value, bool);

/// Everything that the hypervisor's driver says, and what it may be answered.
fn conversation() -> Vec<Step> {
    let file = json!({ "driver": "file", "filename": "/dev/fdset/7", "read-only": true });
    let node = json!({ "driver": "raw", "node-name": "drive-7", "read-only": true, "file": file });
    let disk =
        json!({ "driver": "virtio-blk-pci", "id": "disk", "drive": "drive-7", "bus": "pci-bridge-0", "addr": "1" });
    let memory = json!({ "qom-type": "memory-backend-memfd", "id": "mem-dimm-0", "size": 128 << 20, "share": true });
    let vcpu = json!({
        "driver": "max-x86_64-cpu", "id": "cpu-1", "socket-id": 1, "core-id": 0, "thread-id": 0,
    });
    vec![
        ("query-status", json!({}), false),
        ("query-version", json!({}), false),
        ("query-name", json!({}), false),
        ("query-cpus-fast", json!({}), false),
        ("query-hotpluggable-cpus", json!({}), false),
        ("query-memory-size-summary", json!({}), false),
        ("qom-list", json!({ "path": "/machine/peripheral" }), false),
        ("no-such-command", json!({}), false),
        ("getfd", json!({ "fdname": "name" }), true),
        ("closefd", json!({ "fdname": "name" }), false),
        ("closefd", json!({ "fdname": "name" }), false),
        ("getfd", json!({ "fdname": "nothing" }), false),
        ("add-fd", json!({ "fdset-id": 7 }), true),
        ("blockdev-add", node.clone(), false),
        ("blockdev-add", node, false),
        ("device_add", disk.clone(), false),
        ("device_add", disk, false),
        ("device_add", json!({ "driver": "virtio-blk-pci", "id": "other", "drive": "none" }), false),
        ("qom-list", json!({ "path": "/machine/peripheral" }), false),
        ("qom-list", json!({ "path": "/objects" }), false),
        ("query-kvm", json!({}), false),
        ("query-fdsets", json!({}), false),
        ("query-named-block-nodes", json!({ "flat": true }), false),
        ("query-chardev", json!({}), false),
        ("qom-get", json!({ "path": "/machine", "property": "memory" }), false),
        ("qom-get", json!({ "path": "/machine/peripheral/disk", "property": "parent_bus" }), false),
        ("qom-get", json!({ "path": "/machine/peripheral/disk", "property": "addr" }), false),
        ("qom-get", json!({ "path": "/machine/peripheral/disk", "property": "drive" }), false),
        ("qom-get", json!({ "path": "/machine/peripheral/disk", "property": "no-such" }), false),
        ("qom-get", json!({ "path": "/machine/peripheral/nobody", "property": "addr" }), false),
        ("blockdev-del", json!({ "node-name": "drive-7" }), false),
        ("blockdev-del", json!({ "node-name": "drive-8" }), false),
        ("netdev_del", json!({ "id": "net-9" }), false),
        ("chardev-remove", json!({ "id": "char-9" }), false),
        ("object-del", json!({ "id": "mem-9" }), false),
        ("device_del", json!({ "id": "nobody" }), false),
        ("remove-fd", json!({ "fdset-id": 8 }), false),
        ("object-add", memory, false),
        ("device_add", json!({ "driver": "pc-dimm", "id": "dimm-0", "memdev": "mem-dimm-0" }), false),
        ("query-memory-size-summary", json!({}), false),
        ("device_add", vcpu, false),
        ("query-cpus-fast", json!({}), false),
        ("query-hotpluggable-cpus", json!({}), false),
        ("device_del", json!({ "id": "disk" }), false),
        ("qom-list", json!({ "path": "/machine/peripheral" }), false),
    ]
}

fn converse(program: &Path, dir: &Path) -> Vec<Value> {
    let file: OwnedFd = std::fs::File::open(disk(dir)).unwrap().into();
    let mut subject = Subject::start(program, dir);
    let mut replies = Vec::new();
    for (name, arguments, with_file) in conversation() {
        replies.push(subject.ask(name, arguments, with_file.then_some(&file)));
    }
    assert_eq!(subject.quit(), Some(0), "{}", program.display());
    replies
}

fn disk(dir: &Path) -> PathBuf {
    let path = dir.join("disk.img");
    std::fs::write(&path, vec![0; 64 * 1024]).unwrap();
    path
}

#[test]
fn the_stand_in_speaks_as_qemu_does() {
    if !Path::new(QEMU).exists() {
        assert!(std::env::var_os("CI").is_none(), "no {QEMU}");
        println!("skipped: no {QEMU}");
        return;
    }
    let (truth, stand_in) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let truth = converse(Path::new(QEMU), truth.path());
    let said = converse(Path::new(env!("CARGO_BIN_EXE_fake-vmm")), stand_in.path());
    let mut wrong = Vec::new();
    for (((name, arguments, _), truth), said) in conversation().iter().zip(&truth).zip(&said) {
        if !is_within(&shape(said), &shape(truth)) {
            wrong.push(format!("{name} {arguments}:\n  QEMU:     {truth}\n  stand-in: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(truth.len(), conversation().len());
}

#[test]
fn a_stand_in_ends_when_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let subject = Subject::start(Path::new(env!("CARGO_BIN_EXE_fake-vmm")), dir.path());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(subject.process.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let mut subject = subject;
    assert_eq!(subject.process.wait().unwrap().code(), Some(0));
}
