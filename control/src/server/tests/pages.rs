//! Lists in pages: all pages show one state, whatever happens meanwhile.

use http_body::Body as _;
use serde_json::json;

use super::*;
use crate::store::{Change, Key};

async fn page(server: &Server, query: &str) -> Value {
    server
        .get(POD, &format!("{ROUTERS}?{query}"))
        .await
        .expect(200)
}

fn names(list: &Value) -> String {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect::<Vec<_>>()
        .join(",")
}

fn token(list: &Value) -> String {
    list["metadata"]["continue"].as_str().unwrap().to_owned()
}

async fn with_routers(names: &[&str]) -> Server {
    let server = Server::new().await;
    for name in names {
        let mut sent = router(name, json!({}));
        sent["metadata"]["labels"] = json!({"site": "x"});
        server.post(ADMIN, &sent).await.expect(201);
    }
    server
}

#[tokio::test]
async fn all_pages_are_of_the_first_ones_revision() {
    let server = with_routers(&["a", "b", "c", "d", "e"]).await;
    let first = page(&server, "limit=2").await;
    assert_eq!(names(&first), "a,b");
    assert_eq!(first["metadata"]["remainingItemCount"], 3);

    server.delete(ADMIN, "c", "").await.expect(200);
    server
        .post(ADMIN, &router("bb", json!({})))
        .await
        .expect(201);
    let label = json!({"metadata": {"labels": {"site": "y"}}});
    server.patch(ADMIN, "d", MERGE, &label).await.expect(200);
    server.delete(ADMIN, "e", "").await.expect(200);
    server
        .post(ADMIN, &router("e", json!({})))
        .await
        .expect(201);

    let second = page(&server, &format!("limit=2&continue={}", token(&first))).await;
    assert_eq!(names(&second), "c,d");
    assert_eq!(second["items"][1]["metadata"]["labels"]["site"], "x");
    assert_eq!(revision(&second), revision(&first));
    let third = page(&server, &format!("limit=2&continue={}", token(&second))).await;
    assert_eq!(names(&third), "e");
    assert_eq!(third["items"][0]["metadata"]["labels"]["site"], "x");
    assert_eq!(third["metadata"].get("continue"), None);

    let exact = format!(
        "resourceVersionMatch=Exact&resourceVersion={}",
        revision(&first)
    );
    assert_eq!(names(&page(&server, &exact).await), "a,b,c,d,e");
    let at = revision(&first);
    let legacy = page(&server, &format!("limit=2&resourceVersion={at}")).await;
    assert_eq!((names(&legacy).as_str(), revision(&legacy)), ("a,b", at));
    let rest = page(&server, &format!("continue={}", token(&legacy))).await;
    assert_eq!(names(&rest), "c,d,e");
    for newest in [
        "limit=10".to_owned(),
        "limit=10&resourceVersion=0".to_owned(),
        format!("resourceVersion={at}"),
        format!("limit=10&resourceVersion={at}&resourceVersionMatch=NotOlderThan"),
    ] {
        assert_eq!(names(&page(&server, &newest).await), "a,b,bb,d,e");
    }
    // A watch goes on behind the state that the pages showed.
    let path = format!(
        "{ROUTERS}?watch=1&timeoutSeconds=1&resourceVersion={}",
        revision(&third)
    );
    let seen = server.get(POD, &path).await.body;
    assert_eq!(seen.split(|byte| *byte == b'\n').count(), 6);
}

#[tokio::test]
async fn what_is_selected_is_paged_and_not_counted() {
    let server = with_routers(&["a", "b", "c"]).await;
    server
        .post(ADMIN, &router("aa", json!({})))
        .await
        .expect(201);
    let first = page(&server, "limit=2&labelSelector=site").await;
    assert_eq!(names(&first), "a,b");
    assert_eq!(first["metadata"].get("remainingItemCount"), None);
    let query = format!("limit=2&labelSelector=site&continue={}", token(&first));
    assert_eq!(names(&page(&server, &query).await), "c");
}

