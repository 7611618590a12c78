//! Moments as a user names them.

use crate::error::Error;
use crate::tables::Tables;
use crate::writer::now;
use std::fmt;
use std::str::FromStr;

/// A moment of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Just after everything stamped at or before this, ns since the Unix epoch.
    Timestamp(u64),
    /// Just after the entry with this order number; 0: before the first.
    Order(u64),
    /// After everything that the journal holds.
    End,
}

impl FromStr for Moment {
    type Err = Error;

    /// `end`, `order:N`, nanoseconds since the Unix epoch, or RFC 3339.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why: String| {
            Error::Invalid(format!(
                "'{text}' is no moment{why}: give `end`, `order:N`, nanoseconds since 1970, or a time \
                 such as 2026-01-31T12:00:00.5Z"
            ))
        };
        if text == "end" {
            return Ok(Moment::End);
        }
        if let Some(number) = text.strip_prefix("order:") {
            return number.parse().map(Moment::Order).map_err(|e| wrong(format!(" ({e})")));
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Moment::Timestamp).map_err(|e| wrong(format!(" ({e})")));
        }
        let time: jiff::Timestamp = text.parse().map_err(|e| wrong(format!(" ({e})")))?;
        let nanoseconds = u64::try_from(time.as_nanosecond())
            .map_err(|_| wrong(" (outside 1970 to 2554, which stamps can say)".into()))?;
        Ok(Moment::Timestamp(nanoseconds))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Moment::Timestamp(ns) => write!(f, "{}", rfc3339(*ns)),
            Moment::Order(order) => write!(f, "order:{order}"),
            Moment::End => write!(f, "end"),
        }
    }
}

/// A stamp as RFC 3339 in UTC, with as many digits as it needs.
pub fn rfc3339(nanoseconds: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(nanoseconds)) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{nanoseconds} ns"),
    }
}

/// A length of time such as `15m`, `2h30m` or `7d`, in ns; a day has 24 hours. What is wrong with it, if anything.
pub fn span_nanoseconds(text: &str) -> Result<u64, String> {
    let span: jiff::Span = text.parse().map_err(|e: jiff::Error| e.to_string())?;
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|e| e.to_string())?;
    u64::try_from(duration.as_nanos()).map_err(|_| "it is negative, or too long".into())
}

/// A length of time as [`span_nanoseconds`] takes it: `7d`, `2h 30m`.
pub fn span_text(nanoseconds: u64) -> String {
    let nanoseconds = i64::try_from(nanoseconds).unwrap_or(i64::MAX);
    let days = jiff::SpanRound::new().largest(jiff::Unit::Day).days_are_24_hours();
    match jiff::Span::new().try_nanoseconds(nanoseconds).and_then(|span| span.round(days)) {
        Ok(span) => format!("{span:#}"),
        Err(_) => format!("{nanoseconds}ns"),
    }
}

/// A moment as it is asked for, before a journal has been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// A moment as it stands.
    Moment(Moment),
    /// That long before now, ns.
    Ago(u64),
    /// A bookmark of the journal.
    Bookmark(String),
    /// A named image of the journal: its moment.
    Image(String),
}

impl When {
    /// The moment in a journal with these tables.
    pub fn resolve(&self, tables: &Tables) -> Result<Moment, Error> {
        match self {
            When::Moment(moment) => Ok(*moment),
            When::Ago(nanoseconds) => Ok(Moment::Timestamp(now().saturating_sub(*nanoseconds))),
            When::Bookmark(name) => tables.bookmark(name).map(|bookmark| Moment::Order(bookmark.order)),
            When::Image(name) => tables.image(name).map(|image| Moment::Order(image.order)),
        }
    }
}

impl FromStr for When {
    type Err = Error;

    /// What [`Moment`] takes, `bookmark:NAME`, `image:NAME`, or a time before now such as `-15m` and `-1d2h`.
    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(name) = text.strip_prefix("bookmark:") {
            return Ok(When::Bookmark(name.to_owned()));
        }
        if let Some(name) = text.strip_prefix("image:") {
            return Ok(When::Image(name.to_owned()));
        }
        let Some(ago) = text.strip_prefix('-') else {
            return text.parse().map(When::Moment);
        };
        let wrong = |why: String| {
            Error::Invalid(format!(
                "'{text}' is no time before now ({why}): give -15m, -2h30m, -1d or the like"
            ))
        };
        span_nanoseconds(ago).map(When::Ago).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_now_and_bookmarks_parse() {
        let minute = 60_000_000_000;
        assert_eq!("-15m".parse::<When>().unwrap(), When::Ago(15 * minute));
        assert_eq!("-1d2h30m".parse::<When>().unwrap(), When::Ago((26 * 60 + 30) * minute));
        assert_eq!(
            "bookmark:before migration".parse::<When>().unwrap(),
            When::Bookmark("before migration".into())
        );
        assert_eq!("image:monday".parse::<When>().unwrap(), When::Image("monday".into()));
        assert_eq!("order:7".parse::<When>().unwrap(), When::Moment(Moment::Order(7)));
        for bad in ["-", "-x", "--15m", "-15", "noon"] {
            bad.parse::<When>().unwrap_err();
        }
    }

    #[test]
    fn moments_parse_and_print() {
        assert_eq!("end".parse::<Moment>().unwrap(), Moment::End);
        assert_eq!("order:17".parse::<Moment>().unwrap(), Moment::Order(17));
        assert_eq!(
            "1700000000000000001".parse::<Moment>().unwrap(),
            Moment::Timestamp(1_700_000_000_000_000_001)
        );
        assert_eq!(
            "2023-11-14T22:13:20.000000001Z".parse::<Moment>().unwrap(),
            Moment::Timestamp(1_700_000_000_000_000_001)
        );
        assert_eq!(
            "2023-11-14T23:13:20+01:00".parse::<Moment>().unwrap(),
            Moment::Timestamp(1_700_000_000_000_000_000)
        );
        assert_eq!(rfc3339(1_700_000_000_000_000_001), "2023-11-14T22:13:20.000000001Z");
        for bad in [
            "",
            "order:",
            "order:-1",
            "order:x",
            "yesterday",
            "1969-12-31T23:59:59Z",
            "2600-01-01T00:00:00Z",
            "99999999999999999999999",
        ] {
            let error = bad.parse::<Moment>().unwrap_err().to_string();
            assert!(error.contains("order:N"), "{bad}: {error}");
        }
    }
}
