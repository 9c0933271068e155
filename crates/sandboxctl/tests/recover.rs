//! `sandboxctl run` with a real VM is killed, or asked to end at an awkward time; `recover` and
//! `cleanup` bring the host to order. Needs root, QEMU and the guest's image.
#![expect(clippy::unwrap_used, reason = "a test panics when its premise does not hold")]
#![expect(clippy::disallowed_methods, reason = "a test of another process may wait")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

const ID: &str = "recover-test";
static TURN: Mutex<()> = Mutex::new(());
/// Whatever takes longer hangs.
const LIMIT: Duration = Duration::from_secs(90);

/// A bundle whose container waits, and where the tool keeps its state.
struct Home {
    dir: TempDir,
    settings: Vec<String>,
    /// Every sandbox of these tests has the same id, and so the same cgroups.
    _turn: MutexGuard<'static, ()>,
}

impl Home {
    /// `None` after a line that says what is missing.
    fn make() -> Option<Self> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let images = std::env::var_os("RESOURCE_ACTORS_GUEST").map_or_else(|| target.join("guest"), PathBuf::from);
        let (kernel, initrd) = (images.join("vmlinux"), images.join("initrd.cpio"));
        let (busybox, vsock) =
            (target.join("example/bundle/rootfs/bin/busybox"), target.join("tools/bin/vhost-device-vsock"));
        let needed = [&kernel, &initrd, &busybox, &vsock];
        let missing = needed.iter().find(|file| !file.is_file()).map(|file| file.display().to_string());
        let missing = missing.or_else(|| (!nix::unistd::geteuid().is_root()).then(|| "root".to_owned()));
        if let Some(missing) = missing {
            assert!(std::env::var_os("CI").is_none(), "a real VM cannot be tested here: {missing}");
            println!("skipped: {missing}");
            return None;
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = TempDir::new_in("/run").unwrap();
        fs::create_dir_all(dir.path().join("rootfs/bin")).unwrap();
        fs::create_dir(dir.path().join("rootfs/proc")).unwrap();
        fs::copy(&busybox, dir.path().join("rootfs/bin/busybox")).unwrap();
        let config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {
                "args": ["/bin/busybox", "sh", "-c", "echo up; exec /bin/busybox sleep 1000"],
                "cwd": "/", "user": {"uid": 0, "gid": 0},
            },
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "mount"}]},
        });
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let set = |key: &str, file: &Path| format!("hypervisor.{key}={}", file.display());
        let settings = vec![
            set("kernel", &kernel),
            set("initrd", &initrd),
            set("vsock_daemon", &vsock),
            "hypervisor.default_memory=256".to_owned(),
        ];
        Some(Self { dir, settings, _turn: turn })
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn tool(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir(self.dir.path()).args(args);
        command.arg("--state-dir").arg(self.state()).stdin(Stdio::null());
        command.args(self.settings.iter().flat_map(|setting| ["--set", setting]));
        command
    }

    fn start(&self) -> Child {
        let mut run = self.tool(&["run", ".", "--id", ID, "--vmm", "qemu", "--host", "real"]);
        run.stdout(fs::File::create(self.dir.path().join("out")).unwrap());
        run.stderr(fs::File::create(self.dir.path().join("err")).unwrap());
        run.spawn().unwrap()
    }

    fn said(&self, stream: &str) -> String {
        fs::read_to_string(self.dir.path().join(stream)).unwrap()
    }

    /// Waits until `test` holds.
    fn until(&self, test: impl Fn() -> bool) {
        let begun = Instant::now();
        while !test() {
            assert!(begun.elapsed() < LIMIT, "{}{}", self.said("out"), self.said("err"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a verb with `--json`.
    fn ask(&self, args: &[&str]) -> (i32, Value) {
        let output = self.tool(&[args, &["--json"]].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let document = serde_json::from_slice(&output.stdout);
        (output.status.code().unwrap(), document.unwrap_or_else(|error| panic!("{error}: {said}")))
    }

    /// Nothing of the sandbox is left: its directory, processes and mounts.
    fn assert_clean(&self) {
        assert!(!self.state().exists(), "{:?}", fs::read_dir(self.state()).map(Iterator::count));
        let dir = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(dir), "{mounts}");
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let words = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        let ours: Vec<_> = words.filter(|words| String::from_utf8_lossy(words).contains(dir)).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn what_a_killed_run_leaves_is_kept_while_it_runs_and_released_on_request() {
    let Some(home) = Home::make() else { return };
    let mut run = home.start();
    home.until(|| home.said("out").contains("up"));
    let (code, living) = home.ask(&["recover", "--all"]);
    assert_eq!((code, &living), (0, &json!({"v": 1, "sandboxes": []})), "a living process's sandbox stays");
    send(&run, Signal::SIGKILL);
    run.wait().unwrap();

    let (code, once) = home.ask(&["recover", "--all"]);
    let one = &once["sandboxes"][0];
    assert_eq!((code, &one["outcome"], &one["state"]), (0, &json!("adopted"), &json!("running")), "{once}");
    assert_eq!(home.ask(&["recover", ID]), (0, once), "twice is as good as once");

    let (code, released) = home.ask(&["recover", ID, "--release"]);
    let one = &released["sandboxes"][0];
    assert_eq!((code, &one["outcome"], &one["clean"]), (0, &json!("released"), &json!(true)), "{released}");
    home.assert_clean();
    let unknown = home.tool(&["recover", ID]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1), "{}", String::from_utf8_lossy(&unknown.stderr));
}

#[test]
fn a_signal_at_any_time_cleans_up_and_a_second_only_makes_it_faster() {
    let ledger = |home: &Home| fs::read_to_string(home.state().join(ID).join("ledger.jsonl")).unwrap_or_default();
    for (mark, signals) in [
        ("virtiofsd", vec![Signal::SIGTERM]),
        ("\"program\":\"vmm\"", vec![Signal::SIGINT]),
        ("rootfs", vec![Signal::SIGTERM, Signal::SIGTERM]),
        ("\"program\":\"vmm\"", vec![Signal::SIGINT, Signal::SIGINT]),
    ] {
        let Some(home) = Home::make() else { return };
        let mut run = home.start();
        home.until(|| ledger(&home).contains(mark));
        for signal in &signals {
            send(&run, *signal);
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = run.wait().unwrap();
        assert_eq!(status.code(), Some(128 + signals[0] as i32), "{mark}: {}", home.said("err"));
        home.assert_clean();
    }
}
