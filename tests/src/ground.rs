//! A sandbox's directory on this kernel, in a mount namespace of its own, with what must not be
//! touched beside it.

use std::fs;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sandbox_model::Instant;
use sharefs_actor::{Base, Below};

/// Where a test may do as it likes.
#[derive(Debug, Clone)]
pub struct Ground {
    /// A tmpfs that nobody else sees.
    pub root: PathBuf,
    /// A sandbox's own directory below it, mode 0700.
    pub dir: PathBuf,
}

impl Ground {
    /// A name in the sandbox's directory.
    pub fn below(&self, path: impl Into<PathBuf>) -> Below {
        Below { dir: self.dir.clone(), path: path.into(), base: Base::default() }
    }

    /// Somebody's directory with a file in it.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn canary(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(path.join("inner")).expect("a directory");
        fs::write(path.join("file"), "untouched").expect("a file");
        fs::write(path.join("inner/file"), "untouched, too").expect("a file");
        path
    }
}

/// Soon enough for any system call here.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Runs `test` as root in a mount namespace and runtime of its own. Nothing that it mounts is seen
/// elsewhere, or is left behind.
///
/// # Panics
/// When the test does, or in CI when root is missing.
pub fn on_ground<F: Future<Output = ()>>(test: impl FnOnce(Ground) -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI must run this as root");
        println!("skipped: root is needed");
        return;
    }
    let outside = tempfile::Builder::new().prefix("ground-").tempdir().expect("a directory");
    let root = outside.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).expect("private mounts");
        mount(Some("none"), &root, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).expect("a tmpfs");
        let dir = root.join("state/pod");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).expect("a sandbox's directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, test(Ground { root, dir }));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The mounts of this thread's namespace, without ids, which are never used again.
///
/// # Panics
/// When `/proc` is not there.
pub fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc");
    text.lines().map(|line| line.split(' ').skip(2).collect::<Vec<_>>().join(" ")).collect()
}

/// Everything in a tree: names, kinds, modes, owners and contents. Two prints are equal if nothing
/// has been touched.
///
/// # Panics
/// When the tree cannot be read.
pub fn print(tree: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = vec![tree.to_owned()];
    while let Some(path) = left.pop() {
        let facts = fs::symlink_metadata(&path).expect("a name");
        let content = if facts.is_file() {
            fs::read(&path).expect("a file")
        } else if facts.is_symlink() {
            fs::read_link(&path).expect("a link").as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let (mode, uid, links) = (facts.mode(), facts.uid(), if facts.is_dir() { 0 } else { facts.nlink() });
        lines.push(format!("{path:?} {mode:o} {uid} {links} {}", String::from_utf8_lossy(&content).escape_debug()));
        if facts.is_dir() {
            left.extend(fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
        }
    }
    lines.sort();
    lines
}
