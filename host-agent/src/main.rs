//! `host-agent`: Chronoswitch's command line.
//!
//! One file per command: [`replay`], [`daemon`], [`serve`], [`switch`], [`status`], [`log`], [`verify`], [`restore`], [`image`], [`diff`],
//! [`bookmark`], [`volume`], [`base`], [`merge`], [`resync`], [`size`], [`card`]. Data go to standard output,
//! everything else to standard error. Exit code 0: fine; 1: what was asked failed; 2: misuse.

mod arguments;
mod base;
mod bookmark;
mod capture;
mod card;
mod daemon;
mod diff;
mod dirty_log_file;
mod error;
mod image;
mod log;
mod merge;
mod merged_log;
mod need;
mod network;
mod output;
mod progress;
mod replay;
mod restore;
mod resync;
mod serve;
mod size;
mod status;
mod switch;
mod through_card;
mod verify;
mod volume;

use arguments::{Arguments, Command};
use clap::Parser;
use error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Replay(replay) => replay::run(replay),
        Command::Daemon(daemon) => daemon::run(daemon),
        Command::Serve(serve) => serve::run(serve),
        Command::Switch(switching) => switch::run(switching),
        Command::Status(status) => status::run(status),
        Command::Log(log) => log::run(log),
        Command::Verify(verify) => verify::run(verify),
        Command::Restore(restore) => restore::run(restore),
        Command::Image(image) => image::run(image),
        Command::Diff(diff) => diff::run(diff),
        Command::Size(size) => size::run(size),
        Command::Resync(resync) => resync::run(resync),
        Command::Bookmark(bookmark) => bookmark::run(bookmark),
        Command::Volume(volume) => volume::run(volume),
        Command::Base(base) => base::run(base),
        Command::Merge(merge) => merge::run(merge),
        Command::Card(card) => card::run(card),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads our output has heard enough, as in `host-agent log J | head`.
        Err(Error::ReaderGone) => ExitCode::SUCCESS,
        Err(Error::Misuse(what)) => {
            eprintln!("error: {what}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}
