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
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};
use tokio::sync::oneshot;

use super::writer::{Job, unix_seconds};
use super::{Store, StoreError};

/// How long a token that can no longer be used is still listed, and its results kept.
const KEEP_EXPIRED: Duration = Duration::from_secs(24 * 3600);

/// The columns that [`record`] reads, of the tokens that the clause selects.
macro_rules! select_tokens {
    ($clause:literal) => {
        concat!(
            "SELECT id, secret_hash, scope, created_at, expires_at, revoked, ",
            "uses - (SELECT COUNT(*) FROM token_use WHERE token_use.token = token.id) FROM token ",
            $clause
        )
    };
}

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
        self.transact("keep a token", move |connection| {
            async move {
                let forget = unix_seconds().saturating_sub(KEEP_EXPIRED.as_secs().cast_signed());
                sqlx::query("DELETE FROM token WHERE expires_at < ?1").bind(forget).execute(&mut *connection).await?;
                let scope = serde_json::to_string(&token.scope).map_err(|error| sqlx::Error::Encode(error.into()))?;
                sqlx::query(
                    "INSERT INTO token (id, secret_hash, scope, created_at, expires_at, uses, revoked) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )
                .bind(token.id.to_string())
                .bind(token.secret_hash.to_vec())
                .bind(scope)
                .bind(seconds(token.created_at))
                .bind(seconds(token.expires_at))
                .bind(i64::from(token.uses_left))
                .bind(token.revoked)
                .execute(connection)
                .await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }

    /// All tokens that are not forgotten yet, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let rows = sqlx::query(select_tokens!("ORDER BY created_at, id"))
            .fetch_all(&self.inner.readers)
            .await
            .map_err(StoreError::database("list tokens"))?;
        rows.iter()
            .map(record)
            .collect::<Result<_, _>>()
            .map_err(StoreError::database("list tokens"))
    }

    /// Makes the token useless; `false` if there is none of that id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn revoke_token(&self, id: &TokenId) -> Result<bool, StoreError> {
        let id = id.to_string();
        self.transact("revoke a token", move |connection| {
            async move {
                let done = sqlx::query("UPDATE token SET revoked = 1 WHERE id = ?1")
                    .bind(id)
                    .execute(connection)
                    .await?;
                Ok(done.rows_affected() > 0)
            }
            .boxed()
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
        let id = id.to_string();
        self.transact("use a token", move |connection| {
            async move {
                let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
                let verdict = consume(&mut transaction, &id, secret_hash, key_hash, now).await?;
                transaction.commit().await?;
                Ok(verdict)
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
        let id = id.to_string();
        self.transact("keep the result of a token", move |connection| {
            async move {
                sqlx::query("UPDATE token_use SET result = ?3 WHERE token = ?1 AND key_hash = ?2")
                    .bind(id)
                    .bind(key_hash.to_vec())
                    .bind(result.to_vec())
                    .execute(connection)
                    .await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }

    /// Runs `work` on the writer's connection, between batches.
    async fn transact<T, F>(&self, doing: &'static str, work: F) -> Result<T, StoreError>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>
            + Send
            + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: super::writer::Transact = Box::new(move |connection| {
            async move {
                // A caller that went away does not want to know.
                let _ = answer.send(work(connection).await);
            }
            .boxed()
        });
        self.send(Job::Transact(job)).await?;
        answered
            .await
            .map_err(|_| StoreError::Closed)?
            .map_err(StoreError::database(doing))
    }
}

async fn consume(
    connection: &mut SqliteConnection,
    id: &str,
    secret_hash: [u8; 32],
    key_hash: [u8; 32],
    now: SystemTime,
) -> Result<Result<Consumed, ConsumeError>, sqlx::Error> {
    let row = sqlx::query(select_tokens!("WHERE id = ?1"))
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else {
        return Ok(Err(ConsumeError::Unknown));
    };
    let token = record(&row)?;
    if verify_slices_are_equal(&token.secret_hash, &secret_hash).is_err() {
        return Ok(Err(ConsumeError::Unknown));
    }
    if token.revoked {
        return Ok(Err(ConsumeError::Revoked));
    }
    let expired = token.expires_at < now;
    let used = sqlx::query("SELECT result FROM token_use WHERE token = ?1 AND key_hash = ?2")
        .bind(id)
        .bind(key_hash.to_vec())
        .fetch_optional(&mut *connection)
        .await?;
    if let Some(used) = used {
        let result: Option<Vec<u8>> = used.try_get(0)?;
        return Ok(match result {
            None if expired => Err(ConsumeError::Expired),
            result => Ok(Consumed {
                scope: token.scope,
                result: result.map(Bytes::from),
            }),
        });
    }
    if expired {
        return Ok(Err(ConsumeError::Expired));
    }
    if token.uses_left == 0 {
        return Ok(Err(ConsumeError::UsedUp));
    }
    sqlx::query("INSERT INTO token_use (token, key_hash, used_at) VALUES (?1, ?2, ?3)")
        .bind(id)
        .bind(key_hash.to_vec())
        .bind(seconds(now))
        .execute(connection)
        .await?;
    Ok(Ok(Consumed {
        scope: token.scope,
        result: None,
    }))
}

fn record(row: &SqliteRow) -> Result<TokenRecord, sqlx::Error> {
    let id: String = row.try_get(0)?;
    let secret_hash: Vec<u8> = row.try_get(1)?;
    let scope: String = row.try_get(2)?;
    let (created_at, expires_at): (i64, i64) = (row.try_get(3)?, row.try_get(4)?);
    let uses_left: i64 = row.try_get(6)?;
    Ok(TokenRecord {
        id: id
            .parse()
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        secret_hash: secret_hash
            .try_into()
            .map_err(|_| sqlx::Error::Decode("a token's hash is not 32 bytes".into()))?,
        scope: serde_json::from_str(&scope).map_err(|error| sqlx::Error::Decode(error.into()))?,
        created_at: time(created_at),
        expires_at: time(expires_at),
        uses_left: u32::try_from(uses_left).unwrap_or(0),
        revoked: row.try_get(5)?,
    })
}

fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
}
