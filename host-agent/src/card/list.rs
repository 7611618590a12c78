//! `host-agent card list`.

use super::{missing, no_card, Place, System};
use crate::error::Error;
use crate::output::Output;
use clap::Args;
use serde::Serialize;

/// `card list`.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    pub at: Place,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// A card, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Line<'a> {
    card: &'a str,
    driver: Option<&'a str>,
    group: Option<u32>,
    ready: bool,
    missing: Vec<missing::Missing>,
}

/// Runs the command.
pub fn run(list: &List) -> Result<(), Error> {
    let system = System::new(&list.at.root);
    let cards = system.cards()?;
    let mut output = Output::new();
    if cards.is_empty() {
        output.note(no_card());
    }
    for card in &cards {
        let missing = missing::of(&system, card)?;
        let line = Line {
            card: &card.address,
            driver: card.driver.as_deref(),
            group: card.group,
            ready: !missing.iter().any(|missing| missing.is_needed),
            missing,
        };
        if list.json {
            output.json(&line)?;
            continue;
        }
        let group = line.group.map_or_else(|| "none".into(), |group| group.to_string());
        let (driver, ready) = (line.driver.unwrap_or("none"), if line.ready { "ready" } else { "not ready" });
        output.line(format!("{}  driver {driver}, IOMMU group {group}: {ready}", line.card))?;
        for missing in &line.missing {
            let severity = if missing.is_needed { "missing" } else { "better" };
            output.line(format!("  {severity}: {}", missing.what))?;
            output.line(format!("    {}", missing.mend))?;
        }
    }
    output.finish()
}
