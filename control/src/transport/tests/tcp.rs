//! HTTP/2 and HTTP/1.1 over TCP, by hyper.

use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use keel_certs::join_client_config;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

pub(super) async fn connect(
    served: &Served,
    tls: Arc<rustls::ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::from(served.address.ip());
    soon(TlsConnector::from(tls).connect(name, TcpStream::connect(served.address).await?)).await
}

async fn over_h1(
    io: TlsStream<TcpStream>,
    request: http::Request<Full<Bytes>>,
) -> http::Response<hyper::body::Incoming> {
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async { drop(connection.await) });
    let answer = soon(send.send_request(request)).await.unwrap();
    tasks.detach_all();
    answer
}

async fn over_h2(
    io: TlsStream<TcpStream>,
    request: http::Request<Full<Bytes>>,
) -> http::Response<hyper::body::Incoming> {
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async { drop(connection.await) });
    let answer = soon(send.send_request(request)).await.unwrap();
    tasks.detach_all();
    answer
}

fn request(path: &str, body: Bytes) -> http::Request<Full<Bytes>> {
    http::Request::put(path)
        .header("host", "keel")
        .body(Full::new(body))
        .unwrap()
}

#[tokio::test]
async fn http1_and_http2_reach_the_same_handler() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let me = fabric.node("b");
    let expect = NodeName::new("a").unwrap();

    let io = connect(&served, me.client_config(&[b"http/1.1"], &expect))
        .await
        .unwrap();
    let answer = over_h1(io, request("/who", Bytes::new())).await;
    let alt_svc = answer.headers()["alt-svc"].to_str().unwrap().to_owned();
    assert_eq!(
        alt_svc,
        format!("h3=\":{}\"; ma=86400", served.address.port())
    );
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "/node/b"
    );

    let io = connect(&served, me.client_config(&[b"h2", b"http/1.1"], &expect))
        .await
        .unwrap();
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let bytes = Bytes::from(vec![42; 3 << 20]);
    let echo = http::Request::put("https://keel/echo")
        .body(Full::new(bytes.clone()))
        .unwrap();
    let answer = over_h2(io, echo).await;
    assert_eq!(
        soon(answer.into_body().collect()).await.unwrap().to_bytes(),
        bytes
    );
    served.stop().await;
}

#[tokio::test]
async fn a_head_is_answered_without_a_body() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let me = fabric.node("b");
    let head = || {
        let head = http::Request::head("https://keel/who").header("host", "keel");
        head.body(Full::new(Bytes::new())).unwrap()
    };
    let mut answers = Vec::new();
    for protocol in [&b"http/1.1"[..], b"h2"] {
        let expect = NodeName::new("a").unwrap();
        let io = connect(&served, me.client_config(&[protocol], &expect))
            .await
            .unwrap();
        let answer = if protocol == b"h2" {
            over_h2(io, head()).await
        } else {
            over_h1(io, head()).await
        };
        let (parts, body) = answer.into_parts();
        answers.push((parts, soon(body.collect()).await.unwrap().to_bytes()));
    }
    let request = http::Request::head("/who").body(Bytes::new()).unwrap();
    let answer = soon(served.client(&me, "a").request(request))
        .await
        .unwrap();
    let (parts, body) = answer.into_parts();
    answers.push((parts, soon(body.collect()).await.unwrap().to_bytes()));
    for (parts, body) in answers {
        assert_eq!(parts.status, 200, "{parts:?}");
        assert_eq!(parts.headers["content-length"], "7", "{parts:?}");
        assert!(body.is_empty(), "{parts:?}: {body:?}");
    }
    served.stop().await;
}

#[tokio::test]
async fn without_a_certificate_the_caller_is_nobody_and_a_foreign_one_is_refused() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let io = connect(&served, join_client_config(&fabric.pin(), &[b"http/1.1"]))
        .await
        .unwrap();
    let answer = over_h1(io, request("/who", Bytes::new())).await;
    assert_eq!(
        answer.into_body().collect().await.unwrap().to_bytes(),
        "nobody"
    );

    let foreign = Fabric::named("other.keel").node("b");
    let io = connect(
        &served,
        foreign.client_config(&[b"http/1.1"], &NodeName::new("a").unwrap()),
    )
    .await;
    assert!(
        io.is_err(),
        "a client must refuse a server of another trust domain"
    );
    served.stop().await;
}

