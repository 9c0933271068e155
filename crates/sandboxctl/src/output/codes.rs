//! One table of error codes: `help E0301` prints from it.

/// A kind of failure that a user can look up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code {
    /// `E` and four digits; never given to another meaning.
    pub(crate) number: &'static str,
    /// In a few words.
    pub(crate) title: &'static str,
    /// What it means and what to do.
    pub(crate) explanation: &'static str,
}

macro_rules! codes {
    ($($name:ident $number:literal $title:literal $explanation:literal;)*) => {
        impl Code {
            $(pub(crate) const $name: Self = Self { number: $number, title: $title, explanation: $explanation };)*
            /// All of them, by number.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

codes! {
    INVALID_ID "E0101" "the text is no id"
        "An id is 1 to 64 of A-Z a-z 0-9 . _ - , starts with a letter or digit and contains no \"..\".";
    EXISTS "E0102" "a sandbox of that id exists"
        "Another process runs it, or a crash has left something of it. `sandboxctl cleanup ID` undoes what\n\
         a crash has left.";
    UNKNOWN "E0103" "there is no such sandbox"
        "No directory of that name is below the state directory. `sandboxctl list` lists those that are;\n\
         --state-dir or SANDBOXCTL_STATE_DIR says where to look. Private sandboxes are visible to\n\
         nobody but the process that runs them.";
    WRONG_STATE "E0104" "the request does not fit the sandbox's state"
        "Each request fits some states of the sandbox's life, which the message names.";
    REFUSED "E0105" "the sandbox did not come to the request"
        "Its mailbox was full, the deadline passed before its turn, or it has ended.";
    STORE "E0106" "the state directory cannot be used"
        "A sandbox's directory or ledger cannot be made, read or written. The message names the file. Is\n\
         the directory writable, and on a file system with room?";
    DEVICE "E0201" "a device could not be set up" "The message names the device and what the VMM said.";
    NETWORK "E0202" "the network could not be set up"
        "The message names the interface or namespace, and what the kernel said.";
    SHARE "E0203" "the shared directory could not be set up"
        "A mount, a volume or virtiofsd failed. The message names the path, and what the kernel or the\n\
         daemon said.";
    CGROUP "E0204" "a cgroup could not be set up" "The message names the cgroup and what the kernel said.";
    CPU "E0205" "vCPUs or memory could not be set up"
        "The limits of the containers need more than the configuration allows, or the VMM refused.";
    PORT "E0206" "the VMM, the agent or the host failed"
        "The message names the operation and the object, and carries the last words of the other side.";
    ACTOR "E0207" "an actor did not serve" "It has died, which is a defect: please report the message.";
    INVALID "E0208" "the request is wrong" "The message names the value, and what would be right.";
    VM_GONE "E0209" "the VM ended while a step ran"
        "The message carries how it ended and its last words. Out of memory on the host, or a kernel that\n\
         the VMM cannot start, are common.";
    DEADLINE "E0210" "a step took too long"
        "The message says for what it waited and what the last sign of life was. The deadlines are keys of\n\
         [runtime.deadlines]; emulation (TCG) may need larger ones.";
    STEP_INTERRUPTED "E0211" "a step was interrupted" "Somebody asked to stop while it ran; it has been undone.";
    ADOPT "E0212" "a sandbox could not be taken over"
        "Its VM runs, but something of what its ledger names is gone, or is not what was made. The message\n\
         names it. `sandboxctl recover` has released the sandbox, since nobody knows what it still has.";
    CONFIG "E0301" "the configuration was refused"
        "A file, variable or flag sets a key to something that it does not accept, or is no TOML.\n\
         The message names the key, what was written, what is accepted, and the fix.\n\
         `sandboxctl config check FILE` checks a file; `sandboxctl config explain KEY` explains a key.";
    BUNDLE_READ "E0311" "the bundle cannot be read"
        "A bundle is a directory with config.json and, usually, a directory rootfs.\n\
         The file is missing, not readable, too large, or is no JSON of the OCI runtime specification.";
    BUNDLE_SPEC "E0312" "the bundle breaks the OCI runtime specification"
        "config.json can be read, but what it says cannot be run. The message names the field.\n\
         The specification: https://github.com/opencontainers/runtime-spec/blob/main/config.md";
    ANNOTATION "E0313" "an annotation of the bundle was refused"
        "Annotations below io.katacontainers.config. change the sandbox's configuration. Each must be\n\
         supported and listed by its exact last part in enable_annotations of [hypervisor.qemu].\n\
         Annotations that name a file or program of the host are never honoured.";
    HOST "E0401" "this host cannot do it"
        "Something that the sandbox needs is not there: a program, a device, a right, a guest image.\n\
         `sandboxctl doctor` lists what is there, what is missing, and how to fix it.";
    PRIVATE "E0402" "throw-away namespaces are not available"
        "With --host private everything happens in a user, mount and network namespace that vanish\n\
         with the process. The kernel or a policy of this host forbids them to this user.\n\
         Commonly: sysctl user.max_user_namespaces is 0, kernel.unprivileged_userns_clone is 0, or\n\
         kernel.apparmor_restrict_unprivileged_userns is 1. Root does not need them.";
    TIMEOUT "E0501" "the time limit has passed"
        "`run --timeout` has ended the container. Its sandbox has been cleaned up. The exit code is 124.";
    INTERRUPTED "E0502" "interrupted"
        "A signal (Ctrl-C) has ended the run, and its sandbox has been cleaned up. The exit code is 128\n\
         plus the signal's number: 130 for Ctrl-C. A second signal makes the clean-up faster: whatever does\n\
         not end at once is ended by force. A third leaves, and tells what remains and how to undo it.\n\
         `recover` ends what it has begun at the first signal and leaves at the second.";
    REMAINS "E0503" "something remains on the host"
        "Not everything that the sandbox had made could be undone. The message names what is left and\n\
         why. `sandboxctl cleanup ID` tries again; it undoes only what the sandbox's ledger proves to\n\
         be its own.";
    TRACE_READ "E0601" "the trace cannot be read"
        "A trace is what `run --trace FILE` wrote: JSON lines, the header first.";
    DIVERGED "E0602" "the replay diverged"
        "The same messages led to other answers or another final state than recorded. Either this is\n\
         another version than the one that recorded, or an actor depends on something that the trace\n\
         does not hold, which is a defect. The exit code is 5.";
    RECORD "E0603" "the trace has no such record"
        "Records are named by their number, `seq`. `created` records and the header have nothing to\n\
         explain.";
    OUTPUT "E0604" "a file cannot be written"
        "The message names the file. Is the directory there and writable?";
    RULE_BROKEN "E0605" "a rule was broken under stress"
        "`trace replay` with --faults, --sandboxes or --speed drives a trace's commands in the simulation.\n\
         A command was not answered, an actor died, or something was left behind: a defect. `sandboxctl\n\
         trace minimise` with the same flags finds the fewest commands and faults that lead there.";
    BENCH "E0701" "a target was not reached, or could not be measured"
        "`sandboxctl bench` holds this host to the targets in docs/performance.md. A busy machine, a debug\n\
         build or another kernel can miss them; ratios and counts move less than times. Rows that act on\n\
         the kernel need root.";
}

impl Code {
    /// Finds a code by its number.
    pub(crate) fn find(number: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.number.eq_ignore_ascii_case(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_and_are_well_formed() {
        assert!(Code::ALL.windows(2).all(|pair| pair[0].number < pair[1].number));
        assert!(Code::ALL.iter().all(|code| code.number.len() == 5 && code.number.starts_with('E')));
        assert_eq!(Code::find("e0301"), Some(Code::CONFIG));
        assert_eq!(Code::find("E9999"), None);
    }
}
