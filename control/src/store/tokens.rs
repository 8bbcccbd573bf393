//! Join tokens and what they were used for.
//!
//! A use is taken and bound to the key of the certificate request in one transaction, before anything is signed. The same key may
//! come again (its first answer may have got lost) and gets the same result; another key needs another use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use keel_certs::{Namespace, NodeName, PodName, TokenId};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::error;

use super::database::{Database, Failed};
use super::seal::{self, is_damage};
use super::statements::{Cells, Statements, Value};
use super::writer::Job;
use super::{Store, StoreError};

/// How long a token that can no longer be used is still listed, and its results kept.
const KEEP_EXPIRED: Duration = Duration::from_secs(24 * 3600);

/// The columns that [`record`] reads, of the tokens that the clause selects.
macro_rules! select_tokens {
    ($clause:literal) => {
        concat!(
            "SELECT id, secret_hash, scope, created_at, expires_at, revoked, ",
            "uses - (SELECT COUNT(*) FROM token_use WHERE token_use.token = token.id), uses FROM token ",
            $clause
        )
    };
}

/// All tokens.
const LIST: &str = select_tokens!("ORDER BY created_at, id");
/// The token $1.
const SELECT: &str = select_tokens!("WHERE id = $1");
/// What was kept for the use of the token $1 by the key $2.
const SELECT_USE: &str = "SELECT result FROM token_use WHERE token = $1 AND key_hash = $2";
/// Forgets tokens that ended before $1.
const FORGET: &str = "DELETE FROM token WHERE expires_at < $1";
/// Keeps a token.
const CREATE: &str = "INSERT INTO token (id, secret_hash, scope, created_at, expires_at, uses, revoked) \
     VALUES ($1, $2, $3, $4, $5, $6, $7)";
/// Revokes the token $1, which is known by $2 then.
const REVOKE: &str = "UPDATE token SET revoked = TRUE, secret_hash = $2 WHERE id = $1";
/// Makes the token $1 known by $2.
const SEAL: &str = "UPDATE token SET secret_hash = $2 WHERE id = $1";
/// Takes a use of the token $1 for the key $2 at $3.
const USE: &str = "INSERT INTO token_use (token, key_hash, used_at) VALUES ($1, $2, $3)";
/// Keeps the result $3 for the use of the token $1 by the key $2.
const KEEP_RESULT: &str = "UPDATE token_use SET result = $3 WHERE token = $1 AND key_hash = $2";

/// A join token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Names the token in lists and logs.
    pub id: TokenId,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// What it is good for.
    pub scope: TokenScope,
    /// When it was made, to the second.
    pub created_at: SystemTime,
    /// Until when it can be used, to the second.
    pub expires_at: SystemTime,
    /// For how many keys it can still be used.
    pub uses_left: u32,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// What a join token is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenScope {
    /// To become a node: this one, or any if none is named.
    Node {
        /// The node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
    },
    /// To become a sidecar.
    Sidecar {
        /// Its namespace.
        namespace: Namespace,
        /// Its pod, or the name that plays the part of one.
        name: PodName,
    },
}

