//! A virtual machine for a test: QEMU, its vsock and file system daemons, and a client.
//!
//! What is started here is ended by its process id when the value goes, on success and failure.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent_protocol::agent_ttrpc::AgentServiceClient;
use agent_protocol::health_ttrpc::HealthClient;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::sleep;
use ttrpc::asynchronous::{Client, transport::Socket};
use ttrpc::context::{Context, with_duration};

const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet cryptomgr.notests tsc=reliable \
    no_timer_check nokaslr mitigations=off panic=-1 agent.hotplug_timeout=10";
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const VIRTIOFSD: [&str; 3] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd"];

/// A running guest.
pub(crate) struct Vm {
    // Before the directory, so that nothing runs when that goes.
    processes: Vec<Running>,
    /// Holds sockets, logs and the shared directory.
    directory: TempDir,
    /// Time from the start of QEMU to the first answer of the agent.
    pub(crate) boot: Duration,
    client: Client,
}

struct Running(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("console:\n{}", console(self.directory.path()));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a machine lacks for these tests, if anything.
///
/// A developer's machine may lack it: the test is skipped, audibly. A CI machine may not.
pub(crate) fn lacks_something() -> bool {
    let missing = [
        (!nix::unistd::geteuid().is_root()).then_some("root"),
        find("qemu-system-x86_64").is_none().then_some("qemu-system-x86_64"),
        find("vhost-device-vsock").is_none().then_some("vhost-device-vsock"),
        virtiofsd().is_none().then_some("virtiofsd"),
        (!built("guest/initrd.cpio").exists()).then_some("the image of `cargo xtask guest-image`"),
        (!built("example/bundle/rootfs").exists()).then_some("the bundle of `cargo xtask example-bundle`"),
    ];
    let missing: Vec<&str> = missing.into_iter().flatten().collect();
    if missing.is_empty() {
        return false;
    }
    let text = format!("this test needs {}", missing.join(", "));
    assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "{text}");
    eprintln!("skipped: {text}");
    true
}

impl Vm {
    /// Boots a guest and waits until its agent answers.
    pub(crate) async fn boot() -> Self {
        let directory = tempfile::Builder::new().prefix("guest-").tempdir().unwrap();
        std::fs::create_dir(directory.path().join("share")).unwrap();
        let mut processes = vec![start_vsock(directory.path()), start_virtiofsd(directory.path())];
        for socket in ["vsock-device.sock", "fs.sock"] {
            until("a daemon's socket", || directory.path().join(socket).exists()).await;
        }
        let started = Instant::now();
        let mut qemu = start_qemu(directory.path());
        let stream = connect(directory.path(), &mut qemu).await;
        processes.push(qemu);
        let client = Client::new(Socket::new(stream));
        let request = agent_protocol::health::CheckRequest::new();
        HealthClient::new(client.clone()).check(context(), &request).await.unwrap();
        Self { processes, directory, boot: started.elapsed(), client }
    }

    /// A client of the agent.
    pub(crate) fn agent(&self) -> AgentServiceClient {
        AgentServiceClient::new(self.client.clone())
    }

    /// A client of the agent's health service.
    pub(crate) fn health(&self) -> HealthClient {
        HealthClient::new(self.client.clone())
    }

    /// The directory that the guest sees.
    pub(crate) fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// Puts a root file system for a container into the shared directory.
    pub(crate) fn add_rootfs(&self, container: &str) {
        let target = self.share().join(container);
        if target.join("bin").exists() {
            return;
        }
        let mut copy = Command::new("cp");
        copy.arg("-aT").arg(built("example/bundle/rootfs")).arg(target);
        assert!(copy.status().unwrap().success());
    }

    /// A path for a file that the guest does not see.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs commands on QEMU's monitor; each must succeed.
    pub(crate) async fn monitor(&self, commands: &[serde_json::Value]) {
        let stream = UnixStream::connect(self.file("qmp.sock")).await.unwrap();
        let mut stream = BufReader::new(stream);
        let hello = serde_json::json!({ "execute": "qmp_capabilities" });
        for command in std::iter::once(&hello).chain(commands) {
            stream.write_all(format!("{command}\n").as_bytes()).await.unwrap();
            loop {
                let mut line = String::new();
                assert!(stream.read_line(&mut line).await.unwrap() > 0, "the monitor hung up");
                let reply: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert!(reply.get("error").is_none(), "{command}: {reply}");
                if reply.get("return").is_some() {
                    break;
                }
            }
        }
    }

