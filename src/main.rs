//! Calls the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    traqq::cli::main()
}