/// A token that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumed {
    /// What it is good for.
    pub scope: TokenScope,
    /// What [`Store::keep_result`] kept for this key, if it was used before.
    pub result: Option<Bytes>,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    /// Its time is over.
    #[error("the token has expired: make a new one")]
    Expired,
    /// It was revoked.
    #[error("the token was revoked: make a new one")]
    Revoked,
    /// There is no such token here, or its secret is another. The two look alike on purpose.
    #[error("no such token: check that it was copied whole and was made at this node")]
    Unknown,
    /// Other keys have used it up.
    #[error("the token has been used as often as it may: make a new one")]
    UsedUp,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Keeps a new token. Tokens that have been over for a day are forgotten on the way.
    ///
    /// # Errors
    /// [`StoreError`]; also if the id is taken.
    pub async fn create_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        let forget = SystemTime::now() - KEEP_EXPIRED;
        self.transact("keep a token", move |database| {
            database.create_token(token, forget).boxed()
        })
        .await
    }

    /// All tokens that are not forgotten yet, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.inner
            .readers
            .tokens()
            .await
            .map_err(StoreError::database("list tokens"))
    }

    /// Makes the token useless; `false` if there is none of that id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn revoke_token(&self, id: &TokenId) -> Result<bool, StoreError> {
        let id = id.clone();
        self.transact("revoke a token", move |database| {
            async move { database.revoke_token(&id).await }.boxed()
        })
        .await
    }

    /// Takes one use of the token for the key, or finds the use that the key has already taken.
    ///
    /// `secret_hash` is the SHA-256 of the secret that was presented, `key_hash` that of the public key to be certified. A key that
    /// comes again is accepted also after the token's end, but only to get the result that was kept for it.
    ///
    /// # Errors
    /// A [`ConsumeError`] that says why not.
    pub async fn consume_token(
        &self,
        id: &TokenId,
        secret_hash: [u8; 32],
        key_hash: [u8; 32],
        now: SystemTime,
    ) -> Result<Consumed, ConsumeError> {
        let id = id.clone();
        self.transact("use a token", move |database| {
            async move {
                database
                    .consume_token(&id, secret_hash, key_hash, now)
                    .await
            }
            .boxed()
        })
        .await?
    }

    /// Keeps what the token's use by this key led to, so that a retry gets the same.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep_result(
        &self,
        id: &TokenId,
        key_hash: [u8; 32],
        result: Bytes,
    ) -> Result<(), StoreError> {
        let id = id.clone();
        self.transact("keep the result of a token", move |database| {
            async move { database.keep_result(&id, key_hash, result).await }.boxed()
        })
        .await
    }

    /// Runs `work` in the writer task, between batches.
    pub(super) async fn transact<T, F>(&self, doing: &'static str, work: F) -> Result<T, StoreError>
    where
        F: for<'c> FnOnce(&'c mut Database) -> BoxFuture<'c, Result<T, Failed>> + Send + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: super::writer::Transact = Box::new(move |database| {
            async move {
                // A caller that went away does not want to know.
                let _ = answer.send(work(database).await);
            }
            .boxed()
        });
        self.send(Job::Transact(job)).await?;
        answered
            .await
            .map_err(|_| StoreError::Closed)?
            .map_err(|failed| failed.doing(doing))
    }
}

impl TokenRecord {
    /// The scope as a column holds it.
    fn scope_column(&self) -> Result<String, sqlx::Error> {
        serde_json::to_string(&self.scope).map_err(|error| sqlx::Error::Encode(error.into()))
    }

    /// The secret's hash as a column holds it: with a checksum of the row behind it, where the database has none of its own.
    fn hash_column(&self, scope: &str, uses: i64, sealed: bool) -> Vec<u8> {
        let mut column = self.secret_hash.to_vec();
        if sealed {
            let (created, expires) = (seconds(self.created_at), seconds(self.expires_at));
            let revoked = self.revoked;
            let rest = format!("{}\n{scope}\n{created} {expires} {uses} {revoked}", self.id);
            column.extend(seal::sum(&[&self.secret_hash, rest.as_bytes()]));
        }
        column
    }
}

pub(super) async fn list<S: Statements>(
    connection: &mut S,
) -> Result<Vec<TokenRecord>, sqlx::Error> {
    let mut tokens = Vec::new();
    for row in connection.rows(LIST, &[]).await? {
        tokens.extend(sound(record(&row, S::SEALED))?);
    }
    Ok(tokens)
}

