//! From the initramfs to a root that containers can pivot away from.
//!
//! The kernel's first root cannot be the old root of `pivot_root`. So everything needed is copied
//! to a tmpfs, which is moved over `/`; then the program executes itself again as the agent.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::chroot;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::unistd::execv;

use crate::agent;
use crate::console::say;

/// Where the image builder puts kernel modules.
const MODULES: &str = "/modules";
/// File names in [`MODULES`], one a line, each after those it depends on.
const MODULE_LIST: &str = "/modules/list";
const NEW_ROOT: &str = "/new-root";

/// Loads the modules, changes the root and becomes the agent.
pub(crate) fn run() -> Result<()> {
    fs::create_dir_all("/dev")?;
    mount_pseudo("devtmpfs", "/dev").context("mount /dev")?;
    load_modules()?;
    fs::create_dir_all(NEW_ROOT)?;
    mount(Some("root"), NEW_ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).context("mount the new root")?;
    fs::copy("/init", Path::new(NEW_ROOT).join("init")).context("copy /init")?;
    fs::create_dir(Path::new(NEW_ROOT).join("dev"))?;
    move_mount("/dev", &format!("{NEW_ROOT}/dev"))?;
    // The initramfs stays in memory for ever; what it holds need not.
    for entry in fs::read_dir(MODULES).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_file("/init");
    std::env::set_current_dir(NEW_ROOT)?;
    move_mount(".", "/")?;
    chroot(".").context("chroot")?;
    std::env::set_current_dir("/")?;
    let arguments = [CString::new("/init")?, CString::new(agent::ARGUMENT)?];
    execv(&arguments[0], &arguments).context("execute /init again")?;
    Ok(())
}

fn mount_pseudo(kind: &str, target: &str) -> nix::Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
}

fn move_mount(from: &str, to: &str) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>).with_context(|| format!("move {from} to {to}"))
}

fn load_modules() -> Result<()> {
    let Ok(list) = fs::read_to_string(MODULE_LIST) else {
        return Ok(());
    };
    for name in list.lines() {
        let load = || -> Result<()> {
            let file = fs::File::open(Path::new(MODULES).join(name))?;
            nix::kmod::finit_module(&file, c"", nix::kmod::ModuleInitFlags::empty())?;
            Ok(())
        };
        if let Err(error) = load() {
            // Most often a module for hardware that this guest lacks.
            say(format_args!("module {name}: {error}"));
        }
    }
    Ok(())
}
