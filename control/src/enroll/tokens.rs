//! Making, listing and revoking join tokens, on `admin.sock`.

use std::time::{Duration, SystemTime};

use keel_certs::{JoinToken, TokenId};
use keel_fabric::quic::HostPort;

use super::server::{AUDIT, no_root};
use super::wire::{TokenAnswer, TokenInfo, TokenList, TokenRequest};
use super::{Answer, Inner, bad_request, failure, internal};
use crate::api::Reason;
use crate::store::{TokenRecord, TokenScope};

/// The longest life of a token.
pub const MAX_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// The most uses of a token: enough for any fleet, and a typing error shows.
pub const MAX_USES: u32 = 10_000;

pub(super) async fn create(inner: &Inner, request: TokenRequest) -> Answer<TokenAnswer> {
    if matches!(request.scope, TokenScope::Node { .. }) && inner.root.is_none() {
        return Err(no_root(inner));
    }
    if matches!(&request.scope, TokenScope::Node { node: Some(node) } if *node == inner.authority.node())
    {
        return Err(bad_request(format!(
            "{} is this node: a token for it makes no sense",
            inner.authority.node()
        )));
    }
    let life = Duration::from_secs(request.ttl_seconds);
    if life.is_zero() || life > MAX_LIFE {
        return Err(bad_request(
            "the life of a token (--ttl) is between 1s and 30d",
        ));
    }
    if !(1..=MAX_USES).contains(&request.uses) {
        return Err(bad_request(format!(
            "a token is good for 1 to {MAX_USES} uses (--uses)"
        )));
    }
    let endpoint = endpoint(inner, request.endpoint)?;
    let pin = inner.authority.pin().map_err(|error| internal(&error))?;
    let token = JoinToken::generate(pin, endpoint);
    let now = SystemTime::now();
    let record = TokenRecord {
        id: token.id.clone(),
        secret_hash: token.secret_hash(),
        scope: request.scope,
        created_at: now,
        expires_at: now + life,
        uses_left: request.uses,
        revoked: false,
    };
    let (id, scope) = (record.id.clone(), format!("{:?}", record.scope));
    inner
        .store
        .create_token(record)
        .await
        .map_err(|error| internal(&error))?;
    tracing::info!(target: AUDIT, token = %id, scope, uses = request.uses, seconds = life.as_secs(), "token made");
    Ok(TokenAnswer {
        token: token.to_string(),
    })
}

fn endpoint(inner: &Inner, given: Option<String>) -> Answer<String> {
    if let Some(given) = given {
        let endpoint: HostPort = given
            .parse()
            .map_err(|error| bad_request(format!("--endpoint: {error}")))?;
        return Ok(endpoint.to_string());
    }
    let info = inner.config.info.borrow();
    info.token_endpoint.clone().ok_or_else(|| {
        let why = info
            .unreachable
            .as_deref()
            .unwrap_or("this node does not know how others reach its APIServer");
        failure(
            Reason::Conflict,
            format!("{why}; or name it with --endpoint HOST:PORT"),
        )
    })
}

pub(super) async fn list(inner: &Inner) -> Answer<TokenList> {
    let tokens = inner
        .store
        .tokens()
        .await
        .map_err(|error| internal(&error))?;
    Ok(TokenList {
        tokens: tokens.into_iter().map(TokenInfo::from).collect(),
    })
}

pub(super) async fn revoke(inner: &Inner, id: &str) -> Answer<TokenList> {
    let missing = || {
        failure(
            Reason::NotFound,
            "there is no such token: see `keel token list`",
        )
    };
    let id: TokenId = id.parse().map_err(|_| missing())?;
    if !inner
        .store
        .revoke_token(&id)
        .await
        .map_err(|error| internal(&error))?
    {
        return Err(missing());
    }
    tracing::info!(target: AUDIT, token = %id, "token revoked");
    list(inner).await
}
