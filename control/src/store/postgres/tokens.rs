//! Join tokens in PostgreSQL.

use std::time::SystemTime;

use keel_certs::TokenId;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection, Error};

use super::super::ConsumeError;
use super::super::database::{Cells, Failed, all};
use super::super::tokens::{
    self, CREATE, Consumed, FORGET, KEEP_RESULT, LIST, REVOKE, SELECT, SELECT_USE, TokenRecord,
    USE, record, seconds,
};
use super::{Database, timely};

impl Database {
    pub(in crate::store) async fn create_token(
        &mut self,
        token: TokenRecord,
        forget: SystemTime,
    ) -> Result<(), Failed> {
        let mut connection = self.take().await?;
        let outcome = timely(create(&mut connection, token, forget)).await;
        self.settle(connection, outcome.map_err(statement))
    }

    pub(in crate::store) async fn revoke_token(&mut self, id: &TokenId) -> Result<bool, Failed> {
        let mut connection = self.take().await?;
        let work = sqlx::query(REVOKE)
            .bind(id.to_string())
            .execute(&mut connection);
        let outcome = timely(work).await.map(|done| done.rows_affected() > 0);
        self.settle(connection, outcome.map_err(statement))
    }

    pub(in crate::store) async fn consume_token(
        &mut self,
        id: &TokenId,
        secret_hash: [u8; 32],
        key_hash: [u8; 32],
        now: SystemTime,
    ) -> Result<Result<Consumed, ConsumeError>, Failed> {
        let mut connection = self.take().await?;
        let outcome = consume(&mut connection, id, secret_hash, key_hash, now).await;
        self.settle(connection, outcome)
    }

    pub(in crate::store) async fn keep_result(
        &mut self,
        id: &TokenId,
        key_hash: [u8; 32],
        result: &[u8],
    ) -> Result<(), Failed> {
        let mut connection = self.take().await?;
        let work = sqlx::query(KEEP_RESULT)
            .bind(id.to_string())
            .bind(&key_hash[..])
            .bind(result)
            .execute(&mut connection);
        let outcome = timely(work).await.map(drop);
        self.settle(connection, outcome.map_err(statement))
    }
}

/// What the failure of a statement that is a transaction of its own means.
fn statement(error: Error) -> Failed {
    match error.as_database_error() {
        Some(_) => Failed::Undone(error),
        None => Failed::Unknown(error),
    }
}

pub(in crate::store) async fn list(pool: &PgPool) -> Result<Vec<TokenRecord>, Error> {
    let rows = sqlx::query(LIST).fetch_all(pool).await?;
    all(&rows, record)
}

async fn create(
    connection: &mut PgConnection,
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
    connection: &mut PgConnection,
    id: &TokenId,
    secret_hash: [u8; 32],
    key_hash: [u8; 32],
    now: SystemTime,
) -> Result<Result<Consumed, ConsumeError>, Failed> {
    let id = id.to_string();
    let (transaction, verdict) = timely(async {
        let mut transaction = connection.begin().await?;
        // Uses of one token come one after the other, whichever APIServer they come to.
        sqlx::query("SELECT FROM token WHERE id = $1 FOR UPDATE")
            .bind(&id)
            .execute(&mut *transaction)
            .await?;
        let token = sqlx::query(SELECT)
            .bind(&id)
            .fetch_optional(&mut *transaction)
            .await?;
        let token = token.as_ref().map(record).transpose()?;
        let used = sqlx::query(SELECT_USE)
            .bind(&id)
            .bind(&key_hash[..])
            .fetch_optional(&mut *transaction)
            .await?;
        let used = used.map(|row| row.bytes(0)).transpose()?;
        let verdict = tokens::verdict(token, used, secret_hash, now);
        if let Ok((_, true)) = verdict {
            sqlx::query(USE)
                .bind(&id)
                .bind(&key_hash[..])
                .bind(seconds(now))
                .execute(&mut *transaction)
                .await?;
        }
        Ok((transaction, verdict))
    })
    .await?;
    timely(transaction.commit())
        .await
        .map_err(Failed::Unknown)?;
    Ok(verdict.map(|(consumed, _)| consumed))
}
