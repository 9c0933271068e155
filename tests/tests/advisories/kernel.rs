//! Processes, descriptors and the kernel's own file systems.

use std::fs;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use cgroup_actor::Cpuset;
use cgroup_actor::LinuxCgroupHost;
use cgroup_actor::host::{CgroupHost, CgroupMode, Group, SetCpuset};
use helper_process::{HelperProcess, HelperSpec, end_process, identify};
use lifecycle_tests::ground::soon;
use sandbox_model::ErrorKind;
use sandbox_model::ledger::ProcessIdentity;

fn on_threads<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn sleeper() -> HelperSpec {
    HelperSpec { program: "sleep".into(), args: vec!["60".into()], tag: "advisory/1".into(), passed: Vec::new() }
}

/// A helper that has come to rest: while it is loaded, its loader has libraries open.
async fn at_rest() -> (HelperProcess, i32) {
    let spec = HelperSpec { program: "sh".into(), args: vec!["-c".into(), "kill -STOP $$".into()], ..sleeper() };
    let child = HelperProcess::spawn(spec).await.unwrap();
    let pid = child.identity().pid;
    while !fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (child, pid)
}

/// What a process has open, as its links say.
fn open_files(pid: i32) -> Vec<String> {
    let listed = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    listed.map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string()).collect()
}

/// A descriptor of `/sys/fs/cgroup` leaked into the container, whose working directory was behind it.
#[test]
fn cve_2024_21626_a_child_inherits_nothing_by_accident() {
    on_threads(async {
        let leaky = fs::File::open("/sys").unwrap();
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(&leaky, flags).unwrap();
        let (child, pid) = at_rest().await;
        let files = open_files(pid);
        assert_eq!(files.len(), 3, "stdin, stdout and stderr: {files:?}");
        assert_eq!(files.iter().filter(|file| *file == "/dev/null").count(), 2, "{files:?}");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
        child.kill().await.unwrap();
        assert!(leaky.as_raw_fd() > 2);
    });
}

/// A container wrote to the runtime's own program through `/proc/self/exe`.
#[test]
fn cve_2019_5736_no_child_holds_our_program() {
    on_threads(async {
        let own = fs::read_link("/proc/self/exe").unwrap().display().to_string();
        let (child, pid) = at_rest().await;
        assert!(!open_files(pid).contains(&own));
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        assert!(!maps.contains(&own), "nothing of ours is mapped after the exec");
        child.kill().await.unwrap();
    });
}

/// A pid was resolved again after its process had gone, and named another one.
#[test]
fn kata_13587_a_pid_alone_names_no_process() {
    on_threads(async {
        let mut stranger = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(stranger.id()).unwrap();
        let found = identify(pid).unwrap();
        let earlier = ProcessIdentity { pid, start_ticks: found.start_ticks - 1 };
        let gone = end_process(Some(earlier), "pod/1", Duration::ZERO, soon()).await.unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NotFound, "{gone}");
        let foreign = end_process(Some(found), "pod/1", Duration::ZERO, soon()).await.unwrap_err();
        assert_eq!(foreign.kind, ErrorKind::Foreign, "{foreign}");
        assert!(stranger.try_wait().unwrap().is_none(), "it still runs");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    });
}

/// A file of `/proc` or `/sys` had another one mounted over it, and a limit was written there.
#[test]
fn cve_2025_52881_kata_13615_what_is_written_to_is_the_kernels_own() {
    on_threads(async {
        let fake = tempfile::tempdir().unwrap();
        let directory = fake.path().join("pod");
        fs::create_dir(&directory).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems", "cgroup.procs"] {
            fs::write(directory.join(file), "untouched").unwrap();
        }
        let group = Group {
            path: "pod".to_owned(),
            directories: vec![directory.clone()],
            mode: CgroupMode::V2,
            ..Group::default()
        };
        let set = SetCpuset { group, cpuset: Cpuset::default() };
        let host = LinuxCgroupHost::unified_at(fake.path());
        let refused = host.set_cpuset(set, soon()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Foreign, "{refused}");
        for file in ["cpuset.cpus", "cpuset.mems", "cgroup.procs"] {
            assert_eq!(fs::read_to_string(directory.join(file)).unwrap(), "untouched");
        }
    });
}

/// A child's endless output filled the manager's memory.
#[test]
fn cve_2022_23471_cve_2025_64329_what_a_child_says_is_kept_in_part_only() {
    on_threads(async {
        let script = "yes 'a line that says nothing at all' | head -c 20000000 >&2; head -c 1000000 /dev/zero >&2";
        let spec = HelperSpec { program: "sh".into(), args: vec!["-c".into(), script.into()], ..sleeper() };
        let child = HelperProcess::spawn(spec).await.unwrap();
        child.wait().await;
        let words = child.last_words();
        assert!(words.lines().count() <= 64 && words.len() <= 64 * 513, "{} bytes", words.len());
        assert!(words.lines().any(|line| line.contains("says nothing")), "and yet something is kept");
    });
}
