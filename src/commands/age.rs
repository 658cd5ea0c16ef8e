//! Ages and other durations on the command line: 90s, 15m, 2h, 7d.

use std::str::FromStr;
use std::time::Duration;

/// A hundred years: a larger number is a mistake, and a much larger one is no time that can be computed.
const MAX_AGE_S: u64 = 100 * 365 * 86_400;

/// A duration: a number and one of the units s, m, h, d.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age(pub(super) Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" must be a number with one of the units s, m, h, d");
        let unit = match text.chars().next_back() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3_600,
            Some('d') => 86_400,
            _ => return Err(wrong()),
        };
        let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        let seconds = number.checked_mul(unit).ok_or_else(wrong)?;
        if seconds > MAX_AGE_S {
            return Err(format!("\"{text}\" is more than a hundred years"));
        }
        Ok(Self(Duration::from_secs(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_read_as_people_write_them() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("2h", 7_200), ("7d", 604_800), ("0s", 0)] {
            assert_eq!(text.parse(), Ok(Age(Duration::from_secs(seconds))), "{text}");
        }
        for text in ["", "7", "d", "-1s", "1.5h", "7 d", "99999999999999999999d", "36501d", "1ü"] {
            assert!(text.parse::<Age>().is_err(), "{text}");
        }
    }
}
