//! How much journal a schedule needs: from the rate at which it is written, and from what merging makes of that.

use crate::error::Error;
use crate::output::{bytes, Output};
use crate::size::say;
use journal::{span_text, JournalReader, Level, LevelReach};
use serde::Serialize;

/// Most entries that are looked at to see how much they overlap.
const SAMPLE: u64 = 1 << 20;

/// What a schedule needs, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
pub struct Need {
    /// Of every level together, with what is reserved.
    pub bytes: u64,
    /// Is the journal large enough for that?
    pub fits: bool,
    /// How long the journal lasts under the schedule, from now on; `null`: for ever.
    pub lasts_seconds: Option<f64>,
    pub levels: Vec<LevelNeed>,
}

/// A level's part of it.
#[derive(Serialize)]
pub struct LevelNeed {
    /// ns; 0: every write.
    pub window: u64,
    /// How far back it begins and ends, ns.
    pub from: u64,
    pub to: u64,
    /// Bytes that are left of a byte as it was received.
    pub ratio: f64,
    /// Where that is from: `received` (nothing is merged), `merged` (windows of this level), `overlap` (of the
    /// newest writes).
    pub measured: &'static str,
    pub bytes: u64,
}

/// What the journal's schedule needs at so many bytes a second. `fixed` is what no level may take, `capacity` all that
/// there is.
pub fn need(reader: &JournalReader, rate: f64, fixed: u64, capacity: u64) -> Result<Option<Need>, Error> {
    let schedule = reader.tables().schedule.levels();
    if schedule.is_empty() {
        return Ok(None);
    }
    let reached = reader.levels()?;
    let mut levels = Vec::new();
    let mut from = 0;
    for (at, level) in schedule.iter().enumerate() {
        let (ratio, measured) = ratio(reader, at, level, &reached)?;
        let need = LevelNeed { window: level.window, from, to: level.keep, ratio, measured, bytes: 0 };
        // What is older than a level keeps waits for its window to end.
        let span = (level.keep - from + schedule.get(at + 1).map_or(level.window, |next| next.window)) as f64;
        levels.push(LevelNeed { bytes: (rate * ratio * span / 1e9).ceil() as u64, ..need });
        from = level.keep;
    }
    let bytes = levels.iter().map(|level| level.bytes).sum::<u64>().saturating_add(fixed);
    let fits = bytes <= capacity;
    let lasts_seconds = match fits {
        true => None,
        false => Some(lasts(&levels, rate, &reached, capacity.saturating_sub(fixed))),
    };
    Ok(Some(Need { bytes, fits, lasts_seconds, levels }))
}

fn ratio(
    reader: &JournalReader,
    at: usize,
    level: &Level,
    reached: &[LevelReach],
) -> Result<(f64, &'static str), Error> {
    if at == 0 {
        return Ok((1.0, "received"));
    }
    let received = reached.first().filter(|every| every.writes > 0);
    let merged = reached.iter().find(|reach| reach.window == level.window && reach.writes > 0);
    if let (Some(received), Some(merged)) = (received, merged) {
        // Of a write: what it took when it came, and what is left of it.
        let each = |reach: &LevelReach| reach.bytes as f64 / reach.writes as f64;
        return Ok((each(merged) / each(received), "merged"));
    }
    let (then, now) = reader.overlap(level.window, SAMPLE)?;
    let ratio = if now == 0 { 1.0 } else { then as f64 / now as f64 };
    // Merging where that frees nothing is left undone.
    Ok((ratio.min(1.0), "overlap"))
}

/// Seconds until what the history takes is `capacity`: it grows older, and level after level fills.
fn lasts(levels: &[LevelNeed], rate: f64, reached: &[LevelReach], capacity: u64) -> f64 {
    let oldest = reached.last().map_or(0, |oldest| oldest.from);
    let newest = reached.first().map_or(0, |every| every.to);
    let age = newest.saturating_sub(oldest) as f64;
    let takes = |age: f64| -> f64 {
        let of = |level: &LevelNeed| {
            let span = (age.min(level.to as f64) - level.from as f64).max(0.0);
            rate * level.ratio * span / 1e9
        };
        levels.iter().map(of).sum()
    };
    let now: u64 = reached.iter().map(|reach| reach.bytes).sum();
    let wanted = takes(age) + capacity.saturating_sub(now) as f64;
    // It only grows, piece by piece in a straight line.
    let mut from = age;
    for level in levels.iter().filter(|level| level.to as f64 > age) {
        let to = level.to as f64;
        if takes(to) >= wanted {
            let slope = (takes(to) - takes(from)) / (to - from);
            return (from - age + (wanted - takes(from)).max(0.0) / slope.max(f64::MIN_POSITIVE)) / 1e9;
        }
        from = to;
    }
    (from - age) / 1e9
}

/// For people.
pub fn print(need: &Need, schedule: &str, capacity: u64, output: &mut Output) -> Result<(), Error> {
    let verdict = match (need.fits, need.lasts_seconds) {
        (false, Some(seconds)) => format!("more than there is: full in {}", say(seconds)),
        _ => format!("of {}: it lasts", bytes(capacity)),
    };
    output.line(format!("  the schedule {schedule} needs {}, {verdict}", bytes(need.bytes)))?;
    for level in &need.levels {
        let (name, how) = match level.measured {
            "received" => ("all".to_owned(), "as it is received".to_owned()),
            "merged" => (span_text(level.window), format!("{} as its windows show", percent(level.ratio))),
            _ => (span_text(level.window), format!("{} as the newest writes overlap", percent(level.ratio))),
        };
        output.line(format!(
            "    {name:>6} from {} to {} back: {}, {how}",
            span_text(level.from),
            span_text(level.to),
            bytes(level.bytes)
        ))?;
    }
    Ok(())
}

fn percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(from: u64, to: u64, ratio: f64) -> LevelNeed {
        LevelNeed { window: 0, from: from * SECOND, to: to * SECOND, ratio, measured: "overlap", bytes: 0 }
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_journal_fills_level_by_level() {
        let levels = [level(0, 100, 1.0), level(100, 1000, 0.1)];
        let reached = |age: u64, bytes| {
            [LevelReach { from: SECOND, to: (1 + age) * SECOND, bytes, ..LevelReach::default() }]
        };
        // 10 bytes a second: 1000 bytes for the first level, then one byte a second.
        let rest = |age, bytes, capacity| lasts(&levels, 10.0, &reached(age, bytes), capacity).round();
        assert_eq!(rest(0, 0, 500), 50.0);
        assert_eq!(rest(40, 400, 1000), 60.0);
        assert_eq!(rest(40, 400, 1100), 160.0);
        assert_eq!(rest(200, 1100, 1500), 400.0);
        assert_eq!(rest(200, 1100, 1000), 0.0, "it is full");
    }
}
