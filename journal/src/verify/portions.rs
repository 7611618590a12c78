//! The table of portions in the superblock.

use layout::journal_file::{features, role, Portion, Superblock, PORTIONS};

/// What can't be in the table.
pub(super) fn senseless(s: &Superblock) -> Option<String> {
    let received = &s.portions[0];
    let plain = received.level == 0
        && received.window.get() == 0
        && received.end_sequence.get() == 0
        && received.reserved == [0; 6];
    if received.role != role::RECEIVED || received.first_sequence.get() == 0 || !plain {
        return Some("received portion".into());
    }
    let bits = (s.features_read.get() & features::MERGED, s.features_write.get() & features::MERGED);
    if bits.0 != bits.1 {
        return Some("one word of features knows of merged portions, and the other doesn't".into());
    }
    // From the finest on; each has to fit the one before.
    let mut finer = received;
    for (index, portion) in s.portions.iter().enumerate().skip(1) {
        if portion.role == role::FREE {
            if *portion != free() {
                return Some(format!("portion {index} is free, and there is something in its row"));
            }
            continue;
        }
        if bits.0 == 0 {
            return Some(format!("portion {index} without the feature bit of merged portions"));
        }
        if let Some(what) = merged(index, portion, finer, s.segment_count.get()) {
            return Some(format!("portion {index}: {what}"));
        }
        finer = portion;
    }
    None
}

/// A row that is not in use.
fn free() -> Portion {
    zerocopy::FromZeros::new_zeroed()
}

fn merged(index: usize, p: &Portion, finer: &Portion, segment_count: u32) -> Option<&'static str> {
    let (first, end) = (p.first_sequence.get(), p.end_sequence.get());
    let window = p.window.get();
    let rules = [
        (p.role == role::MERGED && usize::from(p.level) == index && index < PORTIONS, "role or level"),
        (p.reserved == [0; 6], "reserved bytes"),
        (first > 0 && end >= first && end - first <= u64::from(segment_count), "its segments"),
        // An index has seven bytes for a window's length.
        (window > 0 && window < 1 << 56, "length of its windows"),
        (
            finer.window.get() == 0
                || window > finer.window.get() && window.is_multiple_of(finer.window.get()),
            "its windows are no multiple of the finer portion's",
        ),
        (p.after_timestamp.get() <= finer.after_timestamp.get(), "it begins behind the finer portion"),
        (
            p.from_order.get().max(1) <= finer.from_order.get().max(1),
            "its orders begin behind the finer portion's",
        ),
    ];
    rules.iter().find(|(holds, _)| !holds).map(|(_, what)| *what)
}

/// The merged portions in use, with their index, the oldest first.
pub(super) fn merged_oldest_first(s: &Superblock) -> Vec<(usize, Portion)> {
    let used = |(_, portion): &(usize, Portion)| portion.role == role::MERGED;
    s.portions.iter().copied().enumerate().skip(1).filter(used).rev().collect()
}

/// The portion in which history begins.
pub(super) fn oldest(s: &Superblock) -> Portion {
    merged_oldest_first(s).first().map_or(s.portions[0], |(_, portion)| *portion)
}
