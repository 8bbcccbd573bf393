//! Values with units, as people write them: lengths of time and rates. A bare number is refused: nobody should have to
//! guess its unit.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

/// Why a value with a unit could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a length of time.
    #[error(
        "`{0}` is no length of time: write a number with a unit (ms, s, m, h, d), as in `10s` or `1h30m`"
    )]
    Span(String),
    /// Not a rate.
    #[error(
        "`{0}` is no rate: write a whole number with a unit per second (B, kB, KiB, MB, MiB, GB, GiB, or kbit, Mbit, Gbit), as in `10MB/s` or `100Mbit/s`"
    )]
    Rate(String),
    /// Not a size.
    #[error(
        "`{0}` is no size: write a whole number with a unit (B, kB, KiB, MB, MiB, GB, GiB), as in `64MiB`"
    )]
    Size(String),
    /// A rate that cannot be kept.
    #[error("rate `{0}` is out of range: 1kB/s to 1000GB/s")]
    RateRange(String),
}

/// A length of time written with units: `10s`, `1h30m`, `250ms`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Span(text.to_owned());
        let mut total = Duration::ZERO;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let letters = rest
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(rest.len());
            let unit = match &rest[..letters] {
                "ms" => Duration::from_millis(1),
                "s" => Duration::from_secs(1),
                "m" => Duration::from_secs(60),
                "h" => Duration::from_secs(3600),
                "d" => Duration::from_secs(24 * 3600),
                _ => return Err(bad()),
            };
            rest = &rest[letters..];
            let number = u32::try_from(number).map_err(|_| bad())?;
            let part = unit.checked_mul(number).ok_or_else(bad)?;
            total = total.checked_add(part).ok_or_else(bad)?;
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0s");
        }
        let mut seconds = self.0.as_secs();
        for (size, unit) in [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")] {
            if seconds >= size {
                write!(f, "{}{unit}", seconds / size)?;
                seconds %= size;
            }
        }
        match self.0.subsec_millis() {
            0 => Ok(()),
            millis => write!(f, "{millis}ms"),
        }
    }
}

/// Bytes per second: `10MB/s`, `512KiB/s`, `100Mbit/s`. `k`, `M` and `G` are powers of 1,000, `Ki`, `Mi` and `Gi` of 1,024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(NonZeroU64);

/// A rate's least and most bytes per second.
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000;

impl Rate {
    /// Bytes per second.
    #[must_use]
    pub const fn bytes_per_second(self) -> u64 {
        self.0.get()
    }
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Rate(text.to_owned());
        let amount = text.trim().strip_suffix("/s").ok_or_else(bad)?;
        let digits = amount.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = amount.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        // In bits, so that both kinds have whole factors.
        let factor: u64 = match unit.trim_start() {
            "B" => 8,
            "kB" | "KB" => 8_000,
            "MB" => 8_000_000,
            "GB" => 8_000_000_000,
            "KiB" => 8 << 10,
            "MiB" => 8 << 20,
            "GiB" => 8 << 30,
            "kbit" | "Kbit" => 1_000,
            "Mbit" => 1_000_000,
            "Gbit" => 1_000_000_000,
            _ => return Err(bad()),
        };
        let range = || UnitError::RateRange(text.to_owned());
        let bytes = number.checked_mul(factor).ok_or_else(range)? / 8;
        NonZeroU64::new(bytes)
            .filter(|bytes| RATES.contains(&bytes.get()))
            .map(Self)
            .ok_or_else(range)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0.get()))
    }
}

/// A number of bytes: `64MiB`, `10MB`. Units as in [`Rate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const SIZES: [(u64, &str); 8] = [
    (1_000_000_000, "GB"),
    (1 << 30, "GiB"),
    (1_000_000, "MB"),
    (1 << 20, "MiB"),
    (1_000, "kB"),
    (1_000, "KB"),
    (1 << 10, "KiB"),
    (1, "B"),
];

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bad = || UnitError::Size(text.to_owned());
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let (size, _) = SIZES
            .into_iter()
            .find(|(_, name)| *name == unit.trim_start())
            .ok_or_else(bad)?;
        number.checked_mul(size).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Size {
    /// In the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, unit) = SIZES
            .into_iter()
            .find(|(size, _)| self.0 > 0 && self.0.is_multiple_of(*size))
            .unwrap_or((1, "B"));
        write!(f, "{}{unit}", self.0 / size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_take_units_and_nothing_else() {
        let parse = |text: &str| text.parse::<Span>().map(|span| span.0);
        assert_eq!(parse("10s").unwrap(), Duration::from_secs(10));
        assert_eq!(parse("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(parse("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(parse("7d").unwrap(), Duration::from_secs(604_800));
        for bad in [
            "",
            "10",
            "s",
            "10 s",
            "-1s",
            "1.5h",
            "10x",
            "99999999999999999999s",
            "4294967295d4294967295d9s9",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("unit"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_span_prints_what_it_parses() {
        for text in ["10s", "1h30m", "250ms", "7d", "1d2h3m4s5ms", "0s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn rates_are_bytes_or_bits_per_second() {
        let parse = |text: &str| text.parse::<Rate>().map(Rate::bytes_per_second);
        for (text, bytes) in [
            ("10MB/s", 10_000_000),
            ("512KiB/s", 524_288),
            ("100Mbit/s", 12_500_000),
            ("1 Gbit/s", 125_000_000),
            ("1000B/s", 1_000),
            ("2KB/s", 2_000),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in [
            "", "10", "10MB", "MB/s", "10mb/s", "1.5MB/s", "-1MB/s", "10MB/m",
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("as in `10MB/s`"), "{bad}: {error}");
        }
        for bad in ["0MB/s", "999B/s", "99999999999GB/s"] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains("out of range"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_size_prints_what_it_parses() {
        for text in ["64MiB", "1GB", "3GiB", "1001B", "7kB", "0B"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for bad in ["", "64", "MiB", "1.5MB", "99999999999GiB"] {
            let error = bad.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("as in `64MiB`"), "{error}");
        }
    }

    #[test]
    fn a_rate_prints_what_it_parses() {
        for text in ["10MB/s", "512KiB/s", "1GB/s", "3GiB/s", "1001B/s", "7kB/s"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
    }
}
