//! Peers that break the rules of HTTP/3, over raw QUIC.

use http::HeaderValue;
use keel_fabric::quic::{
    Connection, Endpoint, Profile, ReadError, RecvStream, SendStream, WriteError,
};

use super::*;
use crate::transport::ALPN_H3;

const NO_ERROR: u64 = 0x100;

async fn raw(served: &Served, live: &LiveIdentity) -> (Endpoint, Connection) {
    let endpoint = Endpoint::client(Profile::Control).unwrap();
    let tls = live.client_config(&[ALPN_H3], &NodeName::new("a").unwrap());
    let connection = soon(endpoint.connect(served.address, "127.0.0.1", tls))
        .await
        .unwrap();
    (endpoint, connection)
}

/// A control stream with empty settings.
async fn control(connection: &Connection) -> SendStream {
    let mut control = connection.open_uni().await.unwrap();
    control.write_all(&[0x00, 0x04, 0x00]).await.unwrap();
    control
}

/// A request over raw QUIC of which only the header was sent; the connection lives as long as this.
struct Begun {
    send: SendStream,
    recv: RecvStream,
    _control: SendStream,
    _kept: (Endpoint, Connection),
}

impl Begun {
    async fn new(served: &Served, live: &LiveIdentity, header: &[u8]) -> Self {
        let kept = raw(served, live).await;
        let control = control(&kept.1).await;
        let (mut send, recv) = kept.1.open_bi().await.unwrap();
        send.write_all(header).await.unwrap();
        Self {
            send,
            recv,
            _control: control,
            _kept: kept,
        }
    }
}

async fn end_of(recv: &mut RecvStream) -> Result<(), ReadError> {
    while soon(recv.read_chunk(usize::MAX)).await?.is_some() {}
    Ok(())
}

/// HEADERS with `POST https://keel/<path>` from QPACK's static table and literals.
fn headers(path: &str) -> Vec<u8> {
    let mut block = vec![0, 0, 0xc0 | 20, 0xc0 | 23, 0x50, 4];
    block.extend_from_slice(b"keel");
    block.extend_from_slice(&[0x51, u8::try_from(path.len()).unwrap()]);
    block.extend_from_slice(path.as_bytes());
    let mut frame = vec![0x01, u8::try_from(block.len()).unwrap()];
    frame.append(&mut block);
    frame
}

async fn still_serves(served: &Served, live: &LiveIdentity) {
    let answer = soon(served.client(live, "a").request(get("/who")))
        .await
        .unwrap();
    assert_eq!(text(answer).await, "/node/b");
}

#[tokio::test]
async fn a_header_without_end_is_cut_at_its_budget() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let me = fabric.node("b");
    let (_endpoint, connection) = raw(&served, &me).await;
    let _control = control(&connection).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    // A HEADERS frame that announces a gigabyte.
    send.write_all(&[0x01, 0xc0, 0, 0, 0, 0x40, 0, 0, 0])
        .await
        .unwrap();
    let piece = Bytes::from(vec![0; 16 * 1024]);
    let mut sent = 0;
    let stopped = loop {
        match soon(send.write_chunk(piece.clone())).await {
            Ok(()) => sent += piece.len(),
            Err(error) => break error,
        }
        assert!(sent < 8 << 20, "the server takes a header of any size");
    };
    assert!(
        matches!(stopped, WriteError::Stopped(NO_ERROR)),
        "{stopped}"
    );
    // The answer is there, and whole.
    let answer = soon(recv.read_chunk(1 << 16)).await.unwrap().unwrap();
    assert!(answer.ends_with(b"431"), "{answer:?}");
    end_of(&mut recv).await.unwrap();
    // Counted a moment after the client is told.
    soon(async {
        while served.metrics.hits("header_size") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    still_serves(&served, &me).await;
    served.stop().await;
}

#[tokio::test]
async fn too_many_header_fields_are_refused() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let me = fabric.node("b");
    let client = served.client(&me, "a");
    let mut request = get("/who");
    for at in 0..900 {
        request.headers_mut().append(
            "x-filler",
            HeaderValue::from_str(&format!("{at:060}")).unwrap(),
        );
    }
    // Our own client knows the server's limit once it has its settings, and would not send it; either way it is refused.
    let refused = match soon(client.request(request)).await {
        Ok(answer) => answer.status() == 431,
        Err(_) => true,
    };
    assert!(refused);
    still_serves(&served, &me).await;
    served.stop().await;
}

