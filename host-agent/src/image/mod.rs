//! `host-agent image`: a volume as it was at a moment, as a disk or by name.

mod export;
pub mod named;
mod pointed;
mod scratch;
mod stop;

use crate::arguments::BackingArguments;
use crate::error::Error;
use crate::network::{uris, NetworkArguments};
use crate::output::{bytes, count, Output};
use crate::progress::{bar, Unit};
use crate::restore::{hinted, ports};
use clap::{Args, Subcommand};
use export::ImageExport;
use journal::image::{Backing, ImageFacts};
use journal::{rfc3339, JournalReader, Moment, When};
use pointed::{Opened, Pointed};
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
    /// Give an image a name
    ///
    /// Nothing is copied. Merging keeps the moment, until the schedule gives up all that is so old; `image:NAME`
    /// names it wherever a moment is asked for.
    Create(named::Create),
    /// List the images that have a name
    List(named::List),
    /// Forget an image's name; nothing else is lost at once
    Remove(named::Remove),
}

const EXAMPLES: &str = "\
Examples:
  host-agent image serve j --volume 1.0 --at -15m --primary disk.img --socket /run/then.sock
  host-agent image serve j --image monday --base base.img --socket /run/monday.sock
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
    /// The named image (image create) to serve
    #[arg(long, value_name = "NAME", conflicts_with_all = ["volume", "at"])]
    pub image: Option<String>,
    /// The volume, shelf.slot
    #[arg(long, value_name = "VOLUME", required_unless_present = "image")]
    pub volume: Option<String>,
    #[command(flatten)]
    pub backing: BackingArguments,
    /// The moment: order:N (just after that entry), RFC 3339, -15m, bookmark:NAME, image:NAME, ns since 1970, end
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, required_unless_present = "image")]
    pub at: Option<When>,
    #[command(flatten)]
    pub network: NetworkArguments,
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
        Image::Create(arguments) => named::create(arguments),
        Image::List(arguments) => named::list(arguments),
        Image::Remove(arguments) => named::remove(arguments),
    }
}

fn serve(arguments: &Serve) -> Result<(), Error> {
    let reader = JournalReader::open(&arguments.journal)?;
    let (volume, at) = what(arguments, &reader)?;
    let backing = arguments.backing.backing(&reader, &volume, at)?;
    let progress = bar("reading", Unit::Of("entries"));
    let image = journal::image::Image::open(
        reader,
        &volume,
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
    let listeners = arguments.network.listen()?;
    let shutdown =
        nbd::Shutdown::new().map_err(|e| Error::Failed(format!("preparing to be stopped: {e}")))?;
    stop::on_signal(shutdown.clone())?;
    announce(&listeners, &volume, &facts, backing)?;
    let opened = Opened {
        journal: arguments.journal.clone(),
        volume,
        over_primary: matches!(backing, Backing::Primary(_)),
        backing: backing.path().to_owned(),
        allow_gaps: arguments.allow_gaps,
    };
    let pointed = Arc::new(Pointed::new(opened, image));
    Pointed::keep_looking(&pointed)?;
    let exports: Vec<Arc<dyn nbd::Export>> = vec![Arc::new(ImageExport::new(pointed, scratch))];
    let served = nbd::serve(&listeners, &exports, &shutdown)
        .map_err(|e| Error::Failed(format!("{}: serving: {e}", uris(&listeners, ""))))?;
    eprintln!("stopped after {}", count(served.connections, "connection", "connections"));
    Ok(())
}

/// The volume and the moment that are asked for.
fn what(arguments: &Serve, reader: &JournalReader) -> Result<(String, Moment), Error> {
    let tables = reader.tables();
    match (&arguments.image, &arguments.volume, &arguments.at) {
        (Some(name), _, _) => {
            let image = tables.image(name)?;
            let gone = || Error::Failed(format!("image {name} is of a volume that the journal doesn't know"));
            let volume = tables.volume_at(image.volume).ok_or_else(gone)?;
            Ok((volume.name(), Moment::Order(image.order)))
        }
        (None, Some(volume), Some(at)) => Ok((volume.clone(), at.resolve(tables)?)),
        _ => Err(Error::Misuse("give --volume and --at, or --image".into())),
    }
}

/// Says that clients may come, and what they will see.
fn announce(
    listeners: &[nbd::Listener],
    volume: &str,
    facts: &ImageFacts,
    backing: Backing<'_>,
) -> Result<(), Error> {
    let moment = match facts.order {
        0 => "before the first write".to_owned(),
        order => format!("just after order:{order} ({})", rfc3339(facts.timestamp)),
    };
    let mut output = Output::new();
    output.line(format!("serving volume {volume} as it was {moment}: {}", uris(listeners, "")))?;
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