/// The token, if its row is what was written; who brings one that is not has to get another.
fn sound(read: Result<TokenRecord, sqlx::Error>) -> Result<Option<TokenRecord>, sqlx::Error> {
    match read {
        Ok(token) => Ok(Some(token)),
        Err(error) if is_damage(&error) => {
            error!(%error, "A JOIN TOKEN OF THE STORE IS DAMAGED: it cannot be used, make a new one");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Puts checksums behind tokens that were kept without.
pub(super) async fn seal_all<S: Statements>(connection: &mut S) -> Result<(), sqlx::Error> {
    for row in connection.rows(LIST, &[]).await? {
        // One that cannot be read is left, and refused.
        let Some(token) = sound(record(&row, false))? else {
            continue;
        };
        let column = token.hash_column(&row.text(2)?, row.number(7)?, true);
        let values = [Value::Text(token.id.as_str()), Value::Bytes(&column)];
        connection.run(SEAL, &values).await?;
    }
    Ok(())
}

/// Keeps a token, and forgets those that ended before `forget`.
pub(super) async fn create<S: Statements>(
    connection: &mut S,
    token: TokenRecord,
    forget: SystemTime,
) -> Result<(), sqlx::Error> {
    let forget = [Value::Number(seconds(forget))];
    connection.run(FORGET, &forget).await?;
    let scope = token.scope_column()?;
    let values = [
        Value::Text(token.id.as_str()),
        Value::Bytes(&token.hash_column(&scope, token.uses_left.into(), S::SEALED)),
        Value::Text(&scope),
        Value::Number(seconds(token.created_at)),
        Value::Number(seconds(token.expires_at)),
        Value::Number(token.uses_left.into()),
        Value::Flag(token.revoked),
    ];
    connection.run(CREATE, &values).await.map(drop)
}

/// Makes a token useless; whether there is one.
pub(super) async fn revoke<S: Statements>(
    connection: &mut S,
    id: &TokenId,
) -> Result<bool, sqlx::Error> {
    let id = Value::Text(id.as_str());
    let Some(row) = connection.row(SELECT, &[id]).await? else {
        return Ok(false);
    };
    let Some(mut token) = sound(record(&row, S::SEALED))? else {
        return Ok(false);
    };
    token.revoked = true;
    let column = token.hash_column(&row.text(2)?, row.number(7)?, S::SEALED);
    let revoked = connection.run(REVOKE, &[id, Value::Bytes(&column)]).await?;
    Ok(revoked > 0)
}

/// Takes a use of a token, or finds the one that the key has. Within a transaction that keeps all others from the token.
pub(super) async fn consume<S: Statements>(
    connection: &mut S,
    id: &TokenId,
    secret_hash: [u8; 32],
    key_hash: [u8; 32],
    now: SystemTime,
) -> Result<Result<Consumed, ConsumeError>, sqlx::Error> {
    let id = Value::Text(id.as_str());
    let token = connection.row(SELECT, &[id]).await?;
    let token = match token {
        Some(row) => sound(record(&row, S::SEALED))?,
        None => None,
    };
    let key = Value::Bytes(&key_hash);
    let used = connection.row(SELECT_USE, &[id, key]).await?;
    let used = used.map(|row| row.bytes(0)).transpose()?;
    let verdict = verdict(token, used, secret_hash, now);
    if let Ok((_, true)) = verdict {
        let now = Value::Number(seconds(now));
        connection.run(USE, &[id, key, now]).await?;
    }
    Ok(verdict.map(|(consumed, _)| consumed))
}

/// Keeps what a use led to.
pub(super) async fn keep_result(
    connection: &mut impl Statements,
    id: &TokenId,
    key_hash: [u8; 32],
    result: &[u8],
) -> Result<(), sqlx::Error> {
    let values = [
        Value::Text(id.as_str()),
        Value::Bytes(&key_hash),
        Value::Bytes(result),
    ];
    connection.run(KEEP_RESULT, &values).await.map(drop)
}

/// Whether the token is good for a key that has `used` it before (and got the result inside). `true` if it is a new use.
fn verdict(
    token: Option<TokenRecord>,
    used: Option<Option<Bytes>>,
    secret_hash: [u8; 32],
    now: SystemTime,
) -> Result<(Consumed, bool), ConsumeError> {
    let token = token.ok_or(ConsumeError::Unknown)?;
    if verify_slices_are_equal(&token.secret_hash, &secret_hash).is_err() {
        return Err(ConsumeError::Unknown);
    }
    if token.revoked {
        return Err(ConsumeError::Revoked);
    }
    let expired = token.expires_at < now;
    let (result, new) = match used {
        // Expired or not: the use was taken in time.
        Some(Some(result)) => (Some(result), false),
        Some(None) if !expired => (None, false),
        None if !expired && token.uses_left == 0 => return Err(ConsumeError::UsedUp),
        None if !expired => (None, true),
        _ => return Err(ConsumeError::Expired),
    };
    let scope = token.scope;
    Ok((Consumed { scope, result }, new))
}

/// Reads a row of [`LIST`] or [`SELECT`].
fn record(row: &impl Cells, sealed: bool) -> Result<TokenRecord, sqlx::Error> {
    let damaged = |why: &str| sqlx::Error::Decode(why.into());
    let column = row.bytes(1)?.unwrap_or_default();
    let (hash, _) = column
        .split_first_chunk()
        .ok_or_else(|| damaged("a token's hash is not 32 bytes"))?;
    let scope = row.text(2)?;
    let token = TokenRecord {
        id: row
            .text(0)?
            .parse()
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        secret_hash: *hash,
        scope: serde_json::from_str(&scope).map_err(|error| sqlx::Error::Decode(error.into()))?,
        created_at: time(row.number(3)?),
        expires_at: time(row.number(4)?),
        uses_left: u32::try_from(row.number(6)?).unwrap_or(0),
        revoked: row.flag(5)?,
    };
    match column[..] == token.hash_column(&scope, row.number(7)?, sealed) {
        true => Ok(token),
        false => Err(damaged(
            "a token does not match its checksum: the disk gave back other bits than it was given",
        )),
    }
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
}
