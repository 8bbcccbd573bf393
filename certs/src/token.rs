//! Join tokens: `keel1.<id>.<secret>.<hash of the root's key>.<endpoint>`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{authority::RootPin, der};

/// A token that lets somebody join: where to go, whom to believe there, and the secret to show.
///
/// `Display` prints the whole token and is the only way to do so; `Debug` shows its id.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Names the token in lists, logs and errors.
    pub id: TokenId,
    /// What proves that its holder may join.
    pub secret: TokenSecret,
    /// Hash of the key that the server's root must have.
    pub pin: RootPin,
    /// `host:port` of the APIServer to join at.
    pub endpoint: String,
}

/// Public name of a token: 8 lower-case letters and digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(String);

/// Secret part of a token: 160 random bits. Shown by nothing but [`JoinToken`]'s `Display`; wiped when dropped.
#[derive(Clone)]
pub struct TokenSecret(Zeroizing<[u8; 20]>);

/// Why a text is no join token. The text itself is not repeated: it may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins as one and ends too soon, or is longer than any.
    #[error(
        "the token is cut off or something stands behind it; copy the whole token, it is one line"
    )]
    Cut,
    /// There is nothing.
    #[error(
        "the token is empty; if it is from a file, `keel token create` may have failed to write it"
    )]
    Empty,
    /// The endpoint is not `host:port`.
    #[error("the token's endpoint {0:?} is not HOST:PORT; copy the whole token")]
    Endpoint(String),
    /// The id is not one.
    #[error("the token's id is malformed; copy the whole token")]
    Id,
    /// The hash of the root key is not one.
    #[error("the token's hash of the root key is malformed; copy the whole token")]
    Pin,
    /// Not of the known form at all.
    #[error(
        "this is no join token: it begins with \"keel1.\" and is printed by `keel token create`; a file is given as @FILE"
    )]
    Shape,
    /// The secret is not one.
    #[error("the token's secret is malformed; copy the whole token")]
    Secret,
}

/// More than any endpoint needs.
const MAX_TOKEN: usize = 600;

// === impl JoinToken ===

impl JoinToken {
    /// A new token for `endpoint` (`host:port`).
    #[must_use]
    pub fn generate(pin: RootPin, endpoint: impl Into<String>) -> Self {
        Self {
            id: TokenId::generate(),
            secret: TokenSecret(Zeroizing::new(rand::random())),
            pin,
            endpoint: endpoint.into(),
        }
    }

    /// SHA-256 of the secret: what the server keeps.
    #[must_use]
    pub fn secret_hash(&self) -> [u8; 32] {
        self.secret.hash()
    }

    /// The host of the endpoint, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.endpoint
            .rsplit_once(':')
            .map_or(&*self.endpoint, |(host, _)| host)
            .trim_matches(['[', ']'])
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "keel1.{}.{}.{}.{}",
            self.id,
            *self.secret.encoded(),
            self.pin,
            self.endpoint
        )
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let rest = text.strip_prefix("keel1.").ok_or(TokenError::Shape)?;
        if text.len() > MAX_TOKEN {
            return Err(TokenError::Cut);
        }
        let mut parts = rest.splitn(4, '.');
        let mut part = || parts.next().ok_or(TokenError::Cut);
        let (id, secret, pin, endpoint) = (part()?, part()?, part()?, part()?);
        Ok(Self {
            id: id.parse()?,
            secret: secret.parse()?,
            pin: pin.parse().map_err(|_| TokenError::Pin)?,
            endpoint: checked_endpoint(endpoint)?.to_owned(),
        })
    }
}

fn checked_endpoint(endpoint: &str) -> Result<&str, TokenError> {
    let error = || TokenError::Endpoint(endpoint.chars().take(80).collect());
    let (host, port) = endpoint.rsplit_once(':').ok_or_else(error)?;
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_ok = match bracketed {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.parse::<std::net::Ipv4Addr>().is_ok() || crate::hosts::is_dns_name(host),
    };
    match port.parse::<u16>() {
        Ok(port) if port != 0 && host_ok => Ok(endpoint),
        _ => Err(error()),
    }
}

// === impl TokenId ===