/// More objects than one look at the store takes: 1,200, of which every 400th has a label.
async fn with_many() -> Server {
    let server = Server::with(StoreConfig::default()).await;
    let writes = (0..1200).map(|number| {
        let name = format!("r{number:04}");
        let mut object = router(&name, json!({}));
        if number % 400 == 399 {
            object["metadata"]["labels"] = json!({"site": "x"});
        }
        let key = Key {
            resource: "routers.edge.example.com".into(),
            name,
        };
        let data = Bytes::from(object.to_string());
        server.store.write(key, move |_, _| (Change::Put(data), ()))
    });
    futures_util::future::try_join_all(writes).await.unwrap();
    server
}

#[tokio::test]
async fn lists_go_over_many_looks_at_the_store() {
    let server = with_many().await;
    let all = page(&server, "").await;
    let expected: Vec<String> = (0..1200).map(|number| format!("r{number:04}")).collect();
    assert_eq!(names(&all), expected.join(","));
    assert_eq!(all["metadata"].get("continue"), None);
    // Pages that are smaller and larger than a look, of which the last is full.
    for limit in [400, 600] {
        let mut seen = 0;
        let mut query = format!("limit={limit}");
        loop {
            let list = page(&server, &query).await;
            assert_eq!(names(&list), expected[seen..seen + limit].join(","));
            seen += limit;
            assert_eq!(
                list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0),
                1200 - seen as u64
            );
            if seen == 1200 {
                assert_eq!(list["metadata"].get("continue"), None);
                break;
            }
            query = format!("limit={limit}&continue={}", token(&list));
        }
    }
    let few = page(&server, "limit=2&labelSelector=site").await;
    assert_eq!(names(&few), "r0399,r0799");
    assert_eq!(few["metadata"].get("remainingItemCount"), None);
    let query = format!("limit=2&labelSelector=site&continue={}", token(&few));
    let rest = page(&server, &query).await;
    assert_eq!(names(&rest), "r1199");
    assert_eq!(rest["metadata"].get("continue"), None);
    assert_eq!(
        names(&page(&server, "labelSelector=site").await),
        "r0399,r0799,r1199"
    );
}

#[tokio::test]
async fn a_table_is_as_whole_as_a_list() {
    let server = with_many().await;
    let request = Request::builder()
        .uri(format!("{ROUTERS}?limit=700"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let response = server.send(POD, request.body(full("")).unwrap()).await;
    let length = response.body().size_hint().exact();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(length, Some(body.len() as u64));
    let table: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&table["kind"], &table["apiVersion"]),
        (&json!("Table"), &json!("meta.k8s.io/v1"))
    );
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 700);
    assert_eq!(rows[699]["cells"][0], "r0699");
    assert_eq!(table["metadata"]["remainingItemCount"], 500);
    assert!(!token(&table).is_empty());
}

#[tokio::test]
async fn a_page_of_a_forgotten_state_is_expired() {
    let server = with_routers(&["a", "b"]).await;
    let first = page(&server, "limit=1").await;
    let label = json!({"metadata": {"labels": {"site": "y"}}});
    server.patch(ADMIN, "a", MERGE, &label).await.expect(200);
    server.store.compact(server.store.current()).await.unwrap();
    let path = format!("{ROUTERS}?limit=1&continue={}", token(&first));
    let answer = server.get(POD, &path).await;
    assert_eq!(
        (answer.code.as_u16(), answer.text("/reason").as_str()),
        (410, "Expired")
    );
    assert!(
        answer
            .message()
            .starts_with("The provided continue parameter is too old")
    );
    let legacy = format!("{ROUTERS}?limit=1&resourceVersion={}", revision(&first));
    let answer = server.get(POD, &legacy).await;
    assert_eq!(
        (answer.code.as_u16(), answer.text("/reason").as_str()),
        (410, "Expired")
    );
    let both = format!("{path}&resourceVersion=5");
    assert_eq!(server.get(POD, &both).await.code, 400);
}