    /// Waits for QEMU to end by itself.
    pub(crate) async fn ended(&mut self) {
        let qemu = self.processes.last_mut().unwrap();
        until("the end of QEMU", || qemu.0.try_wait().unwrap().is_some()).await;
    }
}

/// A deadline for one call.
pub(crate) fn context() -> Context {
    with_duration(Duration::from_secs(60))
}

fn start_vsock(directory: &Path) -> Running {
    let mut command = Command::new("vhost-device-vsock");
    command.args(["--guest-cid", "3", "--socket"]).arg(directory.join("vsock-device.sock"));
    command.arg("--uds-path").arg(directory.join("vsock.sock"));
    start(command, directory, "vsock.log")
}

fn start_virtiofsd(directory: &Path) -> Running {
    let mut command = Command::new(virtiofsd().unwrap());
    command.arg(format!("--socket-path={}", directory.join("fs.sock").display()));
    command.args(["-o", &format!("source={}", directory.join("share").display())]);
    command.args(["-o", "sandbox=chroot", "-o", "cache=auto", "-f"]);
    start(command, directory, "virtiofsd.log")
}

fn start_qemu(directory: &Path) -> Running {
    let at = |name: &str| directory.join(name).display().to_string();
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,accel=tcg,memory-backend=memory", "-cpu", "max"]);
    command.args(["-smp", "1,maxcpus=4,sockets=4,cores=1,threads=1"]);
    command.args(["-m", "256M,slots=4,maxmem=2G"]);
    command.args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"]);
    command.args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.arg("-kernel").arg(built("guest/vmlinux"));
    command.arg("-initrd").arg(built("guest/initrd.cpio"));
    command.args(["-append", KERNEL_PARAMETERS]);
    command.args(["-serial", &format!("file:{}", at("console.log"))]);
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp.sock"))]);
    // Without the reserves a disk that is plugged later finds no room for its registers; it
    // comes first because it asks for a slot by number.
    command.args([
        "-device",
        "pci-bridge,bus=pcie.0,id=pci-bridge-0,chassis_nr=1,shpc=off,addr=2,\
         io-reserve=4k,mem-reserve=1m,pref64-reserve=1m",
    ]);
    command.args(["-chardev", &format!("socket,id=vsock,path={}", at("vsock-device.sock"))]);
    command.args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
    command.args(["-chardev", &format!("socket,id=fs,path={}", at("fs.sock"))]);
    command.args(["-device", "vhost-user-fs-pci,chardev=fs,tag=kataShared,queue-size=1024"]);
    start(command, directory, "qemu.log")
}

fn start(mut command: Command, directory: &Path, log: &str) -> Running {
    let log = File::create(directory.join(log)).unwrap();
    let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
    Running(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// Connects to the agent; until it listens the daemon ends the connection without a word.
async fn connect(directory: &Path, qemu: &mut Running) -> UnixStream {
    let deadline = Instant::now() + BOOT_TIMEOUT;
    let socket = directory.join("vsock.sock");
    while Instant::now() < deadline && qemu.0.try_wait().unwrap().is_none() {
        if let Ok(mut stream) = UnixStream::connect(&socket).await
            && stream.write_all(b"CONNECT 1024\n").await.is_ok()
            && read_line(&mut stream).await.starts_with("OK")
        {
            return stream;
        }
        sleep(Duration::from_millis(50)).await;
    }
    let log = std::fs::read_to_string(directory.join("qemu.log")).unwrap_or_default();
    panic!("the agent did not answer; console:\n{}\nQEMU:\n{log}", console(directory));
}

/// Byte by byte: what follows the line belongs to another protocol.
async fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        if byte == b'\n' {
            break;
        }
        line.push(byte);
    }
    String::from_utf8_lossy(&line).into_owned()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn console(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("console.log")).unwrap_or_default()
}

fn built(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target").join(name)
}

fn virtiofsd() -> Option<PathBuf> {
    VIRTIOFSD.iter().map(PathBuf::from).find(|path| path.exists())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(OsStr::new(program)))
        .find(|candidate| candidate.exists())
}
