//! Opening: whose a store is, and what is said if that is not to be.

use keel_certs::TrustDomain;
use keel_control::store::{ClaimError, OpenError, Store, StoreConfig};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;

use super::place::{Place, open};
use super::server;
use super::{key, put};

#[tokio::test]
async fn a_database_belongs_to_one_trust_domain() {
    let Some(place) = Place::postgres().await else {
        return;
    };
    let domain = |name: &str| name.parse::<TrustDomain>().unwrap();
    let store = place.open(StoreConfig::default()).await;
    assert_eq!(store.trust_domain(), None);
    for _ in 0..2 {
        store.claim(&domain("a.example")).await.unwrap();
    }
    let other = place.open(StoreConfig::default()).await;
    assert_eq!(other.trust_domain(), Some("a.example"));
    let refused = other.claim(&domain("b.example")).await.unwrap_err();
    assert!(matches!(refused, ClaimError::Another { .. }), "{refused}");
    assert!(refused.to_string().contains("a.example"), "{refused}");
    store.claim(&domain("a.example")).await.unwrap();
    store.close().await;
    other.close().await;
    // As the version before made it.
    place.sql("ALTER TABLE meta DROP COLUMN domain").await;
    let store = place.open(StoreConfig::default()).await;
    assert_eq!(store.trust_domain(), None);
    store.claim(&domain("b.example")).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn what_a_server_refuses_comes_with_a_remedy() {
    let Some(server) = server::shared() else {
        return;
    };
    let refused = open(&server.url("nobody_made_it"), StoreConfig::default()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("createdb nobody_made_it"), "{refused}");
    // Before anything is connected: in clear is not what was meant.
    let mistyped = open("postgres://h/d?sslmod=verify-full", StoreConfig::default()).await;
    assert!(matches!(&mistyped, Err(OpenError::Option { option, .. }) if option == "sslmod"));
}

#[tokio::test]
async fn a_file_is_one_store_at_a_time() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let config = StoreConfig::default;
    let store = Store::open(&path, config()).await.unwrap();
    let refused = Store::open(&path, config()).await;
    assert!(
        matches!(refused, Err(OpenError::Held { .. })),
        "{refused:?}"
    );
    // Nobody waits for one that is dropped.
    drop(store);
    Store::open(&path, config()).await.unwrap().close().await;
}

#[tokio::test]
async fn tables_of_others_do_not_make_a_store_corrupt() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("store.db");
    let sql = async |sql: &'static str| {
        let options = SqliteConnectOptions::new().filename(&path);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    };
    let store = Store::open(&path, StoreConfig::default()).await.unwrap();
    put(&store, "a", "1").await;
    store.close().await;
    // What an administrator does who was told that it helps.
    sql("ANALYZE").await;
    let store = Store::open(&path, StoreConfig::default()).await.unwrap();
    assert!(store.get(&key("a")).await.unwrap().is_some());
    store.close().await;
    sql("CREATE TABLE notes (text)").await;
    let refused = Store::open(&path, StoreConfig::default()).await;
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("notes") && refused.contains("drop it"),
        "{refused}"
    );
    sql("DROP TABLE notes").await;
    let store = Store::open(&path, StoreConfig::default()).await.unwrap();
    assert!(store.get(&key("a")).await.unwrap().is_some());
    store.close().await;
}