impl TokenId {
    fn generate() -> Self {
        let bytes: [u8; 5] = rand::random();
        Self(
            data_encoding::BASE32_NOPAD
                .encode(&bytes)
                .to_ascii_lowercase(),
        )
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let inside = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        if text.len() == 8 && text.bytes().all(inside) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TokenError::Id)
        }
    }
}

impl Serialize for TokenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

// === impl TokenSecret ===

impl TokenSecret {
    /// SHA-256 of the secret.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        der::sha256(&*self.0)
    }

    /// Whether this is the secret with that hash. Takes the same time for every wrong one.
    #[must_use]
    pub fn matches(&self, hash: &[u8; 32]) -> bool {
        self.hash().ct_eq(hash).into()
    }

    /// The secret as text, for the one request that shows it.
    #[must_use]
    pub fn encoded(&self) -> Zeroizing<String> {
        Zeroizing::new(
            data_encoding::BASE32_NOPAD
                .encode(&*self.0)
                .to_ascii_lowercase(),
        )
    }
}

impl FromStr for TokenSecret {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let upper = Zeroizing::new(text.to_ascii_uppercase());
        let bytes = data_encoding::BASE32_NOPAD
            .decode(upper.as_bytes())
            .map_err(|_| TokenError::Secret)?;
        let bytes = Zeroizing::new(bytes);
        bytes[..]
            .try_into()
            .map(|bytes| Self(Zeroizing::new(bytes)))
            .map_err(|_| TokenError::Secret)
    }
}

impl PartialEq for TokenSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&*other.0).into()
    }
}

impl Eq for TokenSecret {}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(endpoint: &str) -> JoinToken {
        JoinToken::generate(RootPin([7; 32]), endpoint)
    }

    #[test]
    fn tokens_round_trip() {
        for endpoint in ["a.example.net:7443", "192.0.2.1:1", "[2001:db8::1]:65535"] {
            let token = token(endpoint);
            let again: JoinToken = format!(" {token}\n").parse().unwrap();
            assert_eq!(again, token);
            assert!(again.secret.matches(&token.secret_hash()));
            assert!(!again.secret.matches(&[0; 32]));
        }
        assert_eq!(token("[2001:db8::1]:1").host(), "2001:db8::1");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        let text = token("a.example.net:7443").to_string();
        let parts: Vec<&str> = text.splitn(5, '.').collect();
        let with = |index: usize, part: &str| {
            let mut parts = parts.clone();
            parts[index] = part;
            parts.join(".").parse::<JoinToken>().unwrap_err()
        };
        assert_eq!(with(0, "keel2"), TokenError::Shape);
        assert_eq!(with(1, "x"), TokenError::Id);
        assert_eq!(with(2, "secret"), TokenError::Secret);
        assert_eq!(with(3, "00"), TokenError::Pin);
        for endpoint in [
            "a",
            "a:0",
            "a:70000",
            ":1",
            "a b:1",
            "https://a:1",
            "::1:1",
            "a:",
        ] {
            assert_eq!(with(4, endpoint), TokenError::Endpoint(endpoint.to_owned()));
        }
        for (text, why) in [
            ("", TokenError::Empty),
            (" \n", TokenError::Empty),
            ("keel1.a.b", TokenError::Cut),
        ] {
            assert_eq!(text.parse::<JoinToken>().unwrap_err(), why);
        }
        let long = format!("{text}{}", "x".repeat(MAX_TOKEN));
        assert!(
            !long
                .parse::<JoinToken>()
                .unwrap_err()
                .to_string()
                .contains(parts[2])
        );
    }

    #[test]
    fn debug_shows_the_id_only() {
        let token = token("a:1");
        assert_eq!(format!("{token:?}"), format!("JoinToken({})", token.id));
        assert_eq!(format!("{:?}", token.secret), "TokenSecret(..)");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "(keel1\\.)?[a-z2-7.]{0,40}\\PC{0,40}") {
            let _ = text.parse::<JoinToken>();
        }

        #[test]
        fn every_secret_round_trips(secret in any::<[u8; 20]>(), pin in any::<[u8; 32]>(), port in 1u16..) {
            let token = JoinToken {
                secret: TokenSecret(Zeroizing::new(secret)),
                ..JoinToken::generate(RootPin(pin), format!("h.example:{port}"))
            };
            prop_assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        }
    }
}
