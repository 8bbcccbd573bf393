//! A server that stops.

use http_body_util::BodyExt;
use keel_fabric::quic::{Endpoint, Profile};
use tokio::time::Instant;

use super::*;
use crate::client::ClientError;
use crate::http::Remote;
use crate::transport::{ALPN_H3, http3};

#[tokio::test]
async fn what_runs_is_finished_and_watches_end_cleanly() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let served = Served::start(&live, handler.clone(), Limits::default());
    let client = served.client(&fabric.node("b"), "a");
    let mut watch = soon(client.request(get("/watch")))
        .await
        .unwrap()
        .into_body();
    assert!(soon(watch.frame()).await.unwrap().is_ok());
    let mut slow = JoinSet::new();
    let asking = client.clone();
    slow.spawn(async move { text(asking.request(get("/slow")).await.unwrap()).await });
    soon(handler.slow.subscribe().wait_for(|begun| *begun == 1))
        .await
        .unwrap();

    served.stop.cancel();
    assert!(
        soon(watch.frame()).await.is_none(),
        "the watch must end without an error"
    );
    // The running request keeps the server; a new one is turned away.
    let error = soon(client.request(get("/who"))).await.unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Unreachable { .. } | ClientError::Interrupted { .. }
        ),
        "{error}"
    );
    handler.go_on.cancel();
    assert_eq!(soon(slow.join_next()).await.unwrap().unwrap(), "done");
    served.stop().await;
}

#[tokio::test]
async fn a_stuck_request_does_not_hold_the_server_for_ever() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let limits = Limits {
        drain: Duration::from_millis(200),
        ..Limits::default()
    };
    let served = Served::start(&live, handler.clone(), limits);
    let client = served.client(&fabric.node("b"), "a");
    let mut slow = JoinSet::new();
    slow.spawn(async move { client.request(get("/slow")).await });
    soon(handler.slow.subscribe().wait_for(|begun| *begun == 1))
        .await
        .unwrap();
    let metrics = served.metrics.clone();
    served.stop().await;
    assert!(soon(slow.join_next()).await.unwrap().unwrap().is_err());
    assert_eq!(metrics.hits("drain_time"), 1);
}

/// A client on a thread of its own that stands still, as one that was killed.
#[tokio::test]
async fn a_client_that_is_gone_holds_nobody_up() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let served = Served::start(&live, handler.clone(), Limits::default());
    let (address, me) = (served.server(), fabric.node("b"));
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _held = runtime.block_on(async {
            let config = ClientConfig {
                server: address,
                expect: NodeName::new("a").unwrap(),
                live: me,
            };
            let client = Client::new(config).unwrap();
            let watch = client.request(get("/watch")).await.unwrap();
            (client, watch)
        });
        let _ = gone.recv();
        runtime.shutdown_background();
    });
    handler.watches(1).await;
    let stopped = tokio::time::timeout(Duration::from_secs(4), served.stop()).await;
    drop(go);
    client.join().unwrap();
    stopped.unwrap();
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let address = served.address;
    let client = served.client(&fabric.node("b"), "a");
    assert_eq!(
        text(soon(client.request(get("/who"))).await.unwrap()).await,
        "/node/b"
    );
    served.stop().await;
    let error = soon(client.request(get("/who"))).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    let served = Served::start_at(
        &address.to_string(),
        &live,
        TestHandler::new(),
        Limits::default(),
    );
    assert_eq!(
        text(soon(client.request(get("/who"))).await.unwrap()).await,
        "/node/b"
    );
    served.stop().await;
}

#[tokio::test]
async fn a_connection_ends_with_its_clients_certificate() {
    let (fabric, live) = fabric();
    let tls = live.server_config(&[ALPN_H3], keel_certs::Clients::Optional);
    let listen = "127.0.0.1:0".parse().unwrap();
    let endpoint =
        Endpoint::bind(&listen, Some(tls), &QuicKeys::ephemeral(), Profile::Control).unwrap();
    let address = endpoint.local_addrs()[0];
    let handler = TestHandler::new();
    let mut tasks = JoinSet::new();
    let serving = handler.clone();
    tasks.spawn(async move {
        let connection = endpoint.accept().await.unwrap().handshake().await.unwrap();
        let peer = connection.peer().unwrap().unwrap().identity.clone();
        let caller = Caller {
            identity: Some(peer),
            remote: Remote::Quic(connection.remote_address()),
        };
        let metrics = TransportMetrics::register(&mut Registry::default());
        let expires = Instant::now() + Duration::from_millis(500);
        http3::serve(
            connection,
            caller,
            serving,
            Limits::default(),
            metrics,
            expires,
            CancellationToken::new(),
        )
        .await;
        endpoint.wait_idle().await;
    });
    let config = ClientConfig {
        server: address.into(),
        expect: NodeName::new("a").unwrap(),
        live: fabric.node("b"),
    };
    let client = Client::new(config).unwrap();
    let mut watch = soon(client.request(get("/watch")))
        .await
        .unwrap()
        .into_body();
    assert!(soon(watch.frame()).await.unwrap().is_ok());
    assert!(
        soon(watch.frame()).await.is_none(),
        "the watch must end cleanly"
    );
    soon(tasks.join_next()).await.unwrap().unwrap();
    handler.watches(0).await;
}
