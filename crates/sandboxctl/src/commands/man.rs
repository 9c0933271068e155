//! `man`: the manual, made from the command line itself.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::output::{Code, Failure, data};

/// Prints the page of the tool, or writes those of all verbs into a directory.
pub(crate) fn man(dir: Option<&Path>) -> Result<(), Failure> {
    let failed = |what: String| move |error: std::io::Error| Failure::early(Code::OUTPUT, what, error, "another path");
    let Some(dir) = dir else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page).map_err(failed("cannot print the manual".to_owned()))?;
        data(&String::from_utf8_lossy(&page));
        return Ok(());
    };
    let what = || format!("cannot write the manual into {}", dir.display());
    fs::create_dir_all(dir).map_err(failed(what()))?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed(what()))
}
