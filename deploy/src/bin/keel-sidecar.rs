//! The sidecar: DNS and listeners for mapped services, publication of the pod's own.

use std::process::ExitCode;

fn main() -> ExitCode {
    keel::cli::sidecar::main()
}
