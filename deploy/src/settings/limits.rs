//! Limits as flags and file write them: `--set-limit NAME=VALUE`, and `limits: {NAME: VALUE}`.

use std::fmt;

use keel_fabric::limits::Limits;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::scalar::Scalar;
use crate::errors::Usage;

/// One limit with another value than its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitSetting {
    name: String,
    value: String,
}

impl std::str::FromStr for LimitSetting {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            Usage(format!(
                "`{text}` sets no limit: write NAME=VALUE, as in `newFlowsPerSecond=5000`"
            ))
        })?;
        let setting = Self {
            name: name.trim().to_owned(),
            value: value.trim().to_owned(),
        };
        setting.apply(&mut Limits::default())?;
        Ok(setting)
    }
}

impl LimitSetting {
    fn apply(&self, limits: &mut Limits) -> Result<(), Usage> {
        limits
            .set(&self.name, &self.value)
            .map_err(|error| Usage(error.to_string()))
    }
}

/// `limits` with everything that was set; the last word on one limit counts.
///
/// # Errors
/// What was set does not fit together.
pub(super) fn set(mut limits: Limits, settings: Vec<LimitSetting>) -> Result<Limits, Usage> {
    for setting in &settings {
        setting.apply(&mut limits)?;
    }
    let (window, most) = (limits.flow.window, limits.flow.max_window);
    if window > most {
        return Err(Usage(format!(
            "limits: flowWindow {window} is larger than flowWindowMax {most}: lower the one or raise the other"
        )));
    }
    Ok(limits)
}

/// Flags over file, limit by limit.
pub(super) fn or(over: Vec<LimitSetting>, under: Vec<LimitSetting>) -> Vec<LimitSetting> {
    under.into_iter().chain(over).collect()
}

/// Deserializes the map of the file.
pub(super) fn settings<'de, D>(deserializer: D) -> Result<Vec<LimitSetting>, D::Error>
where
    D: Deserializer<'de>,
{
    deserializer.deserialize_map(Settings)
}

struct Settings;

impl<'de> Visitor<'de> for Settings {
    type Value = Vec<LimitSetting>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from limits to values, like `{newFlowsPerSecond: 5000}`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
        let mut settings = Vec::new();
        while let Some(name) = all.next_key::<String>()? {
            let Scalar(value) = all.next_value()?;
            let setting = format!("{name}={value}").parse();
            settings.push(setting.map_err(serde::de::Error::custom)?);
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file::parse;
    use super::super::{NodeFlags, SidecarFlags};
    use super::*;

    #[test]
    fn flags_win_over_the_file_limit_by_limit() {
        let file: NodeFlags = parse(
            "limits:\n  handshakes: 7\n  headerTime: 1s\n  processBuffers: 64MiB\n",
            Path::new("k.yaml"),
        )
        .unwrap();
        let flags = NodeFlags {
            set_limit: vec!["handshakes=8".parse().unwrap()],
            ..NodeFlags::default()
        };
        let settings = flags.over(file).resolve("/d".into(), "h".into()).unwrap();
        assert_eq!(settings.limits.router.handshakes, 8);
        assert_eq!(settings.limits.router.header_time.as_secs(), 1);
        assert_eq!(settings.limits.provider.header_time.as_secs(), 1);
        assert_eq!(settings.limits.memory.process, 64 << 20);
    }

    #[test]
    fn a_wrong_limit_names_its_line_and_the_right_ones() {
        for (text, word) in [
            ("limits:\n  flows: 1\n", "flowsPerConnection"),
            ("limits:\n  headerTime: 3\n", "10ms to 1m"),
        ] {
            let error = parse::<SidecarFlags>(text, Path::new("s.yaml"))
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("s.yaml:2") && error.contains(word),
                "{error}"
            );
        }
        assert!("handshakes".parse::<LimitSetting>().is_err());
        let window = vec!["flowWindow=8MiB".parse().unwrap()];
        let error = set(Limits::default(), window).unwrap_err().to_string();
        assert!(error.contains("flowWindowMax"), "{error}");
    }
}
