//! Images of a replayed capture, against the naive model and against what the target had.

use crate::agent::agent;
use crate::capture::Write;
use crate::model::{CaptureSet, Volume};
use journal::image::{Backing, Image};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What images are made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The volume from before the first write, and after-images.
    Base,
    /// The volume as it is after the last one, and before-images.
    Primary,
}

impl Over {
    /// The file in the folder of [`CaptureSet::replay_arguments`].
    pub fn file(self, folder: &Path, volume: &str) -> PathBuf {
        folder.join(match self {
            Over::Base => format!("{volume}.base"),
            Over::Primary => format!("{volume}.img"),
        })
    }

    fn option(self) -> &'static str {
        match self {
            Over::Base => "--base",
            Over::Primary => "--primary",
        }
    }
}

/// Restores a volume as it was at a moment into `out`, by the program.
#[track_caller]
pub fn restore(folder: &Path, over: Over, volume: &str, at: &str, out: &Path) {
    let [journal, backing, out] =
        [folder.join("journal"), over.file(folder, volume), out.to_owned()].map(|p| p.display().to_string());
    let arguments = ["--volume", volume, over.option(), &backing, "--at", at, "--to", &out, "--force"];
    agent(["restore", &journal].iter().chain(&arguments)).fine();
}

/// The image of every order of the journal is what the model has then.
///
/// The journal crate restores here, for that is quicker than starting a program a thousand times.
#[track_caller]
pub fn every_order_equals_the_naive_model(set: &CaptureSet, folder: &Path, over: Over, ordered: &[&Write]) {
    for (name, size) in set.volumes() {
        let mut model = Volume::new(&name, size);
        let file = over.file(folder, &name);
        let mut bytes = vec![0; size as usize];
        for order in 0..=ordered.len() {
            if order > 0 {
                model.apply(ordered[order - 1]);
            }
            let reader = journal::JournalReader::open(&folder.join("journal")).expect("the journal");
            let at = journal::Moment::Order(order as u64);
            let backing = match over {
                Over::Base => Backing::Base(&file),
                Over::Primary => Backing::Primary(&file),
            };
            let image = Image::open(reader, &name, at, backing, false, &mut |_, _| {});
            let image = image.unwrap_or_else(|e| panic!("volume {name}, order:{order} over {over:?}: {e}"));
            assert_eq!(image.facts().order, order as u64);
            image.read_at(&mut bytes, 0).expect("the image can be read");
            assert!(bytes == model.bytes, "volume {name}, order:{order} over {over:?}");
        }
    }
}

/// At each moment of the capture everything was quiet: the image is the one that vblade had, and one
/// `order:N` is the moment of all volumes.
#[track_caller]
pub fn moments_equal_the_targets_images(set: &CaptureSet, folder: &Path, over: Over, log: &[Value]) {
    let out = folder.join("moment");
    for moment in set.moments["moments"].as_array().expect("moments") {
        let name = &moment["name"];
        let mut orders = Vec::new();
        let mut writes = 0;
        for (volume, at_moment) in moment["volumes"].as_object().expect("volumes") {
            let count = at_moment["writes"].as_u64().expect("a number") as usize;
            let mut of_volume = log.iter().filter(|line| line["volume"] == volume.as_str());
            let last = count.checked_sub(1).and_then(|skipped| of_volume.nth(skipped));
            orders.push(last.map_or(0, |line| line["order"].as_u64().expect("an order")));
            writes += count as u64;
        }
        let order = orders.iter().copied().max().expect("volumes");
        assert_eq!(order, writes, "moment {name}: nothing later comes before it on any port");
        for (volume, at_moment) in moment["volumes"].as_object().expect("volumes") {
            restore(folder, over, volume, &format!("order:{order}"), &out);
            let bytes = std::fs::read(&out).expect("it was restored");
            let image = Volume { name: volume.clone(), bytes };
            assert_eq!(at_moment["sha256"], image.sha256().as_str(), "moment {name}, volume {volume}");
        }
    }
}

/// The replay's target has written what vblade had written at the last moment of the capture.
#[track_caller]
pub fn primaries_equal_the_last_moment(set: &CaptureSet, folder: &Path) {
    let last = set.moments["moments"].as_array().and_then(|moments| moments.last()).expect("moments");
    for (volume, at_moment) in last["volumes"].as_object().expect("volumes") {
        let bytes = std::fs::read(Over::Primary.file(folder, volume)).expect("primary");
        let image = Volume { name: volume.clone(), bytes };
        assert_eq!(at_moment["sha256"], image.sha256().as_str(), "primary of volume {volume}");
    }
}
