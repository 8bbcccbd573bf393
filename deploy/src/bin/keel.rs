//! The command for people.

use std::process::ExitCode;

fn main() -> ExitCode {
    keel::cli::main()
}
