//! Binary `edgelink`.

fn main() -> std::process::ExitCode {
    edgelink::main()
}
