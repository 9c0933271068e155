//! Real children: shell scripts, no rights needed.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use helper_process::{HelperExit, HelperProcess, HelperSpec, end_process, identify, is_alive};
use sandbox_model::ledger::ProcessIdentity;
use sandbox_model::{ErrorKind, Instant, Outcome, PassedFd};

const TERM: Duration = Duration::from_millis(300);

fn script(text: &str, tag: &str) -> HelperSpec {
    HelperSpec { program: "/bin/sh".into(), args: vec!["-c".into(), text.into()], tag: tag.into(), passed: Vec::new() }
}

async fn start(text: &str, tag: &str) -> HelperProcess {
    HelperProcess::spawn(script(text, tag)).await.expect("a shell starts")
}

fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// A tag that no other test run uses.
fn tag(name: &str) -> String {
    format!("helper-test-{}/{name}", std::process::id())
}

/// Waits until a script has said `word`: it has set itself up by then.
async fn heard(helper: &HelperProcess, word: &str) {
    while !helper.last_words().contains(word) {
        assert_eq!(helper.try_exit(), None, "ended before it said {word}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn every_waiter_learns_the_exit_and_the_last_words() {
    let helper = start("echo first >&2; echo 'no such kernel' >&2; exit 3", "t/1").await;
    let waiters: Vec<_> = (0..4).map(|_| helper.clone()).map(|h| tokio::spawn(async move { h.wait().await })).collect();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), HelperExit { code: Some(3), signal: None });
    }
    assert_eq!(helper.last_words(), "first\nno such kernel");
    assert_eq!(helper.try_exit().unwrap().code, Some(3));
    assert!(!is_alive(helper.identity()));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let spec = HelperSpec { program: "/no/such/program".into(), ..HelperSpec::default() };
    let error = HelperProcess::spawn(spec).await.unwrap_err();
    assert_eq!(error.to_string(), "exec /no/such/program: No such file or directory (os error 2)");
    assert_eq!((error.kind, error.outcome), (ErrorKind::NotFound, Outcome::NotDone));
}

