//! The `--config` file: YAML, camelCase keys, unknown keys fail, every error with file and line.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

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
        FileError::Parse {
            path: path.to_owned(),
            line,
            reason,
        }
    })
}

/// Line and reason of an error in YAML, in words for who wrote it.
pub(crate) fn describe(error: &serde_saphyr::Error) -> (u64, String) {
    let reason = error.without_snippet().to_string();
    // The place stands in front, as compilers write it.
    let reason = reason
        .rsplit_once(" at line ")
        .map_or(reason.as_str(), |(reason, _)| reason);
    // The parser's advice is for programmers.
    let reason = reason
        .split_once(", set DuplicateKeyPolicy")
        .map_or(reason, |(reason, _)| reason);
    let line = error.location().map_or(0, |at| at.line());
    (line, reason.to_owned())
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
        assert!(node("nodeName: [").is_err());
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
