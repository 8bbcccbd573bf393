//! Requests over HTTP/3 by our own client.

use bytes::Bytes;
use http_body_util::BodyExt;
use keel_certs::join_client_config;
use keel_fabric::quic::QuicKeys;

use super::*;
use crate::client::{ClientError, post};
use crate::http::read;
use crate::transport::{ALPN_H3, BindError};

#[tokio::test]
async fn a_caller_is_who_its_certificate_says() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    for (caller, path) in [
        (fabric.node("b"), "/node/b"),
        (
            fabric.pod("b", "default", "db-0"),
            "/node/b/ns/default/pod/db-0",
        ),
        (fabric.node_admin("a", "ann"), "/node/a/admin/ann"),
        (fabric.fabric_admin("cloud"), "/admin/cloud"),
    ] {
        let client = served.client(&caller, "a");
        assert_eq!(
            text(soon(client.request(get("/who"))).await.unwrap()).await,
            path
        );
    }
    served.stop().await;
}

#[tokio::test]
async fn without_a_certificate_the_caller_is_nobody() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let tls = join_client_config(&fabric.pin(), &[ALPN_H3]);
    let body = serde_json::json!({"some": "thing"});
    assert_eq!(
        soon(post(&served.server(), tls.clone(), "/echo", &body))
            .await
            .unwrap(),
        body
    );
    let error = soon(post(&served.server(), tls, "/refuse", &body))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ClientError::Status(status) if status.code == 413),
        "{error}"
    );
    let other = Fabric::new();
    let error = soon(post(
        &served.server(),
        join_client_config(&other.pin(), &[ALPN_H3]),
        "/echo",
        &body,
    ))
    .await
    .unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    served.stop().await;
}

#[tokio::test]
async fn another_trust_domain_and_another_node_are_refused() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let foreign = Fabric::named("other.keel");
    let error = soon(served.client(&foreign.node("a"), "a").request(get("/who")))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    let error = soon(served.client(&fabric.node("b"), "c").request(get("/who")))
        .await
        .unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert!(
        error.to_string().contains("/node/"),
        "the error must name the node: {error}"
    );
    served.stop().await;
}

#[tokio::test]
async fn big_bodies_go_both_ways_through_one_connection() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let client = served.client(&fabric.node("b"), "a");
    let bytes: Vec<u8> = (0..8_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let bytes = Bytes::from(bytes);
    let mut rounds = JoinSet::new();
    for _ in 0..2 {
        let (client, bytes) = (client.clone(), bytes.clone());
        rounds.spawn(async move {
            let request = http::Request::put("/store")
                .header("content-length", bytes.len())
                .body(bytes.clone())
                .unwrap();
            let answer = client.request(request).await.unwrap();
            assert_eq!(read(answer.into_body(), 16 << 20).await.unwrap(), bytes);
        });
    }
    while let Some(round) = soon(rounds.join_next()).await {
        round.unwrap();
    }
    served.stop().await;
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_has_been_read() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let client = served.client(&fabric.node("b"), "a");
    // Far more than the server reads after its answer, so the client is told to stop.
    let request = http::Request::post("/refuse")
        .body(Bytes::from(vec![7; 8 << 20]))
        .unwrap();
    let answer = soon(client.request(request)).await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(text(answer).await, "too much");
    assert_eq!(
        text(soon(client.request(get("/who"))).await.unwrap()).await,
        "/node/b",
        "the connection must live on"
    );
    served.stop().await;
}

#[tokio::test]
async fn half_an_answer_is_an_error() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let client = served.client(&fabric.node("b"), "a");
    // The reset may overtake the header or only the rest of the body.
    if let Ok(answer) = soon(client.request(get("/broken"))).await {
        assert!(soon(read(answer.into_body(), 1 << 20)).await.is_err());
    }
    served.stop().await;
}

#[tokio::test]
async fn a_cancelled_watch_ends_its_handler_at_once() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let served = Served::start(&live, handler.clone(), Limits::default());
    let client = served.client(&fabric.node("b"), "a");
    let mut watches = Vec::new();
    for _ in 0..3 {
        let mut body = soon(client.request(get("/watch")))
            .await
            .unwrap()
            .into_body();
        let first = soon(body.frame())
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap();
        assert_eq!(first, "first\n");
        watches.push(body);
    }
    handler.watches(3).await;
    watches.pop();
    handler.watches(2).await;
    assert_eq!(
        text(soon(client.request(get("/who"))).await.unwrap()).await,
        "/node/b"
    );
    // The client goes, the watches keep the connection.
    drop(client);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), watches[0].frame())
            .await
            .is_err()
    );
    assert_eq!(*handler.watches.borrow(), 2);
    drop(watches);
    handler.watches(0).await;
    served.stop().await;
}

#[tokio::test]
async fn one_port_serves_both_and_only_once() {
    let (_, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let again = ApiServer::bind(
        &served.address.into(),
        &live,
        &QuicKeys::ephemeral(),
        TestHandler::new(),
        Limits::default(),
        served.metrics.clone(),
    );
    match again {
        Err(BindError::Taken { addr }) => assert_eq!(addr, served.address),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("two servers on one port"),
    }
    served.stop().await;
    let both = Served::start_at(":0", &live, TestHandler::new(), Limits::default());
    assert_ne!(both.address.port(), 0);
    both.stop().await;
}
