//! Join tokens: bounded, bound to the key, and the same answer for the same key.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use keel_certs::{JoinToken, RootPin};
use keel_control::store::{ConsumeError, StoreConfig, TokenRecord, TokenScope};

use super::both::on_both;
use super::place::Place;

on_both! {
    a_use_is_bound_to_the_first_key,
    expired_revoked_and_forgotten,
}

pub(super) fn record(uses: u32, life: Duration) -> TokenRecord {
    let pin: RootPin = "00".repeat(32).parse().unwrap();
    let token = JoinToken::generate(pin, "a.example.net:7443");
    // Whole seconds, as the store keeps them.
    let now = UNIX_EPOCH
        + Duration::from_secs(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs(),
        );
    TokenRecord {
        id: token.id.clone(),
        secret_hash: token.secret_hash(),
        scope: TokenScope::Node {
            node: Some("b".parse().unwrap()),
        },
        created_at: now,
        expires_at: now + life,
        uses_left: uses,
        revoked: false,
    }
}

async fn a_use_is_bound_to_the_first_key(place: Place) {
    let store = place.open(StoreConfig::default()).await;
    let token = record(1, Duration::from_secs(600));
    store.create_token(token.clone()).await.unwrap();
    assert_eq!(store.tokens().await.unwrap(), vec![token.clone()]);
    let now = SystemTime::now();
    let consume =
        |key: u8, secret: [u8; 32], at| store.consume_token(&token.id, secret, [key; 32], at);

    assert!(matches!(
        consume(1, [0; 32], now).await,
        Err(ConsumeError::Unknown)
    ));
    assert_eq!(
        store.tokens().await.unwrap()[0].uses_left,
        1,
        "a wrong secret uses nothing up"
    );
    // Both at once: exactly one gets the use.
    let (one, two) = tokio::join!(
        consume(1, token.secret_hash, now),
        consume(2, token.secret_hash, now)
    );
    assert_eq!(one.unwrap().result, None);
    assert!(matches!(two, Err(ConsumeError::UsedUp)));
    assert_eq!(
        consume(1, token.secret_hash, now).await.unwrap().result,
        None,
        "the first answer got lost: sign again"
    );
    store
        .keep_result(&token.id, [1; 32], Bytes::from_static(b"chain"))
        .await
        .unwrap();
    let later = now + Duration::from_secs(3600);
    let again = consume(1, token.secret_hash, later).await.unwrap();
    assert_eq!(
        (again.result.as_deref(), again.scope),
        (Some(&b"chain"[..]), token.scope.clone())
    );
    assert_eq!(store.tokens().await.unwrap()[0].uses_left, 0);
    store.close().await;
    let store = place.open(StoreConfig::default()).await;
    let kept = store
        .consume_token(&token.id, token.secret_hash, [1; 32], now)
        .await
        .unwrap();
    assert_eq!(
        kept.result.as_deref(),
        Some(&b"chain"[..]),
        "also after a restart"
    );
    store.close().await;
}

async fn expired_revoked_and_forgotten(place: Place) {
    let store = place.open(StoreConfig::default()).await;
    let token = record(2, Duration::from_secs(600));
    store.create_token(token.clone()).await.unwrap();
    let now = SystemTime::now();
    let late = now + Duration::from_secs(601);
    let verdict = store
        .consume_token(&token.id, token.secret_hash, [1; 32], late)
        .await;
    assert!(matches!(verdict, Err(ConsumeError::Expired)));
    assert!(store.revoke_token(&token.id).await.unwrap());
    let verdict = store
        .consume_token(&token.id, token.secret_hash, [1; 32], now)
        .await;
    assert!(matches!(verdict, Err(ConsumeError::Revoked)));

    let mut old = record(1, Duration::from_secs(1));
    old.expires_at = now - Duration::from_secs(2 * 24 * 3600);
    store.create_token(old.clone()).await.unwrap();
    assert!(
        store.create_token(old.clone()).await.is_ok(),
        "the old one was forgotten on the way"
    );
    let other = record(1, Duration::from_secs(1));
    assert!(!store.revoke_token(&other.id).await.unwrap());
    store.close().await;
}