#[tokio::test]
async fn a_watch_ends_with_its_client_and_with_its_server() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let served = Served::start(&live, handler.clone(), Limits::default());
    let tls = fabric
        .node("b")
        .client_config(&[b"http/1.1"], &NodeName::new("a").unwrap());
    let watch = || async {
        let io = connect(&served, tls.clone()).await.unwrap();
        let mut body = over_h1(io, request("/watch", Bytes::new()))
            .await
            .into_body();
        assert!(soon(body.frame()).await.unwrap().is_ok());
        body
    };
    let (first, mut second) = (watch().await, watch().await);
    handler.watches(2).await;
    drop(first);
    handler.watches(1).await;
    served.stop.cancel();
    assert!(
        soon(second.frame()).await.is_none(),
        "the watch must end without an error"
    );
    handler.watches(0).await;
    served.stop().await;
}

#[tokio::test]
async fn silent_peers_are_dropped_and_too_many_turned_away() {
    let (_, live) = fabric();
    let limits = Limits {
        connections: 1,
        handshake: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = Served::start(&live, TestHandler::new(), limits);
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let mut more = TcpStream::connect(served.address).await.unwrap();
    let mut byte = [0];
    // Turned away at once, while the silent one has its time.
    let ended = soon(more.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(served.metrics.hits("connections"), 1);
    let ended = soon(silent.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(served.metrics.hits("handshake_time"), 1);
    served.stop().await;
}

#[tokio::test]
async fn those_without_a_certificate_have_few_places_and_take_none_of_the_others() {
    let (fabric, live) = fabric();
    let limits = Limits {
        anonymous: 1,
        ..Limits::default()
    };
    let served = Served::start(&live, TestHandler::new(), limits);
    let nobody = join_client_config(&fabric.pin(), &[b"http/1.1"]);
    let mut first = connect(&served, nobody.clone()).await.unwrap();
    first
        .write_all(b"GET /who HTTP/1.1\r\nhost: keel\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 15];
    soon(first.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");

    let mut second = connect(&served, nobody).await.unwrap();
    let ended = soon(second.read(&mut answer)).await;
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(served.metrics.hits("anonymous"), 1);
    let tls = join_client_config(&fabric.pin(), &[crate::transport::ALPN_H3]);
    let body = serde_json::json!({});
    let server = served.server();
    let refused = crate::client::post(&server, tls.clone(), "/echo", &body);
    assert!(soon(refused).await.is_err());
    assert_eq!(served.metrics.hits("anonymous"), 2);

    let known = served.client(&fabric.node("b"), "a");
    let answer = soon(known.request(get("/who"))).await.unwrap();
    assert_eq!(text(answer).await, "/node/b");
    drop(first);
    soon(async {
        // The place is free a moment after the connection is gone.
        while crate::client::post(&server, tls.clone(), "/echo", &body)
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    served.stop().await;
}

/// The answer comes whole although nobody reads what is sent, time after time: this was lost four times of five.
#[tokio::test]
async fn an_early_answer_arrives_over_http2() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let me = fabric.node("b");
    let expect = NodeName::new("a").unwrap();
    for length in [0, 100, 8 << 20] {
        for _ in 0..5 {
            let io = connect(&served, me.client_config(&[b"h2"], &expect))
                .await
                .unwrap();
            let (mut send, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
                    .await
                    .unwrap();
            let mut tasks = JoinSet::new();
            tasks.spawn(async { drop(connection.await) });
            let refused = http::Request::put("https://keel/who")
                .body(Full::new(Bytes::from(vec![42; length])))
                .unwrap();
            let answer = soon(send.send_request(refused)).await.unwrap();
            assert!(
                !soon(answer.into_body().collect())
                    .await
                    .unwrap()
                    .to_bytes()
                    .is_empty()
            );
        }
    }
    served.stop().await;
}
