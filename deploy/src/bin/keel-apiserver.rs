//! The APIServer of a node as a process of its own.

use std::process::ExitCode;

use keel::settings::Part;
use keel::{cli, run};

fn main() -> ExitCode {
    cli::part::main(Part::ApiServer, run::apiserver)
}
