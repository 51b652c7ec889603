//! `edgelink-ctl`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    edgelink_ctl::main(std::env::args_os())
}
