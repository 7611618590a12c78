//! Moments as a user names them.

use crate::error::Error;
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

#[cfg(test)]
mod tests {
    use super::*;

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
