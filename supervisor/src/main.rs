//! The program; all of it is in the library, where tests and fuzzers reach it too.

fn main() -> std::process::ExitCode {
    supervisor::main()
}
