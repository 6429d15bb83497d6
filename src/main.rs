//! Parses arguments and calls the command.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    traqq::cli::Arguments::parse().run()
}
