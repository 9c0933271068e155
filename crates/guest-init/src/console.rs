//! One line on the guest's console for each event.

use std::fmt::Arguments;
use std::fs::OpenOptions;
use std::io::Write;

/// Writes one line to the console; a console that is not there is no reason to stop.
pub(crate) fn say(line: Arguments<'_>) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        // One write, so that lines of several processes do not mix.
        let _ = console.write_all(format!("guest-init: {line}\n").as_bytes());
    }
}
