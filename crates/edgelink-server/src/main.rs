//! `edgelink-server`.
use std::process::ExitCode;

fn main() -> ExitCode {
    edgelink_server::main()
}
