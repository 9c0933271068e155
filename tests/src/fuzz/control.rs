//! Z4: what a VMM may say on its control channel, cut into any pieces.

use hypervisor::probe::{LINE_MAX, control_channel};

/// The first byte says how large the pieces are. Whatever is said, the channel answers or ends, and
/// keeps no more than its bound.
///
/// # Panics
/// When it does not.
pub fn z4_control_channel(bytes: &[u8]) {
    let Some((size, said)) = bytes.split_first() else { return };
    let pieces: Vec<&[u8]> = said.chunks(usize::from(*size).max(1)).collect();
    let heard = super::on_one_thread(control_channel(&pieces));
    assert!(heard.longest_event <= LINE_MAX, "{heard:?}");
    assert!(heard.answers <= heard.commands, "{heard:?}: an answer to a command that was never sent");
}