#[tokio::test]
async fn a_request_whose_header_never_comes_is_dropped() {
    let (fabric, live) = fabric();
    let limits = Limits {
        header: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = Served::start(&live, TestHandler::new(), limits);
    let mut request = Begun::new(&served, &fabric.node("b"), &[0x01, 0x20, 0]).await;
    let end = end_of(&mut request.recv).await;
    assert!(matches!(end, Err(ReadError::Reset(_))));
    assert_eq!(served.metrics.hits("header_time"), 1);
    served.stop().await;
}

#[tokio::test]
async fn a_request_whose_body_never_comes_is_answered_with_an_error() {
    let (fabric, live) = fabric();
    let limits = Limits {
        body: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = Served::start(&live, TestHandler::new(), limits);
    let mut request = Begun::new(&served, &fabric.node("b"), &headers("/store")).await;
    let (send, recv) = (&mut request.send, &mut request.recv);
    // Two of the five bytes that the frame announces.
    send.write_all(&[0x00, 5, 1, 2]).await.unwrap();
    let answer = soon(recv.read_chunk(1 << 16)).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("within 0.3 s"));
    served.stop().await;
}

#[tokio::test]
async fn a_frame_of_no_use_within_a_body_is_held_up_to_a_bound() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let mut request = Begun::new(&served, &fabric.node("b"), &headers("/store")).await;
    let (send, recv) = (&mut request.send, &mut request.recv);
    // A frame of a reserved type that announces a gigabyte: h3 skips it when all of it is there.
    send.write_all(&[0x21, 0xc0, 0, 0, 0, 0x40, 0, 0, 0])
        .await
        .unwrap();
    let piece = Bytes::from(vec![0; 16 * 1024]);
    let mut sent = 0;
    let flood = async {
        while send.write_chunk(piece.clone()).await.is_ok() {
            sent += piece.len();
        }
        std::future::pending().await
    };
    let answer = tokio::select! {
        answer = soon(recv.read_chunk(1 << 16)) => answer.unwrap().unwrap(),
        () = flood => unreachable!("it never ends"),
    };
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("too large to be skipped"), "{answer}");
    assert!(sent < 4 << 20, "{sent} bytes were taken");
    served.stop().await;
}

#[tokio::test]
async fn a_body_in_very_many_frames_arrives() {
    const FRAMES: usize = 200_000;
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let mut request = Begun::new(&served, &fabric.node("b"), &headers("/store")).await;
    let (send, recv) = (&mut request.send, &mut request.recv);
    // Twice as much for the frames as for what they carry.
    let body = [0x00, 1, b'x'].repeat(FRAMES);
    soon(send.write_all(&body)).await.unwrap();
    send.finish();
    let mut back = 0;
    while let Some(chunk) = soon(recv.read_chunk(1 << 16)).await.unwrap() {
        back += chunk.len();
    }
    assert!(back >= FRAMES, "{back} bytes came back");
    served.stop().await;
}

#[tokio::test]
async fn a_crowded_server_asks_for_a_proof_of_address() {
    let (fabric, live) = fabric();
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let served = Served::start(&live, TestHandler::new(), limits);
    let me = fabric.node("b");
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(raw(&served, &me).await);
    }
    assert_eq!(served.metrics.hits("unvalidated"), 0);
    let endpoint = Endpoint::client(Profile::Control).unwrap();
    let tls = me.client_config(&[ALPN_H3], &NodeName::new("a").unwrap());
    let refused = soon(endpoint.connect(served.address, "127.0.0.1", tls)).await;
    assert!(refused.is_err());
    assert_eq!(served.metrics.hits("unvalidated"), 1);
    assert_eq!(served.metrics.hits("connections"), 1);
    served.stop().await;
}

