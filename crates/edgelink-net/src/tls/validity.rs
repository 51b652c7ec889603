//! The validity period of an X.509 certificate (RFC 5280 §4.1.2.5): the one field that a pinned leaf is still checked
//! for and that neither rustls nor webpki gives away.

/// `(notBefore, notAfter)` in Unix seconds, both inclusive; `None` when the certificate cannot be read.
pub(super) fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if let Some((_, after)) = element(rest, VERSION) {
        rest = after;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        // serialNumber, signature, issuer
        rest = element(rest, tag)?.1;
    }
    let (period, _) = element(rest, SEQUENCE)?;
    let (not_before, period) = time(period)?;
    let (not_after, period) = time(period)?;
    period.is_empty().then_some((not_before, not_after))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// The contents of the DER element with this tag at the start of `input`, and what follows it.
fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    if found == tag { rest.split_at_checked(len) } else { None }
}

/// A UTCTime or GeneralizedTime in the one form that RFC 5280 allows (seconds present, `Z`), and what follows it.
fn time(input: &[u8]) -> Option<(u64, &[u8])> {
    let (year, digits, rest) = if let Some((text, rest)) = element(input, UTC_TIME) {
        let (year, digits) = text.split_at_checked(2)?;
        let year = number(year)?;
        (if year < 50 { 2000 + year } else { 1900 + year }, digits, rest)
    } else {
        let (text, rest) = element(input, GENERALIZED_TIME)?;
        let (year, digits) = text.split_at_checked(4)?;
        (number(year)?, digits, rest)
    };
    let [digits @ .., b'Z'] = digits else { return None };
    let &[m1, m2, d1, d2, h1, h2, n1, n2, s1, s2] = digits else { return None };
    let (month, day) = (number(&[m1, m2])?, number(&[d1, d2])?);
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[n1, n2])?, number(&[s1, s2])?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // A time before 1970 is as good as 1970 here.
    let days = u64::try_from(days_since_epoch(year, month, day)).unwrap_or(0);
    Some((days * 86_400 + u64::from(hour * 3600 + minute * 60 + second), rest))
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |n, digit| digit.is_ascii_digit().then(|| n * 10 + u32::from(digit - b'0')))
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant's `days_from_civil`).
fn days_since_epoch(year: u32, month: u32, day: u32) -> i64 {
    let year = i64::from(year) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * i64::from((month + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(not_before: (i32, u8, u8), not_after: (i32, u8, u8)) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap();
        params.not_before = rcgen::date_time_ymd(not_before.0, not_before.1, not_before.2);
        params.not_after = rcgen::date_time_ymd(not_after.0, not_after.1, not_after.2);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn reads_both_forms_of_time() {
        // From 2050 on, RFC 5280 asks for GeneralizedTime. Expected values: `date -u -d … +%s`.
        let der = certificate((2023, 11, 14), (2049, 12, 31));
        assert_eq!(validity(&der), Some((1_699_920_000, 2_524_521_600)));
        let der = certificate((1996, 2, 29), (4096, 1, 1));
        assert_eq!(validity(&der), Some((825_552_000, 67_090_118_400)));
    }

    #[test]
    fn no_input_panics_and_a_cut_period_is_refused() {
        let der = certificate((2023, 11, 14), (2049, 12, 31));
        let whole = validity(&der);
        for len in 0..der.len() {
            assert_eq!(validity(&der[..len]), None, "cut at {len}: the outer length no longer fits");
        }
        for at in 0..der.len() {
            let mut broken = der.clone();
            broken[at] ^= 0x80;
            let _ = validity(&broken);
        }
        assert!(whole.is_some());
    }

    #[test]
    fn impossible_times_are_refused() {
        for text in [&b"231314000000Z"[..], b"231114240000Z", b"2311140000Z", b"231114000000+", b"23111400000aZ", b""] {
            let mut der = vec![UTC_TIME, u8::try_from(text.len()).unwrap()];
            der.extend_from_slice(text);
            assert_eq!(time(&der), None, "{text:?}");
        }
    }
}
