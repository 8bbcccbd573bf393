//! Values that flags, environment and file share: each parses from one text, and says what was wrong with it.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZero;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use keel_certs::JoinToken;
use keel_certs::NodeName;
use keel_fabric::quic::HostPort;
pub use keel_fabric::units::Span;
use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};

use crate::errors::Usage;

/// `span`, if it is between `least` and `most`.
///
/// # Errors
/// It is not; the error names `flag` and the bounds.
pub fn within(span: Span, flag: &str, least: Duration, most: Duration) -> Result<Duration, Usage> {
    if (least..=most).contains(&span.0) {
        return Ok(span.0);
    }
    Err(Usage(format!(
        "{flag} {span} is out of range: {} to {}",
        Span(least),
        Span(most)
    )))
}

/// A number from 1.
///
/// # Errors
/// It is none.
pub(super) fn from_one(text: &str) -> Result<NonZero<u32>, Usage> {
    let number = text.trim().parse();
    number.map_err(|_| Usage("write a number from 1 to 4294967295".into()))
}

/// `advertised`, if others can reach each: an address that stands for every one, or for a group, is nobody's.
///
/// # Errors
/// The first that nobody reaches.
pub(super) fn reachable(advertised: Vec<HostPort>) -> Result<Vec<HostPort>, Usage> {
    let nobodys = |at: &&HostPort| {
        at.host().parse::<IpAddr>().is_ok_and(|ip| {
            let ip = ip.to_canonical();
            ip.is_unspecified() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST
        })
    };
    match advertised.iter().find(nobodys) {
        Some(at) => Err(Usage(format!(
            "--advertise {at}: nobody reaches that; write the address that others reach, like a.example.net:{}",
            at.port()
        ))),
        None => Ok(advertised),
    }
}

/// Where a join token comes from: the text itself, `@FILE`, or `-` for standard input.
#[derive(Clone)]
pub enum TokenSource {
    /// The token itself. Visible in the process list, so the documentation uses files.
    Value(String),
    /// A file that holds the token.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// Longest token text that is read: far above any real token, far below what could hurt.
const TOKEN_MAX: u64 = 16 * 1024;

impl TokenSource {
    /// Reads and parses the token.
    ///
    /// # Errors
    /// The file cannot be read, or the text is no token.
    pub fn read(&self) -> Result<JoinToken, ValueError> {
        Ok(self.read_text()?.1)
    }

    /// The token itself as a source, checked: what comes from standard input can be read only once.
    ///
    /// # Errors
    /// As [`TokenSource::read`].
    pub fn held(&self) -> Result<Self, ValueError> {
        Ok(Self::Value(self.read_text()?.0))
    }

    fn read_text(&self) -> Result<(String, JoinToken), ValueError> {
        let (text, place) = match self {
            Self::Value(text) => (text.clone(), "the token given".to_owned()),
            Self::File(path) => {
                let open = std::fs::File::open(path);
                let text = open
                    .and_then(read_all)
                    .map_err(|source| ValueError::TokenFile {
                        path: path.clone(),
                        source,
                    })?;
                (text, path.display().to_string())
            }
            Self::Stdin => {
                let text = read_all(std::io::stdin()).map_err(|source| ValueError::TokenFile {
                    path: "standard input".into(),
                    source,
                })?;
                (text, "standard input".to_owned())
            }
        };
        let token = JoinToken::from_str(text.trim()).map_err(|error| ValueError::Token {
            place,
            reason: crate::errors::chain(&error),
        })?;
        Ok((text, token))
    }
}

fn read_all(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(TOKEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

impl FromStr for TokenSource {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Ok(match text.trim() {
            "" => return Err(ValueError::EmptyToken),
            "-" => Self::Stdin,
            other => match other.strip_prefix('@') {
                Some(path) => Self::File(path.into()),
                None => Self::Value(other.to_owned()),
            },
        })
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(_) => f.write_str("(a token)"),
            Self::File(path) => write!(f, "@{}", path.display()),
            Self::Stdin => f.write_str("-"),
        }
    }
}

/// The name of an object: dotted DNS labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName(pub String);

impl FromStr for ObjectName {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.is_empty() {
            return Err(Usage("a name is empty: write the object's name".into()));
        }
        if text.len() <= 253 && text.split('.').all(label) {
            return Ok(Self(text.to_owned()));
        }
        Err(Usage(format!(
            "{text:?} is no name of an object: lower-case letters, digits, - and . between them"
        )))
    }
}

