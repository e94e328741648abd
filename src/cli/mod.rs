//! The command line: one file per subcommand, thin. Results go to stdout, progress and remarks to stderr.

mod devices;
mod doctor;
mod progress;

use crate::error::{Error, Kind, Result};
use crate::gpu::AdapterChoice;
use clap::{Args, Parser, Subcommand};
use std::io::Write;

/// A hand-written GPU compute engine that trains ELECTRA and BERT.
#[derive(Parser)]
#[command(name = "denshi", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every subcommand has.
#[derive(Args)]
pub struct Global {
    /// Adapter by index or part of its name, or best, low-power, high-power [env: DENSHI_ADAPTER]
    #[arg(long, global = true, value_name = "ADAPTER")]
    adapter: Option<String>,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    fn adapter_choice(&self) -> AdapterChoice {
        AdapterChoice::from_user(self.adapter.as_deref())
    }
}

#[derive(Subcommand)]
enum Command {
    /// List adapters, their features and limits, and the kernel variants they get
    Devices(devices::Options),
    /// Check every kernel and variant on the adapter against f64 references
    Doctor(doctor::Options),
}

/// Prints a line of results. Not `println!`, which panics on a full disk or a closed pipe.
fn say(line: impl std::fmt::Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|e| {
        let kind = if e.kind() == std::io::ErrorKind::BrokenPipe { Kind::ReaderGone } else { Kind::Data };
        Error::new(kind, "write results to stdout", e.to_string())
    })
}

/// Runs the parsed command. True means success; false a completed run whose answer is no (a failed self-check).
pub fn run(cli: Cli) -> Result<bool> {
    match cli.command {
        Command::Devices(options) => devices::run(&cli.global, &options),
        Command::Doctor(options) => doctor::run(&cli.global, &options),
    }
}
