//! Join tokens in SQLite.

use std::time::SystemTime;

use keel_certs::TokenId;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Connection, Error};

use super::super::ConsumeError;
use super::super::database::{Cells, Failed, all};
use super::super::tokens::{
    self, CREATE, Consumed, FORGET, KEEP_RESULT, LIST, REVOKE, SELECT, SELECT_USE, TokenRecord,
    USE, record, seconds,
};
use super::Database;

impl Database {
    pub(in crate::store) async fn create_token(
        &mut self,
        token: TokenRecord,
        forget: SystemTime,
    ) -> Result<(), Failed> {
        let connection = self.ready().await?;
        let outcome = create(connection, token, forget).await;
        self.settle(outcome.map_err(Self::statement)).await
    }

    pub(in crate::store) async fn revoke_token(&mut self, id: &TokenId) -> Result<bool, Failed> {
        let outcome = sqlx::query(REVOKE)
            .bind(id.to_string())
            .execute(self.ready().await?)
            .await
            .map(|done| done.rows_affected() > 0);
        self.settle(outcome.map_err(Self::statement)).await
    }

    pub(in crate::store) async fn consume_token(
        &mut self,
        id: &TokenId,
        secret_hash: [u8; 32],
        key_hash: [u8; 32],
        now: SystemTime,
    ) -> Result<Result<Consumed, ConsumeError>, Failed> {
        let connection = self.ready().await?;
        let outcome = consume(connection, id, secret_hash, key_hash, now).await;
        self.settle(outcome).await
    }

    pub(in crate::store) async fn keep_result(
        &mut self,
        id: &TokenId,
        key_hash: [u8; 32],
        result: &[u8],
    ) -> Result<(), Failed> {
        let outcome = sqlx::query(KEEP_RESULT)
            .bind(id.to_string())
            .bind(key_hash.to_vec())
            .bind(result.to_vec())
            .execute(self.ready().await?)
            .await
            .map(drop);
        self.settle(outcome.map_err(Self::statement)).await
    }
}

pub(in crate::store) async fn list(pool: &SqlitePool) -> Result<Vec<TokenRecord>, Error> {
    let rows = sqlx::query(LIST).fetch_all(pool).await?;
    all(&rows, record)
}

async fn create(
    connection: &mut SqliteConnection,
    token: TokenRecord,
    forget: SystemTime,
) -> Result<(), Error> {
    sqlx::query(FORGET)
        .bind(seconds(forget))
        .execute(&mut *connection)
        .await?;
    sqlx::query(CREATE)
        .bind(token.id.to_string())
        .bind(token.secret_hash.to_vec())
        .bind(token.scope_column()?)
        .bind(seconds(token.created_at))
        .bind(seconds(token.expires_at))
        .bind(i64::from(token.uses_left))
        .bind(token.revoked)
        .execute(connection)
        .await?;
    Ok(())
}

async fn consume(
    connection: &mut SqliteConnection,
    id: &TokenId,
    secret_hash: [u8; 32],
    key_hash: [u8; 32],
    now: SystemTime,
) -> Result<Result<Consumed, ConsumeError>, Failed> {
    let id = id.to_string();
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let token = sqlx::query(SELECT)
        .bind(&id)
        .fetch_optional(&mut *transaction)
        .await?;
    let token = token.as_ref().map(record).transpose()?;
    let used = sqlx::query(SELECT_USE)
        .bind(&id)
        .bind(key_hash.to_vec())
        .fetch_optional(&mut *transaction)
        .await?;
    let used = used.map(|row| row.bytes(0)).transpose()?;
    let verdict = tokens::verdict(token, used, secret_hash, now);
    if let Ok((_, true)) = verdict {
        sqlx::query(USE)
            .bind(&id)
            .bind(key_hash.to_vec())
            .bind(seconds(now))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await.map_err(Failed::Unknown)?;
    Ok(verdict.map(|(consumed, _)| consumed))
}
