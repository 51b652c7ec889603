//! Times, shares and rates as people type them.

use std::time::Duration;

/// `40ms`, `1.5s`, `200us`.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write it like 40ms, 1.5s or 200us");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let seconds = match unit {
        "us" | "µs" => number / 1e6,
        "ms" => number / 1e3,
        "s" => number,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// `1%`, `0.5%`: 0 to 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match split(text) {
        Some((number, "%")) if (0.0..=100.0).contains(&number) => Ok(number / 100.0),
        Some((_, "%")) => Err(format!("{text} is out of 0% to 100%")),
        _ => Err(format!("{text:?} is no share; write it like 1% or 0.5%")),
    }
}

/// `100mbit`, `1gbit`, `56kbit`: bits per second.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no rate; write it like 56kbit, 100mbit or 1gbit (per second)");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor = match unit {
        "bit" => 1.0,
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(wrong()),
    };
    let rate = number * factor;
    // A limit well within the numbers that a u64 holds; what a link can do is narrower, and checked there.
    if (1.0..=1e15).contains(&rate) { Ok(rate as u64) } else { Err(wrong()) }
}

fn split(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_is_understood_or_explained() {
        assert_eq!(time("40ms"), Ok(Duration::from_millis(40)));
        assert_eq!(time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(time("200us"), Ok(Duration::from_micros(200)));
        assert_eq!(share("1%"), Ok(0.01));
        assert_eq!(share("100 %"), Ok(1.0));
        assert_eq!(rate("100mbit"), Ok(100_000_000));
        assert_eq!(rate("1.5gbit"), Ok(1_500_000_000));
        for bad in ["", "40", "ms", "-1ms", "1e400s", "40 miles", "1.2.3s"] {
            assert!(time(bad).unwrap_err().contains("is no time"), "{bad}");
        }
        assert_eq!(share("150%").unwrap_err(), "150% is out of 0% to 100%");
        for bad in ["", "0.01", "1", "%", "-1%", "nan%"] {
            assert!(share(bad).unwrap_err().contains("is no share"), "{bad}");
        }
        for bad in ["", "100", "100mb", "0mbit", "-5mbit", "99999999999gbit"] {
            assert!(rate(bad).unwrap_err().contains("is no rate"), "{bad}");
        }
    }
}
