//! When what is merged: how far back every write is kept, and in which windows what lies further back.

use crate::moment::{span_nanoseconds, span_text};
use layout::journal_file::PORTIONS;
use std::fmt;
use std::str::FromStr;

/// How far back moments of one window length are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Length of a window in ns; 0: every write.
    pub window: u64,
    /// How far back, ns.
    pub keep: u64,
    /// How far back when room runs short, ns; at most `keep`.
    pub least: u64,
}

/// The levels, from every write to the longest windows. Without any, nothing is ever merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule(Vec<Level>);

impl Schedule {
    /// A schedule of these levels. What is wrong with them, if anything.
    pub fn new(levels: Vec<Level>) -> Result<Self, String> {
        if levels.len() > PORTIONS {
            return Err(format!("{} levels; a journal has room for {PORTIONS}", levels.len()));
        }
        for level in &levels {
            if level.keep == 0 || level.least == 0 || level.least > level.keep {
                return Err(format!(
                    "{level}: what is kept when room is short is more than nothing and at most what is kept"
                ));
            }
            // Index rows have seven bytes for a window's length.
            if level.window >= 1 << 56 {
                return Err(format!("{level}: windows of more than two years"));
            }
        }
        if levels.first().is_some_and(|first| first.window != 0) {
            return Err("the first level is `all`: how far back every write is kept".into());
        }
        for pair in levels.windows(2) {
            let (finer, coarser) = (pair[0], pair[1]);
            let nests =
                coarser.window > finer.window && (finer.window == 0 || coarser.window % finer.window == 0);
            if !nests {
                return Err(format!(
                    "{coarser} after {finer}: windows grow, each a multiple of the one before"
                ));
            }
            if coarser.keep <= finer.keep || coarser.least < finer.least {
                return Err(format!("{coarser} after {finer}: longer windows are kept longer"));
            }
        }
        Ok(Self(levels))
    }

    /// The levels; the first is every write.
    pub fn levels(&self) -> &[Level] {
        &self.0
    }

    /// Is nothing ever merged?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for Schedule {
    type Err = String;

    /// `all:24h,1m:7d,1h:30d`: every write for 24 h, a moment a minute for 7 days, one an hour for 30 days, then
    /// nothing. `KEEP/LEAST` says how far it may shrink when room runs short. `none`: nothing is ever merged.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let levels = text.split(',').map(level).collect::<Result<Vec<_>, _>>()?;
        Self::new(levels)
    }
}

fn level(text: &str) -> Result<Level, String> {
    let wrong = |why: &str| {
        format!(
            "'{text}' is no level{why}: give WINDOW:KEEP or WINDOW:KEEP/LEAST, such as all:24h or 1m:7d/2d"
        )
    };
    let (window, keep) = text.trim().split_once(':').ok_or_else(|| wrong(""))?;
    let (keep, least) = keep.split_once('/').unwrap_or((keep, keep));
    let span = |text: &str| span_nanoseconds(text).map_err(|why| wrong(&format!(" ({why})")));
    let window = match window {
        "all" => 0,
        other => match span(other)? {
            0 => return Err(wrong(" (a window of no length)")),
            length => length,
        },
    };
    Ok(Level { window, keep: span(keep)?, least: span(least)? })
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window {
            0 => write!(f, "all")?,
            window => write!(f, "{}", span_text(window))?,
        }
        write!(f, ":{}", span_text(self.keep))?;
        match self.least == self.keep {
            true => Ok(()),
            false => write!(f, "/{}", span_text(self.least)),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "none");
        }
        for (index, level) in self.0.iter().enumerate() {
            if index > 0 {
                write!(f, ",")?;
            }
            write!(f, "{level}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_parse_print_and_refuse() {
        let schedule: Schedule = "all:24h/4h,1m:7d,1h:30d".parse().unwrap();
        let hour = 3_600_000_000_000;
        assert_eq!(schedule.levels()[0], Level { window: 0, keep: 24 * hour, least: 4 * hour });
        assert_eq!(schedule.levels()[2], Level { window: hour, keep: 720 * hour, least: 720 * hour });
        assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
        assert!("none".parse::<Schedule>().unwrap().is_empty());
        for bad in [
            "",
            "all",
            "1m:7d",
            "all:0s",
            "all:1h,1m:1h",
            "all:1h,7s:1d,10s:2d",
            "all:1h/2h",
            "all:1h,0s:2d",
            "all:1h,1m:2h,1m:3h",
            "all:x",
            "all:1h/30m,1m:1d/10m",
        ] {
            assert!(bad.parse::<Schedule>().is_err(), "{bad}");
        }
    }
}
