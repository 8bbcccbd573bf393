//! What the random schedules and the scanners found.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::alone::beside;
use crate::backend::Backend;
use crate::scrape::Scraper;
use crate::script::Case;
use crate::script::Step::{Fin, Hear, NoDelay, Push, ReadEnd, Reset, Rest, Send, Tell};
use crate::ways::{Through, direct, whole};
use crate::world::{World, soon};

/// Health checks of load balancers end their connections with a reset at once.
#[tokio::test]
async fn a_client_that_resets_before_the_answer_leaves_no_flow_at_the_provider() {
    let _turn = beside().await;
    let mut world = World::new();
    let scraper = Scraper::new(&mut world);
    let router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let consumer = world.consumer();
    let mut flows = JoinSet::new();
    for _ in 0..100 {
        for _ in 0..10 {
            let client = consumer.connect(&mut flows, &target).await;
            let linger = Some(Duration::ZERO);
            SockRef::from(&client).set_linger(linger).unwrap();
        }
        while let Some(ended) = soon(flows.join_next()).await {
            ended.unwrap().unwrap_err();
        }
    }
    // Far less than the window in which a flow that lost its leg may come back.
    let of = |family: &str| {
        let role = "role=\"provider\"";
        scraper.sum(&format!("keel_fabric_flows_{family}_total"), role)
    };
    let over = async {
        while of("started") != of("ended") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(5), over).await;
    let (started, ended) = (of("started"), of("ended"));
    assert!(in_time.is_ok(), "{started} started, {ended} ended");
}

/// An end of file that came before a reset, while bytes of the client wait unread at the backend.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_comes_before_a_reset_is_read_while_the_backend_reads_nothing() {
    let _turn = beside().await;
    let cases: Vec<Case> = (0..2000)
        .map(|number| Case {
            name: format!("{number}"),
            client: vec![
                NoDelay,
                Rest(number % 20),
                Send(1380),
                Rest(6),
                Tell,
                ReadEnd,
                Push,
            ],
            server: Some(vec![Rest(number % 7), Fin, Rest(3), Hear, Reset]),
        })
        .collect();
    let (mut ends, mut cut) = (0, 0);
    for cases in cases.chunks(500) {
        let plain = whole(direct(cases, 64)).await;
        ends += plain.iter().filter(|seen| seen.client.has("eof")).count();
        let through = async { Through::new(cases).await.play(cases, 64).await };
        let fabric = whole(through).await;
        cut += fabric
            .iter()
            .filter(|seen| seen.client.has("reset"))
            .count();
    }
    assert_eq!(
        (ends, cut),
        (cases.len(), 0),
        "direct, and through the fabric"
    );
}

#[tokio::test]
async fn an_urgent_byte_that_a_backend_sends_at_once_gets_through() {
    let _turn = beside().await;
    let mut world = World::new();
    let router = world.router("r").await;
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = std::net::TcpListener::bind(any).unwrap();
    let addr = listener.local_addr().unwrap();
    // A thread of its own, so that the byte is there before the dial goes on.
    let (keep, kept) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let sent = SockRef::from(&socket).send_out_of_band(b"!");
            if sent.is_err() || keep.send(socket).is_err() {
                return;
            }
        }
    });
    let (_provider, target) = world.echo(&router, addr).await;
    let consumer = world.consumer();
    let mut flows = JoinSet::new();
    for round in 0..300 {
        let mut client = consumer.connect(&mut flows, &target).await;
        let byte = tokio::time::timeout(Duration::from_secs(5), client.read_u8()).await;
        assert_eq!(byte.expect("no byte came").unwrap(), b'!', "round {round}");
    }
    drop(kept);
    // The thread sees that nobody keeps its connections any more.
    drop(TcpListener::bind(any).await);
    let _ = std::net::TcpStream::connect(addr);
}
