//! A client that is there and does not read its answer: it is cut, and nobody else is.

use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;

use super::tcp::connect;
use super::*;

fn limits() -> Limits {
    Limits {
        unread: Duration::from_secs(1),
        ..Limits::default()
    }
}

/// It is, in the moment after the answer is gone.
async fn is_counted(served: &Served) {
    soon(async {
        while served.metrics.hits("unread") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(served.metrics.hits("unread"), 1);
}

#[tokio::test]
async fn over_http1_its_connection_is_cut() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let served = Served::start(&live, handler.clone(), limits());
    let expect = NodeName::new("a").unwrap();
    let tls = fabric.node("b").client_config(&[b"http/1.1"], &expect);
    let mut io = connect(&served, tls).await.unwrap();
    // As a client that was stopped: its kernel takes what there is room for, and answers for it for ever.
    io.write_all(b"GET /flood HTTP/1.1\r\nhost: keel\r\n\r\n")
        .await
        .unwrap();
    handler.watches(1).await;
    handler.watches(0).await;
    is_counted(&served).await;
    drop(io);
    served.stop().await;
}

#[tokio::test]
async fn over_http2_its_stream_is_cut() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let served = Served::start(&live, handler.clone(), limits());
    let expect = NodeName::new("a").unwrap();
    let tls = fabric.node("b").client_config(&[b"h2"], &expect);
    let io = TokioIo::new(connect(&served, tls).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    let mut tasks = JoinSet::new();
    // Answers pings, whatever becomes of the streams.
    tasks.spawn(async { drop(connection.await) });
    let mut ask = async |path: &str| {
        let request = http::Request::get(format!("https://keel{path}"));
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        soon(send.send_request(request)).await.unwrap().into_body()
    };
    let mut idle = ask("/watch").await;
    assert!(soon(idle.frame()).await.unwrap().is_ok());
    let mut unread = ask("/flood").await;
    handler.watches(2).await;
    handler.watches(1).await;
    is_counted(&served).await;
    // What had come is there, and then it is no whole answer.
    let end = async {
        while let Some(frame) = unread.frame().await {
            frame?;
        }
        Ok::<_, hyper::Error>(())
    };
    assert!(soon(end).await.is_err());
    let who = soon(ask("/who").await.collect()).await.unwrap();
    assert_eq!(who.to_bytes(), "/node/b");
    assert_eq!(*handler.watches.borrow(), 1, "the idle watch goes on");
    served.stop().await;
}

#[tokio::test]
async fn over_http3_its_stream_is_cut() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let served = Served::start(&live, handler.clone(), limits());
    let client = served.client(&fabric.node("b"), "a");
    let mut idle = soon(client.request(get("/watch")))
        .await
        .unwrap()
        .into_body();
    assert!(soon(idle.frame()).await.unwrap().is_ok());
    let unread = soon(client.request(get("/flood"))).await.unwrap();
    handler.watches(2).await;
    handler.watches(1).await;
    is_counted(&served).await;
    assert!(soon(read(unread.into_body(), usize::MAX)).await.is_err());
    let who = soon(client.request(get("/who"))).await.unwrap();
    assert_eq!(text(who).await, "/node/b");
    assert_eq!(*handler.watches.borrow(), 1, "the idle watch goes on");
    served.stop().await;
}
