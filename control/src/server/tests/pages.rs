//! Lists in pages: all pages show one state, whatever happens meanwhile.

use serde_json::json;

use super::*;

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
    assert_eq!(names(&page(&server, "limit=10").await), "a,b,bb,d,e");
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
    let both = format!("{path}&resourceVersion=5");
    assert_eq!(server.get(POD, &both).await.code, 400);
}
