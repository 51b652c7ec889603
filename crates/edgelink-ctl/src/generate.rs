//! Shell completions and manual pages, made from the command line's own description.

use crate::args::Cli;
use crate::error::CtlError;
use crate::output::Output;
use clap::CommandFactory as _;
use clap_complete::Shell;
use std::fs;
use std::path::Path;

pub(crate) fn completions(shell: Shell, out: &mut Output<'_>) -> Result<(), CtlError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "edgelink-ctl", &mut script);
    out.raw(&script)
}

/// One page per command: `edgelink-ctl.1`, `edgelink-ctl-network.1`, `edgelink-ctl-network-list.1` …
pub(crate) fn man(directory: &Path, out: &mut Output<'_>) -> Result<(), CtlError> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), directory)?;
    out.remark(&format!("the manual pages are in {}; read one with: man -l PAGE", directory.display()))
}
