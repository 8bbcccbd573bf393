//! Join tokens in SQLite.

use std::time::SystemTime;

use keel_certs::TokenId;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use super::super::ConsumeError;
use super::super::database::Failed;
use super::super::tokens::{self, Consumed, TokenRecord};
use super::Database;

impl Database {
    pub(in crate::store) async fn create_token(
        &mut self,
        token: TokenRecord,
        forget: SystemTime,
    ) -> Result<(), Failed> {
        let outcome = tokens::create(self.ready().await?, token, forget).await;
        self.settle(outcome.map_err(Self::statement)).await
    }

    pub(in crate::store) async fn revoke_token(&mut self, id: &TokenId) -> Result<bool, Failed> {
        let outcome = tokens::revoke(self.ready().await?, id).await;
        self.settle(outcome.map_err(Self::statement)).await
    }

    pub(in crate::store) async fn consume_token(
        &mut self,
        id: &TokenId,
        secret_hash: [u8; 32],
        key_hash: [u8; 32],
        now: SystemTime,
    ) -> Result<Result<Consumed, ConsumeError>, Failed> {
        let outcome = consume(self.ready().await?, id, secret_hash, key_hash, now).await;
        self.settle(outcome).await
    }

    pub(in crate::store) async fn keep_result(
        &mut self,
        id: &TokenId,
        key_hash: [u8; 32],
        result: &[u8],
    ) -> Result<(), Failed> {
        let outcome = tokens::keep_result(self.ready().await?, id, key_hash, result).await;
        self.settle(outcome.map_err(Self::statement)).await
    }
}

async fn consume(
    connection: &mut SqliteConnection,
    id: &TokenId,
    secret_hash: [u8; 32],
    key_hash: [u8; 32],
    now: SystemTime,
) -> Result<Result<Consumed, ConsumeError>, Failed> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let consumed = tokens::consume(&mut *transaction, id, secret_hash, key_hash, now).await?;
    transaction.commit().await.map_err(Failed::Unknown)?;
    Ok(consumed)
}