#[tokio::test]
async fn a_child_inherits_what_is_listed_and_nothing_else() {
    let passed = PassedFd::new(std::fs::File::open("/etc/passwd").unwrap().into());
    // Inheritable, and nobody's business.
    let stray = rustix::io::dup(std::fs::File::open("/etc/hostname").unwrap()).unwrap();
    let mut spec = script("echo up >&2; kill -STOP $$", "t/fds");
    spec.passed = vec![(passed.clone(), 4), (passed, 3)];
    let helper = HelperProcess::spawn(spec).await.unwrap();
    heard(&helper, "up").await;
    let proc = format!("/proc/{}", helper.identity().pid);
    let numbers: BTreeSet<String> = std::fs::read_dir(format!("{proc}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(numbers, ["0", "1", "2", "3", "4"].map(String::from).into());
    for (number, target) in [("0", "/dev/null"), ("1", "/dev/null"), ("3", "/etc/passwd"), ("4", "/etc/passwd")] {
        assert_eq!(std::fs::read_link(format!("{proc}/fd/{number}")).unwrap(), Path::new(target));
    }
    let environment = std::fs::read_to_string(format!("{proc}/environ")).unwrap();
    let mut names: Vec<_> = environment.split('\0').filter_map(|v| Some(v.split_once('=')?.0)).collect();
    names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    names.sort_unstable();
    assert_eq!(names, ["PATH", "RESOURCE_ACTORS_ENTRY"]);
    assert_eq!(std::fs::read_link(format!("{proc}/cwd")).unwrap(), Path::new("/"));
    assert!(std::fs::read_to_string(format!("{proc}/status")).unwrap().contains("NoNewPrivs:\t1\n"));
    helper.kill().await.unwrap();
    drop(stray);
}

#[tokio::test]
async fn a_passed_descriptor_needs_a_fitting_number() {
    let fd = PassedFd::new(std::fs::File::open("/dev/null").unwrap().into());
    for passed in [
        vec![(fd.clone(), 2)],
        vec![(fd.clone(), 256)],
        vec![(fd.clone(), 3), (fd.clone(), 3)],
        vec![(PassedFd::absent(), 3)],
    ] {
        let spec = HelperSpec { passed, ..script("exit 0", "t/bad") };
        assert_eq!(HelperProcess::spawn(spec).await.unwrap_err().kind, ErrorKind::Invalid);
    }
}

#[tokio::test]
async fn terminate_asks_first_and_then_kills() {
    let polite = start("trap 'exit 0' TERM; echo up >&2; while :; do sleep 0.01; done", "t/polite").await;
    heard(&polite, "up").await;
    assert_eq!(polite.terminate(Duration::from_secs(5)).await.unwrap().code, Some(0));
    assert_eq!(polite.terminate(TERM).await.unwrap().code, Some(0), "ended already is success");

    let deaf = start("trap '' TERM; echo up >&2; while :; do sleep 0.01; done", "t/deaf").await;
    heard(&deaf, "up").await;
    assert_eq!(deaf.terminate(TERM).await.unwrap().signal, Some(9));
}

#[tokio::test]
async fn a_socket_counts_when_somebody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("daemon.sock");
    let helper = start("exec sleep 60", "t/socket").await;
    let waiting = tokio::spawn({
        let (helper, path) = (helper.clone(), path.clone());
        async move { helper.wait_for_socket(&path, in_seconds(10)).await }
    });
    std::fs::write(dir.path().join("noise"), "").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;
    let bound = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(bound.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished(), "bound is not listening");
    listen(&bound, Backlog::new(1).unwrap()).unwrap();
    waiting.await.unwrap().unwrap();

    let soon = Instant::now() + Duration::from_millis(50);
    let error = helper.wait_for_socket(&dir.path().join("never"), soon).await.unwrap_err();
    assert_eq!((error.kind, error.outcome), (ErrorKind::TimedOut, Outcome::Doubtful));
    helper.kill().await.unwrap();
}

#[tokio::test]
async fn an_early_end_is_reported_with_the_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let helper = start("echo 'cannot export /x' >&2; exit 1", "t/early").await;
    let error = helper.wait_for_socket(&dir.path().join("s"), in_seconds(10)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PeerGone);
    assert_eq!(error.cause, "/bin/sh ended with exit status 1: cannot export /x");
}

#[tokio::test]
async fn an_earlier_run_s_process_is_ended_and_no_other() {
    let tag = tag("identity");
    let helper = start("echo up >&2; while :; do sleep 0.01; done", &tag).await;
    // Amid an exec a process has no environment to be checked.
    heard(&helper, "up").await;
    let process = helper.identity();
    assert_eq!(identify(process.pid).unwrap(), process);
    let impostor = ProcessIdentity { start_ticks: process.start_ticks + 1, ..process };
    let error = end_process(Some(impostor), &tag, TERM, in_seconds(5)).await.unwrap_err();
    assert!(error.is_absent() && is_alive(process));
    let error = end_process(Some(process), "another/1", TERM, in_seconds(5)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Foreign);
    assert!(is_alive(process));
    end_process(Some(process), &tag, TERM, in_seconds(5)).await.unwrap();
    assert!(!is_alive(process));
    helper.wait().await;
    assert!(end_process(Some(process), &tag, TERM, in_seconds(5)).await.unwrap_err().is_absent());
}

#[tokio::test]
async fn a_process_without_identity_is_found_by_its_tag() {
    let tag = tag("search");
    let helper = start("trap '' TERM; echo up >&2; while :; do sleep 0.01; done", &tag).await;
    heard(&helper, "up").await;
    assert!(end_process(None, &tag[..tag.len() - 1], TERM, in_seconds(5)).await.unwrap_err().is_absent());
    assert!(is_alive(helper.identity()));
    end_process(None, &tag, TERM, in_seconds(5)).await.unwrap();
    assert!(!is_alive(helper.identity()));
    assert!(end_process(None, &tag, TERM, in_seconds(5)).await.unwrap_err().is_absent());
}

