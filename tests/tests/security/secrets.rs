//! A secret is used and never seen (rule R21, test S10): canaries are put wherever a caller may put
//! a secret, and searched for in whatever we write.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use guest_agent::{CopyFile, CreateContainer, CreateSandbox, ExecProcess, GuestAgentProxy, ProcessRef, WriteInput};
use lifecycle_tests::simulated::{add_container, bind, boot, container, create, in_virtual_time};
use oci_spec::runtime::{Process, ProcessBuilder, SpecBuilder};
use resource_actors::ResourceSystem;
use resource_actors::ledger::DirectoryStore;
use resource_actors::trace::{ChannelSink, replay};
use sandbox_model::config::SandboxConfig;
use sandbox_model::config::annotations::{PREFIX, apply_annotations};
use sandbox_model::config::layers::{Layer, load};
use sandbox_model::port::{Interceptor, PortCall};
use sandbox_model::request::{RootfsRequest, RootfsSource, VolumesRequest};
use sandbox_model::storage::{GuestMount, Storage};
use sandbox_model::trace::Event;
use sandbox_model::{Instant, PortResult, Secret};
use serde_json::Value;
use simulation::{SimulatedFacts, World, simulated_ports};
use tracing_subscriber::filter::LevelFilter;

/// No word of ours, and none of its parts is.
const CANARY: &str = "xq7canary0w";

/// What was written, in whatever way.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    fn note(&self, text: impl std::fmt::Display) {
        writeln!(self.0.lock().unwrap(), "{text}").unwrap();
    }
}

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a recorder of an embedder's own would keep.
#[derive(Debug)]
struct Notes(Heard);

impl Interceptor for Notes {
    fn around<'a>(
        &'a self,
        call: PortCall,
        inner: BoxFuture<'a, PortResult<Value>>,
    ) -> BoxFuture<'a, PortResult<Value>> {
        self.0.note(format!("{call:?} {}", call.request));
        inner
    }
}

fn secret_process() -> Process {
    let env = vec![format!("PASSWORD={CANARY}")];
    let args = vec!["login".to_owned(), format!("--token={CANARY}")];
    ProcessBuilder::default().env(env).args(args).build().unwrap()
}

fn assert_silent(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what}: nothing was written, so nothing was tested");
    let line = text.lines().find(|line| line.contains(CANARY));
    assert_eq!(line, None, "{what} shows a secret");
}

