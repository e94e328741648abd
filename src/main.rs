//! Parse, run, print the error once, exit code.

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match denshi::cli::run(denshi::cli::Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(5),
        Err(error) => {
            if error.kind != denshi::error::Kind::ReaderGone {
                // Nobody may be reading errors either; that is no reason to fall over.
                let _ = writeln!(std::io::stderr(), "denshi: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
