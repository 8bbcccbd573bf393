//! The `--config` file: YAML, camelCase keys, unknown keys fail, every error with file and line.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_saphyr::budget::BudgetBreach;

/// Largest configuration that is read.
const FILE_MAX: u64 = 1024 * 1024;

/// Reads one YAML document.
///
/// # Errors
/// The file cannot be read, is too large, is no YAML, has an unknown key or a value of the wrong kind.
pub fn read<T: DeserializeOwned + Default>(path: &Path) -> Result<T, FileError> {
    let read = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > FILE_MAX {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            size,
        });
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    parse(&text, path)
}

pub(super) fn parse<T: DeserializeOwned + Default>(
    text: &str,
    path: &Path,
) -> Result<T, FileError> {
    // An empty file, or one of comments only, is a configuration that says nothing.
    let silent = |line: &str| {
        line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---"
    };
    if text.lines().all(silent) {
        return Ok(T::default());
    }
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (line, reason) = describe(&error);
        let reason = with_key(text, line, reason);
        FileError::Parse {
            path: path.to_owned(),
            line,
            reason,
        }
    })
}

/// `reason` with the key that the line is about, if it does not name that itself.
fn with_key(text: &str, line: u64, reason: String) -> String {
    let until = text.lines().take(usize::try_from(line).unwrap_or(0));
    // The items of a list and the rest of a value stand below their key.
    let entry = until.filter_map(|line| {
        let (key, value) = line.trim().split_once(':')?;
        let is_key = !key.is_empty() && key.bytes().all(|c| c.is_ascii_alphanumeric());
        is_key.then(|| (key, value.trim()))
    });
    match entry.last() {
        Some((key, value)) if value.starts_with('@') => format!(
            "{key}: a value that begins with @ needs quotes in YAML; write {key}: '{value}'"
        ),
        Some((key, _)) if !reason.contains(key) => format!("{key}: {reason}"),
        _ => reason,
    }
}

/// Line and reason of an error in YAML, in words for who wrote it.
pub(crate) fn describe(error: &serde_saphyr::Error) -> (u64, String) {
    let error = error.without_snippet();
    let line = error.location().map_or(0, |at| at.line());
    if let serde_saphyr::Error::Budget { breach, .. } = error {
        return (line, bound(breach));
    }
    let reason = error.to_string();
    // The place stands in front, as compilers write it.
    let reason = reason
        .rsplit_once(" at line ")
        .map_or(reason.as_str(), |(reason, _)| reason);
    // The parser's advice is for programmers.
    let reason = reason
        .split_once(", set DuplicateKeyPolicy")
        .map_or(reason, |(reason, _)| reason);
    (line, reason.to_owned())
}

/// Which bound of the parser a text is over.
fn bound(breach: &BudgetBreach) -> String {
    match breach {
        BudgetBreach::Depth { depth } => format!(
            "lists and maps stand in each other {depth} deep; at most {} are read",
            depth - 1
        ),
        BudgetBreach::Aliases { .. }
        | BudgetBreach::Anchors { .. }
        | BudgetBreach::AliasAnchorRatio { .. } => {
            "there are too many aliases (`*name`); write out what they stand for".to_owned()
        }
        BudgetBreach::Nodes { nodes } => format!(
            "there are {nodes} values and more; at most {} are read at once, so split the document",
            nodes - 1
        ),
        _ => "this is larger than what is read at once; split the document".to_owned(),
    }
}

/// Why a configuration file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not readable.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Too large to be a configuration.
    #[error("the configuration {path} has {size} bytes; at most {FILE_MAX} are read")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Wrong inside.
    #[error("{path}:{line}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1; 0 if unknown.
        line: u64,
        /// What is wrong.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::super::{NodeFlags, SidecarFlags};
    use super::*;

    fn node(text: &str) -> Result<NodeFlags, FileError> {
        parse(text, Path::new("keel.yaml"))
    }

    #[test]
    fn a_file_speaks_the_language_of_the_flags() {
        let flags = node(
            "nodeName: edge-a\nrouterListen: ':7000'\nadvertise: ['a.example.net:7000']\npeer: ['b=b.example.net:7443']\nstatusInterval: 30s\n",
        )
        .unwrap();
        assert_eq!(flags.node_name.unwrap().as_ref(), "edge-a");
        assert_eq!(flags.peer[0].to_string(), "b=b.example.net:7443");
        assert!(node("# nothing\n---\n").unwrap().node_name.is_none());
    }

    #[test]
    fn a_wrong_key_or_value_names_file_and_line() {
        for (text, word) in [
            ("nodeName: a\nrouterlisten: ':7000'\n", "routerlisten"),
            ("nodeName: a\nstatusInterval: 30\n", "unit"),
            ("nodeName: a\npeer: nonsense\n", "keel.yaml:2"),
            ("nodeName: a\nconfig: other.yaml\n", "config"),
        ] {
            let error = node(text).unwrap_err().to_string();
            assert!(error.starts_with("keel.yaml:2"), "{error}");
            assert!(error.contains(word), "{error}");
        }
        for (text, start) in [
            ("nodeName: [1\n", "keel.yaml:1: nodeName: "),
            ("cluster: c\nnodeName: {a: 1}\n", "keel.yaml:2: nodeName: "),
            (
                "cluster: c\njoin: @token\n",
                "keel.yaml:2: join: a value that begins with @ needs quotes",
            ),
        ] {
            let error = node(text).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
        let deep = format!("nodeName: {}1{}", "[".repeat(99), "]".repeat(99));
        let deep = serde_saphyr::from_str::<serde_json::Value>(&deep).unwrap_err();
        let (_, deep) = describe(&deep);
        assert!(deep.contains("at most 64 are read"), "{deep}");
        let twice = node("nodeName: a\nnodeName: b\n").unwrap_err().to_string();
        assert!(
            twice.contains("nodeName") && !twice.contains("Policy"),
            "{twice}"
        );
    }

    #[test]
    fn a_list_may_be_one_text_as_on_the_command_line() {
        let flags = node("advertise: a:1\npeer: b=b:2, c=c:3\nlocalNamespaces: [x]\n").unwrap();
        assert_eq!((flags.advertise.len(), flags.peer.len()), (1, 2));
        assert!(
            node("advertise: {a: 1}\n")
                .unwrap_err()
                .to_string()
                .contains("a list of texts")
        );
        let flags: SidecarFlags =
            parse("mappedServices: mysql,redis\n", Path::new("s.yaml")).unwrap();
        assert_eq!(flags.mapped_services, ["mysql", "redis"]);
    }

    #[test]
    fn a_sidecar_has_a_file_too() {
        let flags: SidecarFlags = parse(
            "mappedServices: [mysql, redis]\nipRange: 127.0.66.0/24\n",
            Path::new("s.yaml"),
        )
        .unwrap();
        assert_eq!(flags.mapped_services, ["mysql", "redis"]);
    }
}