#[tokio::test]
#[expect(clippy::zombie_processes, reason = "that the child is not waited for is what is tested")]
async fn a_child_that_nobody_reaped_can_be_ended() {
    use std::process::{Command, Stdio};
    let tag = tag("zombie");
    let child =
        Command::new("/bin/sleep").arg("60").env("RESOURCE_ACTORS_ENTRY", &tag).stdin(Stdio::null()).spawn().unwrap();
    let process = identify(child.id() as i32).unwrap();
    end_process(Some(process), &tag, TERM, in_seconds(5)).await.unwrap();
    assert!(identify(process.pid).unwrap_err().is_absent(), "reaped, not left a zombie");
}

#[tokio::test]
async fn what_is_not_our_child_is_adopted_watched_and_ended() {
    let tag = tag("adopted");
    // The shell ends at once; what it leaves behind is a stranger's child with our tag.
    let shell = start("sleep 60 2>/dev/null & echo $! >&2", &tag).await;
    shell.wait().await;
    let process = identify(shell.last_words().trim().parse().unwrap()).unwrap();
    let adopt = |process, tag: &str| {
        let tag = tag.to_owned();
        async move { HelperProcess::adopt("sleep", process, &tag, in_seconds(5)).await }
    };
    assert_eq!(adopt(process, "another/1").await.unwrap_err().kind, ErrorKind::Foreign);
    let reused = ProcessIdentity { start_ticks: process.start_ticks + 1, ..process };
    assert!(adopt(reused, &tag).await.unwrap_err().is_absent());

    let helper = adopt(process, &tag).await.unwrap();
    assert_eq!((helper.try_exit(), helper.last_words().as_str()), (None, ""));
    let waiting = tokio::spawn({
        let helper = helper.clone();
        async move { helper.wait().await }
    });
    let unknown = HelperExit { code: None, signal: None };
    assert_eq!(helper.terminate(TERM).await.unwrap(), unknown);
    assert_eq!(waiting.await.unwrap(), unknown);
    assert!(adopt(process, &tag).await.unwrap_err().is_absent(), "an ended one is not adopted");
}

#[tokio::test]
async fn a_process_that_ends_while_it_is_looked_at_is_no_stranger() {
    for round in 0..100 {
        let tag = tag(&format!("ends/{round}"));
        let helper = start("exec sleep 60", &tag).await;
        let pid = nix::unistd::Pid::from_raw(helper.identity().pid);
        let killed = async {
            tokio::time::sleep(Duration::from_micros(200 * (round % 10))).await;
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)
        };
        // It may have ended, and been reaped, before it is killed.
        let (ended, _) = tokio::join!(end_process(Some(helper.identity()), &tag, TERM, in_seconds(10)), killed);
        assert!(ended.as_ref().err().is_none_or(|error| error.kind == ErrorKind::NotFound), "{ended:?}");
    }
}

#[test]
fn what_a_helper_says_when_nobody_reads_neither_ends_nor_blocks_it() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (alone, said, adopted) = (dir.path().join("alone"), dir.path().join("said"), dir.path().join("adopted"));
    let wait_for = |path: &Path| format!("while ! [ -e {} ]; do sleep 0.01; done", path.display());
    // More than a pipe holds, to nobody; then a word to whoever has come.
    let text = format!(
        "echo up >&2; {}; n=0; while [ $n -lt 3000 ]; do echo to nobody at all, and to nobody at all >&2; n=$((n+1)); \
         done; : > {}; {}; echo welcome >&2; exec sleep 60",
        wait_for(&alone),
        said.display(),
        wait_for(&adopted)
    );
    let tag = tag("unheard");
    let first = runtime();
    let process = first.block_on(async {
        let helper = start(&text, &tag).await;
        heard(&helper, "up").await;
        helper.identity()
    });
    // What read its stderr goes, as it does when we are killed.
    drop(first);
    std::fs::write(&alone, "").unwrap();
    runtime().block_on(async {
        let deadline = in_seconds(30);
        while !said.exists() {
            assert!(is_alive(process), "it was ended by what it said");
            assert!(Instant::now() < deadline, "it was blocked by what it said");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let helper = HelperProcess::adopt("sh", process, &tag, in_seconds(5)).await.unwrap();
        std::fs::write(&adopted, "").unwrap();
        heard(&helper, "welcome").await;
        helper.kill().await.unwrap();
    });
}
