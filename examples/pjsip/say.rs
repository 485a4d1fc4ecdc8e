//! Lines for whoever reads them: one who has gone away is no reason to lose the registrations, as `println!` has it.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

/// A line on standard output
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(stdout(), "{line}");
}

/// Lines on standard output that have their own ends
pub(crate) fn show(text: impl Display) {
    let _ = write!(stdout(), "{text}");
}

/// A line on standard error
pub(crate) fn complain(line: impl Display) {
    let _ = writeln!(stderr(), "{line}");
}
