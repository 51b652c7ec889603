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

    /// To Unix milliseconds: any RFC 3339 date-time, also with an offset or other decimals; what lies before 1970 is 0.
    /// `None` for anything else.
    pub fn to_unix_ms(&self) -> Option<u64> {
        let text = self.0.as_str();
        if !text.is_ascii() || text.len() < 20 {
            return None;
        }
        let (date, rest) = text.split_at(10);
        let rest = rest.strip_prefix(['T', 't'])?;
        let (time, rest) = rest.split_at(8);
        let (millis, offset) = match rest.strip_prefix('.') {
            Some(rest) => {
                let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
                let (fraction, offset) = rest.split_at(digits);
                let thousandths: String = fraction.chars().chain("00".chars()).take(3).collect();
                (number(&thousandths, 999).filter(|_| digits > 0)?, offset)
            }
            None => (0, rest),
        };
        let [year, month, day] = parts(date, '-', [4, 2, 2])?;
        let [h, m, s] = parts(time, ':', [2, 2, 2])?;
        // A leap second is the next minute's first.
        if h > 23 || m > 59 || s > 60 {
            return None;
        }
        let offset = match offset {
            "Z" | "z" => 0,
            _ => {
                let sign = if offset.starts_with('-') { -1 } else { 1 };
                let [h, m] = parts(offset.strip_prefix(['+', '-'])?, ':', [2, 2])?;
                sign * i64::try_from(number_within(h, 23)? * 3600 + number_within(m, 59)? * 60).ok()?
            }
        };
        let seconds = days(year, month, day)? * 86_400 + i64::try_from(h * 3600 + m * 60 + s).ok()? - offset;
        Some(u64::try_from(seconds).map_or(0, |seconds| seconds * 1000 + millis))
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

/// Days from 1970-01-01; `None` for days that there are not.
fn days(year: u64, month: u64, day: u64) -> Option<i64> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day == 0 || day > length {
        return None;
    }
    // Counted from March, as in `civil`, and from the year -400, so that nothing is negative before the end.
    let year = year + 400 - u64::from(month <= 2);
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    i64::try_from(era * 146_097 + day_of_era).ok().map(|days| days - 719_468 - 146_097)
}

/// Numbers of exactly so many digits each, between separators.
fn parts<const N: usize>(text: &str, separator: char, lengths: [usize; N]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(separator);
    for (slot, length) in numbers.iter_mut().zip(lengths) {
        let part = parts.next().filter(|part| part.len() == length)?;
        *slot = number(part, u64::MAX)?;
    }
    parts.next().is_none().then_some(numbers)
}

fn number(digits: &str, max: u64) -> Option<u64> {
    let digits = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().filter(|n| *n <= max)
}

fn number_within(number: u64, max: u64) -> Option<u64> {
    Some(number).filter(|n| *n <= max)
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
    fn any_rfc_3339_moment_is_understood() {
        for (text, ms) in [
            ("2023-11-14T22:13:20.5Z", 1_700_000_000_500),
            ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123),
            ("2023-11-14t23:13:20z", 1_700_003_600_000),
            ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
            ("2023-11-14T14:13:20-08:00", 1_700_000_000_000),
            ("1970-01-01T00:30:00+01:00", 0),
            ("1969-12-31T23:59:59Z", 0),
            ("0000-02-29T00:00:00Z", 0),
        ] {
            assert_eq!(Timestamp(text.to_owned()).to_unix_ms(), Some(ms), "{text}");
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
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20+1:00",
            "2023-11-14T22:13:20+24:00",
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
            assert_eq!(super::days(year, month, day), i64::try_from(days).ok());
            let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
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
