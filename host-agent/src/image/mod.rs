//! `host-agent image`: a volume as it was at a moment, as a disk.

mod export;
mod scratch;
mod stop;

use crate::arguments::BackingArguments;
use crate::error::Error;
use crate::output::{bytes, count, Output};
use crate::progress::{bar, Unit};
use crate::restore::{hinted, ports};
use clap::{Args, Subcommand};
use export::ImageExport;
use journal::image::{Backing, ImageFacts};
use journal::{rfc3339, JournalReader, When};
use scratch::Scratch;
use std::path::PathBuf;
use std::sync::Arc;

/// `image`.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Serve an image over NBD until interrupted
    ///
    /// Nothing is copied: what is read comes from the journal where the image differs, and from primary or
    /// base where it doesn't. Primary may go on being written meanwhile. Journal and primary are never
    /// written; with --writable, writes go to a scratch file that is gone when the server ends.
    #[command(after_long_help = EXAMPLES)]
    Serve(Serve),
}

const EXAMPLES: &str = "\
Examples:
  host-agent image serve j --volume 1.0 --at -15m --primary disk.img --socket /run/then.sock
  nbdcopy nbd+unix:///?socket=/run/then.sock then.img
  qemu-img convert -f raw nbd+unix:///?socket=/run/then.sock -O qcow2 then.qcow2
  nbd-client -unix /run/then.sock /dev/nbd0 && mount -o ro /dev/nbd0 /mnt

The metadata context chronoswitch:changed tells where the image differs from primary or base (1), as in
  nbdinfo --map=chronoswitch:changed nbd+unix:///?socket=/run/then.sock";

/// `image serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The journal
    #[arg(value_name = "JOURNAL")]
    pub journal: PathBuf,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    #[command(flatten)]
    pub backing: BackingArguments,
    /// The moment: order:N (just after that entry), RFC 3339, -15m, bookmark:NAME, ns since 1970, end
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub at: When,
    /// The Unix socket to serve on; only this user may connect
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Let clients write, into a scratch file
    #[arg(long)]
    pub writable: bool,
    /// Folder of the scratch file; it grows with what is written
    #[arg(long, value_name = "FOLDER", requires = "writable", default_value_os_t = std::env::temp_dir())]
    pub scratch: PathBuf,
    /// Go on across gaps in the journal, though the image may be wrong
    #[arg(long, alias = "allow-gap")]
    pub allow_gaps: bool,
}

/// Runs the command.
pub fn run(command: &Image) -> Result<(), Error> {
    match command {
        Image::Serve(arguments) => serve(arguments),
    }
}

fn serve(arguments: &Serve) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let at = arguments.at.resolve(reader.tables())?;
    let backing = arguments.backing.backing(&reader, &arguments.volume, at)?;
    let progress = bar("reading", Unit::Of("entries"));
    let image = journal::image::Image::open(
        reader,
        &arguments.volume,
        at,
        backing,
        arguments.allow_gaps,
        &mut |done, total| {
            progress.set_length(total);
            progress.set_position(done.min(total));
        },
    );
    progress.finish_and_clear();
    let image = image.map_err(hinted)?;
    let facts = image.facts().clone();
    let scratch = match arguments.writable {
        true => Some(Scratch::new(&arguments.scratch, image.bytes())?),
        false => None,
    };
    let listener = nbd::Listener::unix(&arguments.socket)?;
    let shutdown =
        nbd::Shutdown::new().map_err(|e| Error::Failed(format!("preparing to be stopped: {e}")))?;
    stop::on_signal(shutdown.clone())?;
    announce(arguments, &facts, backing)?;
    let exports: Vec<Arc<dyn nbd::Export>> = vec![Arc::new(ImageExport::new(image, scratch))];
    let served = nbd::serve(&listener, &exports, &shutdown)
        .map_err(|e| Error::Failed(format!("{}: serving: {e}", arguments.socket.display())))?;
    eprintln!("stopped after {}", count(served.connections, "connection", "connections"));
    Ok(())
}

/// Says that clients may come, and what they will see.
fn announce(arguments: &Serve, facts: &ImageFacts, backing: Backing<'_>) -> Result<(), Error> {
    let moment = match facts.order {
        0 => "before the first write".to_owned(),
        order => format!("just after order:{order} ({})", rfc3339(facts.timestamp)),
    };
    let mut output = Output::new();
    output.line(format!(
        "serving volume {} as it was {moment}: nbd+unix:///?socket={}",
        arguments.volume,
        arguments.socket.display()
    ))?;
    output.line(format!(
        "  {} in {} from the journal, the rest from {}",
        bytes(facts.mapped_bytes),
        count(facts.extents, "extent", "extents"),
        backing.path().display()
    ))?;
    if facts.doubtful > 0 {
        let entries = count(facts.doubtful, "write is", "writes are");
        output.line(format!(
            "  note: {entries} in the image though nobody knows whether the target executed them"
        ))?;
    }
    if !facts.gaps.is_empty() {
        let ports = ports(&facts.gaps).iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        output.line(format!("  warning: the image crosses gaps of port {ports} and may be wrong"))?;
    }
    output.finish()
}
