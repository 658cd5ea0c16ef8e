//! Numbers on the command line, refused in words that say what is allowed.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A share or a probability.
pub(super) fn share(text: &str) -> Result<f64, String> {
    within(text, 0.0..=1.0)
}

/// A number in a range. NaN is in none.
pub(super) fn within(text: &str, range: RangeInclusive<f64>) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("\"{text}\" is not a number from {} to {}", range.start(), range.end()))
}

/// A number that is not negative.
pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| format!("\"{text}\" is not a number of 0 or more"))
}

/// A whole number of any size.
pub(super) fn whole<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not a whole number of 0 or more"))
}

/// A whole number in a range.
pub(super) fn whole_within<N: FromStr + PartialOrd + Display>(
    text: &str,
    range: RangeInclusive<N>,
) -> Result<N, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("\"{text}\" is not a whole number from {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_refused_with_what_is_allowed() {
        assert_eq!(share("0.5"), Ok(0.5));
        assert_eq!(share("0,5").unwrap_err(), "\"0,5\" is not a number from 0 to 1");
        assert!(share("NaN").is_err() && share("1.1").is_err());
        assert_eq!(within("x", 0.01..=3600.0).unwrap_err(), "\"x\" is not a number from 0.01 to 3600");
        assert!(not_negative("inf").is_err() && not_negative("-1").is_err());
        assert_eq!(whole::<u64>("7"), Ok(7));
        assert_eq!(whole::<u64>("-1").unwrap_err(), "\"-1\" is not a whole number of 0 or more");
        assert_eq!(whole_within("0", 1..=9u32).unwrap_err(), "\"0\" is not a whole number from 1 to 9");
    }
}
