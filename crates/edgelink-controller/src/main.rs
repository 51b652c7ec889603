//! Binary `edgelink-controller`.

fn main() -> std::process::ExitCode {
    edgelink_controller::main()
}
