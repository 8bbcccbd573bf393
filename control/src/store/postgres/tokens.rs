//! Join tokens in PostgreSQL.

use std::time::SystemTime;

use keel_certs::TokenId;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Error};

use super::super::ConsumeError;
use super::super::database::Failed;
use super::super::statements::{Statements, Value};
use super::super::tokens::{self, Consumed, TokenRecord};
use super::{Database, timely};

impl Database {
    pub(in crate::store) async fn create_token(
        &mut self,
        token: TokenRecord,
        forget: SystemTime,
    ) -> Result<(), Failed> {
        let mut connection = self.take().await?;
        let outcome = timely(tokens::create(&mut connection, token, forget)).await;
        self.settle(connection, outcome.map_err(statement))
    }

    pub(in crate::store) async fn revoke_token(&mut self, id: &TokenId) -> Result<bool, Failed> {
        let mut connection = self.take().await?;
        let outcome = timely(tokens::revoke(&mut connection, id)).await;
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
        let work = tokens::keep_result(&mut connection, id, key_hash, result);
        let outcome = timely(work).await;
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

async fn consume(
    connection: &mut PgConnection,
    id: &TokenId,
    secret_hash: [u8; 32],
    key_hash: [u8; 32],
    now: SystemTime,
) -> Result<Result<Consumed, ConsumeError>, Failed> {
    let (transaction, consumed) = timely(async {
        let mut transaction = connection.begin().await?;
        // Uses of one token come one after the other, whichever APIServer they come to.
        transaction
            .run(
                "SELECT FROM token WHERE id = $1 FOR UPDATE",
                &[Value::Text(id.as_str())],
            )
            .await?;
        let consumed = tokens::consume(&mut *transaction, id, secret_hash, key_hash, now).await?;
        Ok((transaction, consumed))
    })
    .await?;
    timely(transaction.commit())
        .await
        .map_err(Failed::Unknown)?;
    Ok(consumed)
}
