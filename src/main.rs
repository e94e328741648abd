//! Parse, run, print the error once, exit code.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match denshi::cli::run(denshi::cli::Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(5),
        Err(error) => {
            eprintln!("denshi: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
