//! What is said about single services, as the YAML file writes it: the words of the flags in camelCase, a check as a map.

use std::fmt;

use keel_sidecar::options::{LimitArg, ServiceOption, ServiceOptions};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// Deserializes `serviceOptions`: a map from services to their options.
pub(crate) fn options<'de, D>(deserializer: D) -> Result<Vec<ServiceOption>, D::Error>
where
    D: Deserializer<'de>,
{
    deserializer.deserialize_map(Services)
}

/// Deserializes `limit`: one text as on the command line, or a list of them.
pub(crate) fn limits<'de, D>(deserializer: D) -> Result<Vec<LimitArg>, D::Error>
where
    D: Deserializer<'de>,
{
    super::values::texts(deserializer)
}

struct Services;

impl<'de> Visitor<'de> for Services {
    type Value = Vec<ServiceOption>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from services to their options, like `mysql: {limit: 10MB/s}`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Self::Value, A::Error> {
        let mut services = Vec::new();
        while let Some(service) = all.next_key()? {
            let Words(words) = all.next_value()?;
            let words = words
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()));
            let options = ServiceOptions::of(words).map_err(A::Error::custom)?;
            services.push(ServiceOption { service, options });
        }
        Ok(services)
    }
}

/// Keys as on the command line, with their values: `{check: {http: /x}}` is `check-http`.
struct Words(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WordsVisitor)
    }
}

struct WordsVisitor;

impl<'de> Visitor<'de> for WordsVisitor {
    type Value = Words;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of options, like `{limit: 10MB/s, weight: 2}`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Words, A::Error> {
        let mut words = Vec::new();
        while let Some(key) = all.next_key::<String>()? {
            let key = kebab(&key).ok_or_else(|| {
                A::Error::custom(format!(
                    "`{key}` is no option of a service; keys are in camelCase"
                ))
            })?;
            match all.next_value()? {
                Word::One(text) => words.push((key, text)),
                Word::Many(Words(inner)) => {
                    words.push((key.clone(), "tcp".to_owned()));
                    words.extend(
                        inner
                            .into_iter()
                            .map(|(inner, text)| (format!("{key}-{inner}"), text)),
                    );
                }
            }
        }
        Ok(Words(words))
    }
}

enum Word {
    One(String),
    Many(Words),
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordVisitor)
    }
}

struct WordVisitor;

impl<'de> Visitor<'de> for WordVisitor {
    type Value = Word;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, or a map of options")
    }

    fn visit_str<E>(self, text: &str) -> Result<Word, E> {
        Ok(Word::One(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Word, E> {
        Ok(Word::One(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Word, E> {
        Ok(Word::One(number.to_string()))
    }

    fn visit_map<A: MapAccess<'de>>(self, all: A) -> Result<Word, A::Error> {
        WordsVisitor.visit_map(all).map(Word::Many)
    }
}

/// `resumeWindow` as `resume-window`; none for what is not in camelCase.
fn kebab(key: &str) -> Option<String> {
    let mut text = String::new();
    for c in key.chars() {
        match c {
            'a'..='z' => text.push(c),
            'A'..='Z' => text.extend(['-', c.to_ascii_lowercase()]),
            _ => return None,
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::SidecarFlags;
    use super::super::file::parse;

    fn flags(text: &str) -> Result<SidecarFlags, String> {
        parse(text, Path::new("s.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_file_says_what_the_flag_says() {
        let file = flags(
            "serviceOptions:\n  mysql: {limit: 10MB/s, resumeWindow: 30s, weight: 10, sticky: client}\n  \
             web.shop: {check: {http: /healthz, interval: 5s, failures: 3}, priority: 1}\nlimit: 'web=1MB/s, 5MB/s'\n",
        )
        .unwrap();
        let flag = |text: &str| text.parse().unwrap();
        assert_eq!(
            file.service_options,
            [
                flag("mysql=limit:10MB/s,resume-window:30s,weight:10,sticky:client"),
                flag("web.shop=check:/healthz,check-interval:5s,check-failures:3,priority:1"),
            ]
        );
        assert_eq!(file.limit[0].service.as_deref(), Some("web"));
        assert_eq!(file.limit[1].service, None);
    }

    #[test]
    fn a_wrong_word_names_its_line() {
        for (text, word) in [
            ("serviceOptions:\n  mysql: {speed: 1}\n", "`speed`"),
            ("serviceOptions:\n  mysql: {limit: 10}\n", "`10` is no rate"),
            (
                "serviceOptions:\n  mysql: {check: {port: 1}}\n",
                "`check-port`",
            ),
            (
                "serviceOptions:\n  mysql: {resume-window: 1s}\n",
                "camelCase",
            ),
            (
                "serviceOptions:\n  mysql: {checkInterval: 1s}\n",
                "check-interval",
            ),
            ("serviceOptions:\n  mysql: 1\n", "mapping"),
        ] {
            let error = flags(text).unwrap_err();
            assert!(
                error.starts_with("s.yaml:2") && error.contains(word),
                "{error}"
            );
        }
    }
}
