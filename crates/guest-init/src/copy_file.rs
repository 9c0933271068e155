//! `CopyFile`: files that come over the wire, in pieces, below `/run`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use agent_protocol::agent::CopyFileRequest;
use anyhow::{Context, Result, ensure};
use nix::sys::stat::SFlag;

/// Files may be put below this directory only.
const BASE: &str = "/run";

/// Puts one piece; the file gets its name when the last byte is there.
pub(crate) fn copy(request: &CopyFileRequest) -> Result<()> {
    let path = checked(&request.path)?;
    let parent = path.parent().context("a file needs a directory")?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(if request.dir_mode == 0 { 0o750 } else { request.dir_mode & 0o7777 })
        .create(parent)
        .with_context(|| format!("create {}", parent.display()))?;
    // A link on the way could lead out of the directory in spite of a clean path.
    ensure!(fs::canonicalize(parent)? == parent, "{} leads elsewhere", parent.display());
    match SFlag::from_bits_truncate(request.file_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => copy_directory(&path, request),
        SFlag::S_IFLNK => copy_link(&path, request),
        _ => copy_piece(&path, request),
    }
    .with_context(|| format!("copy to {}", path.display()))
}

fn copy_directory(path: &Path, request: &CopyFileRequest) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
        _ => own(path, request),
    }
}

fn copy_link(path: &Path, request: &CopyFileRequest) -> Result<()> {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error.into());
    }
    symlink(std::ffi::OsStr::from_bytes(&request.data), path)?;
    lchown(path, Some(request.uid as u32), Some(request.gid as u32))?;
    Ok(())
}

fn copy_piece(path: &Path, request: &CopyFileRequest) -> Result<()> {
    let unfinished = unfinished(path)?;
    let file =
        fs::OpenOptions::new().write(true).create(true).truncate(request.offset == 0).mode(0o600).open(&unfinished)?;
    let offset = u64::try_from(request.offset).context("offset")?;
    file.write_all_at(&request.data, offset)?;
    if file.metadata()?.len() as i64 >= request.file_size {
        own(&unfinished, request)?;
        fs::rename(&unfinished, path)?;
    }
    Ok(())
}

/// Ids come as signed numbers; -1 leaves an owner alone, as in `chown(2)`.
fn own(path: &Path, request: &CopyFileRequest) -> Result<()> {
    lchown(path, Some(request.uid as u32), Some(request.gid as u32))?;
    fs::set_permissions(path, fs::Permissions::from_mode(request.file_mode & 0o7777))?;
    Ok(())
}

fn unfinished(path: &Path) -> Result<PathBuf> {
    let mut name = path.file_name().context("a file needs a name")?.to_owned();
    name.push(".unfinished");
    Ok(path.with_file_name(name))
}

fn checked(path: &str) -> Result<PathBuf> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    ensure!(
        plain && path.starts_with(BASE) && path != Path::new(BASE),
        "`{}` is not a path below {BASE}",
        path.display()
    );
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_run_are_taken() {
        assert!(checked("/run/kata-containers/file").is_ok());
        for wrong in ["/run", "/etc/passwd", "run/x", "/run/../etc/passwd", "/runner/x", ""] {
            assert!(checked(wrong).is_err(), "{wrong}");
        }
    }
}
