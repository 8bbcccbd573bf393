//! Logs go to stderr, as text for people or as JSON for machines; standard output belongs to the commands' answers.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::errors::Usage;

/// How a line of log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text, coloured on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The filter, in the language of `tracing-subscriber`: `info`, `info,keel_fabric=debug`.
    pub filter: String,
    /// The format.
    pub format: LogFormat,
    /// Whether text is coloured.
    pub colour: bool,
}

impl LogSettings {
    /// Reads `KEEL_LOG`, `KEEL_LOG_FORMAT` and `NO_COLOR` through `var`; `default` is the filter when none is set.
    ///
    /// # Errors
    /// `KEEL_LOG_FORMAT` is neither `text` nor `json`.
    pub fn from_env(var: impl Fn(&str) -> Option<String>, default: &str) -> Result<Self, Usage> {
        let format = match var("KEEL_LOG_FORMAT").as_deref() {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                return Err(Usage(format!(
                    "KEEL_LOG_FORMAT={other}: write text or json"
                )));
            }
        };
        Ok(Self {
            filter: var("KEEL_LOG").unwrap_or_else(|| default.to_owned()),
            format,
            colour: std::io::stderr().is_terminal() && var("NO_COLOR").is_none(),
        })
    }
}

/// What hickory says at `info` is two lines per DNS question. A filter that names it itself comes later and wins.
const QUIET: &str = "hickory_server=warn";

/// What is wrong with a filter that `tracing-subscriber` takes and that would log nothing: a word that is no level is a target there.
fn slip(filter: &str) -> Option<String> {
    let words = filter.split(',').map(str::trim);
    words
        .filter(|word| !word.contains(['=', '[']) && !word.is_empty())
        .find(|word| word.parse::<LevelFilter>().is_err() && !word.starts_with("keel"))
        .or_else(|| {
            let mut words = filter.split(',').map(str::trim);
            words.find(|word| word.replace("::", "").contains(':') && !word.contains('['))
        })
        .map(|word| format!("`{word}` is no level"))
}

/// Starts logging for the whole process.
///
/// # Errors
/// The filter cannot be understood.
pub fn init(settings: &LogSettings) -> Result<(), Usage> {
    let wrong = |why: &str| {
        Usage(format!(
            "KEEL_LOG={}: {why}; write for example info or info,keel_fabric=debug",
            settings.filter
        ))
    };
    if let Some(slip) = slip(&settings.filter) {
        return Err(wrong(&slip));
    }
    let filter = EnvFilter::try_new(format!("{QUIET},{}", settings.filter))
        .map_err(|error| wrong(&error.to_string()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // On a full disk, or when nobody reads them any more, lines are lost and all else goes on: saying so panics.
        .log_internal_errors(false)
        .with_ansi(settings.colour);
    // A second start in one process (several nodes in a test) keeps the first one's log.
    let _already_started = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_format_or_filter_is_wrong_usage() {
        let env = |name: &str| (name == "KEEL_LOG_FORMAT").then(|| "yaml".to_owned());
        assert!(
            LogSettings::from_env(env, "info")
                .unwrap_err()
                .0
                .contains("yaml")
        );
        let settings = LogSettings {
            filter: "=,=".into(),
            format: LogFormat::Text,
            colour: false,
        };
        assert!(init(&settings).unwrap_err().0.contains("KEEL_LOG"));
        for wrong in [
            "verbose",
            "keel_fabric:debug",
            "info,quiet",
            "info, a:b=debug",
        ] {
            assert!(slip(wrong).is_some(), "{wrong}");
        }
        for right in [
            "",
            "off",
            "INFO,keel_fabric=debug",
            "keel_fabric::quic=trace,hyper=warn",
            "keel_control",
            "info,keel_fabric[flow{id=1:2}]=debug",
            "2",
        ] {
            assert_eq!(slip(right), None, "{right}");
        }
    }

    #[test]
    fn the_default_is_text_at_the_given_filter() {
        let settings = LogSettings::from_env(|_| None, "warn").unwrap();
        assert_eq!(
            (settings.filter.as_str(), settings.format),
            ("warn", LogFormat::Text)
        );
    }
}