/// A DNS zone, in lower case and without its last dot.
///
/// # Errors
/// It is no DNS name.
pub(super) fn zone(flag: &str, text: &str) -> Result<String, Usage> {
    let zone = text.trim().trim_end_matches('.').to_ascii_lowercase();
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    if zone.len() <= 253 && zone.split('.').all(label) {
        return Ok(zone);
    }
    Err(Usage(format!(
        "{flag} `{text}` is no DNS name: write a zone like corp.example"
    )))
}

/// Another node's APIServer: `NAME=HOST:PORT`. The name is the identity that is expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerArg {
    /// The node that must answer.
    pub node: NodeName,
    /// Where its APIServer listens.
    pub server: HostPort,
}

/// Refuses a peer that is given twice.
pub(super) fn each_once(peers: Vec<PeerArg>) -> Result<Vec<PeerArg>, Usage> {
    let mut seen = BTreeSet::new();
    match peers.iter().find(|peer| !seen.insert(&peer.node)) {
        Some(peer) => Err(Usage(format!(
            "--peer: {} is given twice; leave one of them out",
            peer.node
        ))),
        None => Ok(peers),
    }
}

impl FromStr for PeerArg {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (node, server) = text
            .split_once('=')
            .ok_or_else(|| ValueError::Peer(text.to_owned()))?;
        let part = |reason: String| ValueError::PeerPart {
            text: text.to_owned(),
            reason,
        };
        Ok(Self {
            node: node
                .trim()
                .parse()
                .map_err(|error| part(crate::errors::chain(&error)))?,
            server: server
                .trim()
                .parse()
                .map_err(|error| part(crate::errors::chain(&error)))?,
        })
    }
}

impl fmt::Display for PeerArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.node, self.server)
    }
}

/// Why a value could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// A peer without `=`.
    #[error("`{0}` is no peer: write NAME=HOST:PORT, as in `edge-a=a.example.net:7443`")]
    Peer(String),
    /// A part of a peer is wrong.
    #[error("peer `{text}`: {reason}")]
    PeerPart {
        /// The whole text.
        text: String,
        /// What the part's parser said.
        reason: String,
    },
    /// An empty token.
    #[error("the token is empty: give the token, @FILE, or - for standard input")]
    EmptyToken,
    /// The token's file cannot be read.
    #[error("cannot read the join token from {path}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The text is no token. The text itself is never shown.
    #[error("{place}: {reason}")]
    Token {
        /// Where it was read.
        place: String,
        /// What the parser said.
        reason: String,
    },
}

/// Deserializes anything that parses from one text, so that a file speaks exactly the language of the flags.
pub(crate) fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

/// The same for lists: a sequence of texts, or one text with commas as on the command line.
pub(crate) fn texts<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let texts = deserializer.deserialize_any(Texts)?;
    texts
        .iter()
        .map(|text| text.parse().map_err(D::Error::custom))
        .collect()
}

struct Texts;

impl<'de> Visitor<'de> for Texts {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of texts")
    }

    fn visit_str<E>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(text.split(',').map(|one| one.trim().to_owned()).collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = all.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_never_shows_in_debug() {
        let source: TokenSource = "keel1.secret".parse().unwrap();
        assert_eq!(format!("{source:?}"), "(a token)");
        assert_eq!(
            format!("{:?}", "@file".parse::<TokenSource>().unwrap()),
            "@file"
        );
        let error = source.read().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_number_from_one_and_a_zone_are_what_they_are_called() {
        assert_eq!(from_one("1024").unwrap().get(), 1024);
        for text in ["0", "-1", "many"] {
            let error = from_one(text).unwrap_err().to_string();
            assert!(error.contains("from 1"), "{error}");
        }
        assert_eq!(
            zone("--dns-zone", " Corp.Example. ").unwrap(),
            "corp.example"
        );
        for text in ["bad zone", "a..b", ".a", "x/y"] {
            let error = zone("--dns-zone", text).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
