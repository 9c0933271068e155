//! Mount options as the OCI specification and the agent's storages write them.

use nix::mount::MsFlags;

/// Options sorted into what `mount(2)` takes separately.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Flags of the mount itself.
    pub(crate) flags: MsFlags,
    /// Propagation, which takes a call of its own.
    pub(crate) propagation: MsFlags,
    /// What is left for the file system, joined by commas.
    pub(crate) data: String,
}

impl Options {
    /// Sorts a list of options.
    pub(crate) fn parse<S: AsRef<str>>(options: &[S]) -> Self {
        let mut parsed = Self { flags: MsFlags::empty(), propagation: MsFlags::empty(), data: String::new() };
        let mut data = Vec::new();
        for option in options.iter().map(AsRef::as_ref) {
            if let Some(flag) = flag(option) {
                parsed.flags |= flag;
            } else if let Some(flag) = cleared_flag(option) {
                parsed.flags &= !flag;
            } else if let Some(flag) = propagation(option) {
                parsed.propagation |= flag;
            } else if option != "defaults" {
                data.push(option);
            }
        }
        parsed.data = data.join(",");
        parsed
    }

    /// The data for `mount(2)`, or nothing.
    pub(crate) fn data(&self) -> Option<&str> {
        (!self.data.is_empty()).then_some(self.data.as_str())
    }

    /// Whether this is a bind mount, of one mount or of a tree.
    pub(crate) fn is_bind(&self) -> bool {
        self.flags.contains(MsFlags::MS_BIND)
    }

    /// The flags a bind mount takes only when it is mounted again.
    pub(crate) fn remount_flags(&self) -> MsFlags {
        self.flags & !(MsFlags::MS_BIND | MsFlags::MS_REC)
    }
}

fn flag(option: &str) -> Option<MsFlags> {
    Some(match option {
        "bind" => MsFlags::MS_BIND,
        "rbind" => MsFlags::MS_BIND | MsFlags::MS_REC,
        "ro" => MsFlags::MS_RDONLY,
        "nosuid" => MsFlags::MS_NOSUID,
        "nodev" => MsFlags::MS_NODEV,
        "noexec" => MsFlags::MS_NOEXEC,
        "sync" => MsFlags::MS_SYNCHRONOUS,
        "dirsync" => MsFlags::MS_DIRSYNC,
        "remount" => MsFlags::MS_REMOUNT,
        "noatime" => MsFlags::MS_NOATIME,
        "nodiratime" => MsFlags::MS_NODIRATIME,
        "relatime" => MsFlags::MS_RELATIME,
        "strictatime" => MsFlags::MS_STRICTATIME,
        _ => return None,
    })
}

fn cleared_flag(option: &str) -> Option<MsFlags> {
    Some(match option {
        "rw" => MsFlags::MS_RDONLY,
        "suid" => MsFlags::MS_NOSUID,
        "dev" => MsFlags::MS_NODEV,
        "exec" => MsFlags::MS_NOEXEC,
        "async" => MsFlags::MS_SYNCHRONOUS,
        "atime" => MsFlags::MS_NOATIME,
        "diratime" => MsFlags::MS_NODIRATIME,
        "norelatime" => MsFlags::MS_RELATIME,
        "nostrictatime" => MsFlags::MS_STRICTATIME,
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MsFlags> {
    let (recursive, kind) = match option.strip_prefix('r') {
        Some(kind) => (MsFlags::MS_REC, kind),
        None => (MsFlags::empty(), option),
    };
    let kind = match kind {
        "private" => MsFlags::MS_PRIVATE,
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted() {
        let options = Options::parse(&["rbind", "ro", "rprivate", "mode=1777", "size=64k"]);
        assert_eq!(options.flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!(options.propagation, MsFlags::MS_PRIVATE | MsFlags::MS_REC);
        assert_eq!(options.data(), Some("mode=1777,size=64k"));
        assert_eq!(options.remount_flags(), MsFlags::MS_RDONLY);
    }

    #[test]
    fn a_later_option_wins() {
        assert_eq!(Options::parse(&["ro", "rw", "defaults"]), Options::parse::<&str>(&[]));
    }
}