#[test]
fn no_artefact_of_a_life_holds_a_secret() {
    let (log, home) = (Heard::default(), tempfile::tempdir().unwrap());
    let state = home.path().join("state");
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    tracing::trace!("the log is heard");
    let (sink, heard) = ChannelSink::new();
    let (errors, ports, dump) = (Heard::default(), Heard::default(), Heard::default());
    in_virtual_time(|| async {
        let world = Arc::new(World::new());
        let system = ResourceSystem::builder(simulated_ports(&world))
            .store(Arc::new(DirectoryStore::new(&state)))
            .facts(Arc::new(SimulatedFacts::default()))
            .trace(sink.clone())
            .here();
        let sandbox = create(&system, "secretive").await.unwrap();
        boot(&sandbox).await.unwrap();
        add_container(&sandbox, "one").await.unwrap();
        let password = format!("password={CANARY}");
        let volume = |destination: &str| bind("/srv/a", destination, &["rbind", &password, CANARY]);
        let request = |mounts| VolumesRequest { container: container("one"), mounts };
        let volumes = sandbox.set_up_volumes(request(vec![volume("/a")])).await.unwrap();
        assert!(volumes.mounts[0].options.contains(&password), "what is used is the secret itself");
        errors.note(sandbox.set_up_volumes(request(vec![volume("relative")])).await.unwrap_err());
        let options = vec![password.clone()];
        let source = RootfsSource::Block { path: "/disk".into(), fstype: "cifs".to_owned(), options };
        let rootfs = RootfsRequest { container: container("two"), source, read_only: false };
        dump.note(format!("{rootfs:?} {volumes:?}"));
        sandbox.set_up_rootfs(rootfs).await.unwrap();
        let agent = GuestAgentProxy::wrap(sandbox.agent(), Arc::new(Notes(ports.clone())));
        let deadline = Instant::now() + std::time::Duration::from_secs(9);
        let dns = Secret::new(vec![format!("nameserver {CANARY}")]);
        agent.create_sandbox(CreateSandbox { dns, ..CreateSandbox::default() }, deadline).await.unwrap();
        let spec = Secret::new(Box::new(SpecBuilder::default().process(secret_process()).build().unwrap()));
        let (devices, storages) =
            (Vec::new(), vec![Storage { driver_options: vec![password.clone()], ..Storage::default() }]);
        let web = CreateContainer { container: container("web"), devices, storages, spec, sandbox_pidns: false };
        dump.note(format!("{web:?} {web:#?}"));
        agent.create_container(web, deadline).await.unwrap();
        agent.start_container(container("web"), deadline).await.unwrap();
        let process = ProcessRef { container: container("web"), exec: "sh".to_owned() };
        let exec = ExecProcess { process: process.clone(), spec: Secret::new(Box::new(secret_process())) };
        dump.note(format!("{exec:?}"));
        agent.exec_process(exec, deadline).await.unwrap();
        let stdin = WriteInput { process, data: Secret::new(CANARY.as_bytes().to_vec()) };
        dump.note(format!("{stdin:?}"));
        agent.write_stdin(stdin, deadline).await.unwrap();
        let data = Secret::new(CANARY.as_bytes().to_vec());
        let (path, size) = ("/run/secret".to_owned(), CANARY.len() as i64);
        let file = CopyFile { path, file_mode: 0o600, dir_mode: 0o700, uid: 0, gid: 0, size, offset: 0, data };
        dump.note(format!("{file:?}"));
        agent.copy_file(file, deadline).await.unwrap();
        dump.note(sandbox.dump());
        dump.note(format!("{:?}", sandbox.status()));
        sandbox.save().await.unwrap();
        for name in ["ledger.jsonl", "saved.json"] {
            let text = std::fs::read_to_string(state.join("secretive").join(name)).unwrap();
            assert_silent(name, &text);
        }
        let report = sandbox.cleanup().await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        dump.note(serde_json::to_string(&report).unwrap());
    });
    let mut events: Vec<Event> = heard.try_iter().collect();
    events.sort_by_key(|event| event.place().map_or(0, |place| place.seq));
    let trace: Vec<String> = events.iter().map(|event| serde_json::to_string(event).unwrap()).collect();
    for (what, text) in [
        ("the log", log.text()),
        ("an error", errors.text()),
        ("a recorder of the agent's port", ports.text()),
        ("a printed message", dump.text()),
        ("the trace", trace.join("\n")),
    ] {
        assert_silent(what, &text);
    }
    assert!(trace.join("\n").contains("password=sha256:"), "the trace tells that there was one");
    let report = replay(&events).unwrap();
    assert!(report.divergence.is_none(), "digests replay as they are: {}", report.divergence.unwrap());
}

#[test]
fn a_panic_over_a_message_does_not_print_what_it_carries() {
    let exec = ExecProcess {
        process: ProcessRef { container: container("web"), exec: String::new() },
        spec: Secret::new(Box::new(secret_process())),
    };
    let mounts = vec![GuestMount { options: vec![format!("key={CANARY}")], ..GuestMount::default() }];
    let caught = std::panic::catch_unwind(move || {
        std::panic::set_hook(Box::new(|_| {}));
        panic!("{exec:?} {mounts:?}");
    });
    let _ = std::panic::take_hook();
    let text = caught.unwrap_err().downcast::<String>().unwrap();
    assert_silent("a panic", &text);
}

#[test]
fn a_refused_configuration_or_annotation_does_not_repeat_what_it_carries() {
    for name in ["hypervisor.cc_init_data", "hypervisor.initdata", "agent.policy", "runtime.jaeger_password"] {
        let annotations = BTreeMap::from([(format!("{PREFIX}{name}"), CANARY.to_owned())]);
        let mut config = SandboxConfig::default();
        let error = apply_annotations(&mut config, &annotations, &[]).unwrap_err();
        assert_silent(name, &format!("{error} {error:?}"));
    }
    let text = format!(
        "[agent.kata]\npolicy = \"{CANARY}\"\n[hypervisor.qemu]\ninitdata = \"{CANARY}\"\n[runtime]\njaeger_password = \"{CANARY}\"\n"
    );
    let refused = load(&[Layer::file("file", &text).unwrap()]).unwrap_err();
    assert_silent("a refused policy", &format!("{refused} {refused:?}"));
    let ignored = load(&[Layer::file("file", &text.replace("policy", "log_port")).unwrap()]).unwrap();
    assert_silent("what is ignored", &ignored.notes.to_string());
}
