//! The status: apart from the spec, lenient, and ordered by the writing node's revision.

use serde_json::json;

use super::*;

#[tokio::test]
async fn spec_and_status_do_not_touch_each_other() {
    let server = Server::new().await;
    let created = server
        .post(ADMIN, &router("a", json!({"addresses": ["a:1"]})))
        .await
        .expect(201);
    let mut both = with_status("a", json!({"cluster": "default"}));
    both["spec"] = json!({"addresses": ["b:2"]});
    both["metadata"]["labels"] = json!({"no": "no"});
    let written = server.put(ADMIN, "a/status", &both).await.expect(200);
    assert_eq!(
        (
            &written["spec"]["addresses"][0],
            &written["status"]["cluster"]
        ),
        (&json!("a:1"), &json!("default"))
    );
    assert_eq!(
        (
            &written["metadata"]["generation"],
            written["metadata"].get("labels")
        ),
        (&json!(1), None)
    );
    assert!(revision(&written) > revision(&created));
    both["status"] = json!({"cluster": "other"});
    both["metadata"]["resourceVersion"] = written["metadata"]["resourceVersion"].clone();
    let written = server.put(ADMIN, "a", &both).await.expect(200);
    assert_eq!(
        (
            &written["spec"]["addresses"][0],
            &written["status"]["cluster"]
        ),
        (&json!("b:2"), &json!("default"))
    );
    let patched = server
        .patch(
            ADMIN,
            "a/status",
            MERGE,
            &json!({"status": {"x": null, "odd": 1}}),
        )
        .await
        .expect(200);
    assert_eq!(patched["status"], json!({"cluster": "default", "odd": 1}));
    assert_eq!(
        server
            .get(POD, &format!("{ROUTERS}/a/status"))
            .await
            .expect(200),
        patched
    );
    assert_eq!(
        server
            .put(ADMIN, "none/status", &with_status("none", json!({})))
            .await
            .code,
        404
    );
    assert_eq!(server.delete(ADMIN, "a/status", "").await.code, 405);
}

#[tokio::test]
async fn this_nodes_status_is_stamped_with_its_commit() {
    let server = Server::new().await;
    let status = json!({"cluster": "c", "heartbeatTime": "0000-05-04T23:10:04Z", "activeServices": [null, 5, {"name": null}], "source": {"revision": 1}});
    let written = server
        .put(HERE, "here/status", &with_status("here", status.clone()))
        .await
        .expect(201);
    assert_eq!(
        written["spec"],
        json!({}),
        "a missing router is created with an empty spec"
    );
    assert_eq!(written["status"]["source"]["revision"], revision(&written));
    assert_eq!(
        written["status"]["activeServices"], status["activeServices"],
        "whatever stands there is kept"
    );
    let same = server
        .put(HERE, "here/status", &with_status("here", status))
        .await
        .expect(200);
    assert_eq!(
        revision(&same),
        revision(&written),
        "an identical status is no write"
    );
    let next = server
        .patch(
            HERE,
            "here/status",
            MERGE,
            &json!({"status": {"cluster": "d"}}),
        )
        .await
        .expect(200);
    assert!(revision(&next) > revision(&written));
    assert_eq!(next["status"]["source"]["revision"], revision(&next));
}

#[tokio::test]
async fn another_nodes_status_counts_only_if_it_is_newer() {
    // Pushed by the node itself, or pulled from it by this node: the same rule.
    for who in [THERE, HERE] {
        let server = Server::new().await;
        let status = |number: u64, cluster: &str| {
            with_status(
                "there",
                json!({"cluster": cluster, "source": {"revision": number}}),
            )
        };
        let put = async |number, cluster| {
            server
                .put(who, "there/status", &status(number, cluster))
                .await
        };
        let first = put(10, "ten").await.expect(201);
        assert_eq!(
            (&first["status"]["source"]["revision"], &first["spec"]),
            (&json!(10), &json!({}))
        );
        for number in [9, 10] {
            let held = put(number, "older").await.expect(200);
            assert_eq!(
                held, first,
                "{number} is not news: the writer sees what is held"
            );
        }
        let newer = put(11, "eleven").await.expect(200);
        assert_eq!(newer["status"]["cluster"], "eleven");
        let answer = server
            .put(
                who,
                "there/status",
                &with_status("there", json!({"cluster": "x"})),
            )
            .await;
        assert_eq!(
            (
                answer.code.as_u16(),
                answer.text("/details/causes/0/field").as_str()
            ),
            (422, "status.source.revision")
        );
    }
    // The spec that somebody wrote here stays.
    let server = Server::new().await;
    server
        .post(ADMIN, &router("there", json!({"addresses": ["t:1"]})))
        .await
        .expect(201);
    let written = server
        .put(
            THERE,
            "there/status",
            &with_status("there", json!({"source": {"revision": "7"}})),
        )
        .await
        .expect(200);
    assert_eq!(written["spec"]["addresses"][0], "t:1");
}

#[tokio::test]
async fn this_node_marks_what_it_holds_of_another_as_old() {
    let server = Server::new().await;
    let ready = json!({"type": "Ready", "status": "True"});
    let stale = json!({"type": "Synced", "status": "False", "reason": "PeerNotHeard"});
    let said = |cluster: &str, revision: u64, conditions: Value| {
        let source = json!({"revision": revision});
        with_status(
            "there",
            json!({"cluster": cluster, "source": source, "conditions": conditions}),
        )
    };
    let path = "there/status";
    let first = said("c", 7, json!([ready]));
    server.put(HERE, path, &first).await.expect(201);
    // Under the same number the mark counts, and nothing beside it.
    let marked = said("lie", 7, json!([stale]));
    let held = server.put(HERE, path, &marked).await.expect(200);
    assert_eq!(held["status"]["cluster"], "c");
    assert_eq!(held["status"]["conditions"], json!([ready, stale]));
    let again = server.put(HERE, path, &marked).await.expect(200);
    assert_eq!(revision(&again), revision(&held), "no news");
    // By push a node says nothing about how old it is here.
    let pushed = said("c", 7, json!([ready]));
    let kept = server.put(THERE, path, &pushed).await.expect(200);
    assert_eq!(kept["status"]["conditions"], json!([ready, stale]));
    let off = server.put(HERE, path, &first).await.expect(200);
    assert_eq!(off["status"]["conditions"], json!([ready]));
    // An older one neither marks nor unmarks.
    let older = said("c", 6, json!([stale]));
    let kept = server.put(HERE, path, &older).await.expect(200);
    assert_eq!(kept, off);
    // A newer status takes the mark along.
    server.put(HERE, path, &marked).await.expect(200);
    let newer = said("c", 8, json!([ready]));
    let held = server.put(THERE, path, &newer).await.expect(200);
    assert_eq!(held["status"]["conditions"], json!([ready]));
}

#[tokio::test]
async fn a_node_that_floods_is_told_to_wait_and_this_node_is_not() {
    let server = Server::new().await;
    let push = async |who: &str, name: &str, revision: u64| {
        let status = with_status(name, json!({"source": {"revision": revision}}));
        server.put(who, &format!("{name}/status"), &status).await
    };
    let mut refused = None;
    for at in 1..200 {
        let answer = push(THERE, "there", at).await;
        if answer.code == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("200 pushes in a moment are too many");
    assert!(refused.message().contains("too often"), "{refused:?}");
    for at in 1..50 {
        assert!(push(HERE, "third", at).await.code.is_success());
    }
}