#[tokio::test]
async fn a_herd_gets_in_in_its_turn_and_who_is_in_is_served() {
    let (fabric, live) = fabric();
    let limits = Limits {
        handshakes_per_second: 5,
        ..Limits::default()
    };
    let served = Served::start(&live, TestHandler::new(), limits);
    let (me, them) = (fabric.node("b"), fabric.node("c"));
    let client = served.client(&me, "a");
    soon(client.request(get("/"))).await.unwrap();
    // As many as find a place wait in order, and as many again come a second time.
    let mut herd: JoinSet<_> = (0..20)
        .map(|_| {
            let endpoint = Endpoint::client(Profile::Control).unwrap();
            let tls = them.client_config(&[ALPN_H3], &NodeName::new("a").unwrap());
            let address = served.address;
            async move { endpoint.connect(address, "127.0.0.1", tls).await.map(drop) }
        })
        .collect();
    let mut within = 0;
    while let Some(outcome) = soon(herd.join_next()).await {
        outcome.unwrap().unwrap();
        soon(client.request(get("/"))).await.unwrap();
        within += usize::from(served.metrics.hits("handshakes_per_second") > 0);
    }
    assert!(within > 0, "nobody had to come again");
    // Half of the places are only for those who have proven where they are.
    assert!(served.metrics.hits("unvalidated") > 0);
    served.stop().await;
}

#[tokio::test]
async fn an_answered_request_is_stopped_with_a_code_that_is_no_error() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let mut request = Begun::new(&served, &fabric.node("b"), &headers("/refuse")).await;
    let (send, recv) = (&mut request.send, &mut request.recv);
    // The request is not finished: the answer comes whole all the same, and only then the server wants no more.
    end_of(recv).await.unwrap();
    assert_eq!(soon(send.stopped()).await.unwrap(), Some(NO_ERROR));
    served.stop().await;
}

#[tokio::test]
async fn a_cancelled_raw_request_ends_its_handler() {
    let (fabric, live) = fabric();
    let handler = TestHandler::new();
    let served = Served::start(&live, handler.clone(), Limits::default());
    let mut request = Begun::new(&served, &fabric.node("b"), &headers("/watch")).await;
    let (send, recv) = (&mut request.send, &mut request.recv);
    send.finish();
    assert!(soon(recv.read_chunk(1 << 16)).await.unwrap().is_some());
    handler.watches(1).await;
    recv.stop(0x10c);
    handler.watches(0).await;
    served.stop().await;
}

#[tokio::test]
async fn garbage_costs_its_sender_its_connection_and_nobody_else_anything() {
    let (fabric, live) = fabric();
    let served = Served::start(&live, TestHandler::new(), Limits::default());
    let me = fabric.node("b");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    for round in 0..40 {
        let (_endpoint, connection) = raw(&served, &me).await;
        let garbage: Vec<u8> = (0..1 + 37 * round).map(|_| byte()).collect();
        if round % 2 == 0 {
            let _control = control(&connection).await;
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            // A valid frame type and a short length in front make it past the first check now and then.
            let _ = send
                .write_all(&[[0x01, 0x00, 0x04, 0x0d][round / 2 % 4], 0x10])
                .await;
            let _ = send.write_all(&garbage).await;
            send.finish();
            let _ = end_of(&mut recv).await;
        } else {
            let mut send = connection.open_uni().await.unwrap();
            let _ = send
                .write_all(&[[0x00, 0x01, 0x02, 0x54][round / 2 % 4]])
                .await;
            let _ = send.write_all(&garbage).await;
            send.finish();
        }
    }
    still_serves(&served, &me).await;
    served.stop().await;
}
