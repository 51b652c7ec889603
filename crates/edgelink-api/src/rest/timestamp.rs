//! Moments.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A moment as RFC 3339 in UTC with milliseconds, such as `2023-11-14T22:13:20.500Z`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime, example = "2023-11-14T22:13:20.500Z"))]
#[serde(transparent)]
pub struct Timestamp(String);

impl Timestamp {
    /// From Unix milliseconds.
    pub fn from_unix_ms(ms: u64) -> Self {
        let (seconds, millis) = (ms / 1000, ms % 1000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(days);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        Self(format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{millis:03}Z"))
    }

    /// To Unix milliseconds; `None` for what [`Self::from_unix_ms`] would not write. Seconds may lack their fraction.
    pub fn to_unix_ms(&self) -> Option<u64> {
        let text = self.0.strip_suffix('Z')?;
        let (date, time) = text.split_once('T')?;
        let (time, millis) = match time.split_once('.') {
            Some((time, fraction)) if fraction.len() == 3 => (time, number(fraction, 999)?),
            Some(_) => return None,
            None => (time, 0),
        };
        let mut date = date.splitn(3, '-');
        let (year, month, day) = (date.next()?, date.next()?, date.next()?);
        let mut time = time.splitn(3, ':');
        let (h, m, s) = (time.next()?, time.next()?, time.next()?);
        if year.len() != 4 || [month, day, h, m, s].iter().any(|part| part.len() != 2) {
            return None;
        }
        let (year, month, day) = (number(year, 9999)?, number(month, 12)?, number(day, 31)?);
        let days = days(year, month, day)?;
        let seconds = days * 86_400 + number(h, 23)? * 3600 + number(m, 59)? * 60 + number(s, 59)?;
        Some(seconds * 1000 + millis)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Year, month and day of the proleptic Gregorian calendar, `days` after 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    // Count from 0000-03-01, so that the leap day ends a year and 400 years are a whole cycle.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil`]; `None` before 1970 and for days that there are not.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || month == 0 || day == 0 {
        return None;
    }
    let (year_from_march, month_from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year_from_march / 400, year_from_march % 400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    (civil(days) == (year, month, day)).then_some(days)
}

fn number(digits: &str, max: u64) -> Option<u64> {
    let digits = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().filter(|n| *n <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        // date -u -d @N +%FT%T
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00"),
            (68_169_599, "1972-02-28T23:59:59"),
            (68_169_600, "1972-02-29T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_700_000_000, "2023-11-14T22:13:20"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (4_107_542_399, "2100-02-28T23:59:59"),
            (253_402_300_799, "9999-12-31T23:59:59"),
        ] {
            assert_eq!(Timestamp::from_unix_ms(seconds * 1000 + 7).as_str(), format!("{want}.007Z"));
            assert_eq!(Timestamp(format!("{want}.007Z")).to_unix_ms(), Some(seconds * 1000 + 7));
            assert_eq!(Timestamp(format!("{want}Z")).to_unix_ms(), Some(seconds * 1000));
        }
    }

    #[test]
    fn what_is_no_moment_is_none() {
        for bad in [
            "",
            "now",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-11-14 22:13:20Z",
            "2023-02-29T00:00:00Z",
            "2023-11-31T00:00:00Z",
            "1969-12-31T23:59:59Z",
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13:20.5Z",
            "2023-11-14T22:13:20+01:00",
            "2023-1-14T22:13:20Z",
            "-023-11-14T22:13:20Z",
            "2023-00-14T22:13:20Z",
            "2023-11-14T22:13:20.500ZZ",
            "2023-11-14T+2:13:20Z",
        ] {
            assert_eq!(Timestamp(bad.to_owned()).to_unix_ms(), None, "{bad}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..400 * 366 {
            assert_eq!(civil(days), (year, month, day), "{days}");
            assert_eq!(super::days(year, month, day), Some(days));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
