//! `edgelink-load`: see the library.

fn main() -> std::process::ExitCode {
    edgelink_load::main()
}
