//! A failed write takes the reset: a read behind it finds an end of file. Proxies that believe it turn a cut into a
//! success; ours must not, at either end.

use std::io::ErrorKind;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::alone::beside;
use crate::world::{World, socket_pair, soon};

const ROUNDS: usize = 20;
const TAIL: &[u8] = b"the last bytes before the reset";

fn reset(socket: TcpStream) {
    SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Writes until nothing more is taken for a while: all buffers on the way are full, and the next that has room is written
/// to. Never writes again.
async fn fill(socket: &TcpStream) {
    let bytes = vec![7; 64 << 10];
    while let Ok(ready) = tokio::time::timeout(Duration::from_millis(200), socket.writable()).await
    {
        ready.unwrap();
        match socket.try_write(&bytes) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

/// What a plain reader sees, who writes nothing meanwhile.
async fn read_plainly(mut socket: TcpStream) -> (Vec<u8>, Result<usize, ErrorKind>) {
    let mut all = Vec::new();
    let end = soon(socket.read_to_end(&mut all)).await;
    (all, end.map_err(|error| error.kind()))
}

#[tokio::test]
async fn the_kernel_hides_a_reset_behind_a_failed_write() {
    let _turn = beside().await;
    let (mut near, mut far) = socket_pair().await;
    near.write_all(TAIL).await.unwrap();
    soon(far.peek(&mut [0; TAIL.len()])).await.unwrap();
    reset(near);
    let failed = async {
        while far.write_all(b"?").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(failed).await;
    let (all, end) = read_plainly(far).await;
    assert_eq!((&all[..], end), (TAIL, Ok(TAIL.len())));
}

#[tokio::test]
async fn a_reset_that_a_failed_write_has_eaten_is_no_end() {
    let _turn = beside().await;
    let mut world = World::new();
    let router = world.router("r").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_provider, target) = world.echo(&router, listener.local_addr().unwrap()).await;
    let consumer = world.consumer();
    for round in 0..ROUNDS {
        let mut flows = JoinSet::new();
        let client = consumer.connect(&mut flows, &target).await;
        let (server, _) = soon(listener.accept()).await.unwrap();
        // One side has filled the way to the other, who sends its last bytes and resets: our end there has bytes to write
        // when the reset comes.
        let (mut resetting, reading) = if round % 2 == 0 {
            (client, server)
        } else {
            (server, client)
        };
        fill(&reading).await;
        resetting.write_all(TAIL).await.unwrap();
        reset(resetting);
        let (all, end) = read_plainly(reading).await;
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "round {round}");
        assert_eq!(all, TAIL, "round {round}");
    }
}

#[tokio::test]
async fn a_reset_flow_harms_no_other() {
    let _turn = beside().await;
    const FLOWS: usize = 100;
    let mut world = World::new();
    let router = world.router("r").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_provider, target) = world.echo(&router, listener.local_addr().unwrap()).await;
    let consumer = world.consumer();
    let mut flows = JoinSet::new();
    let mut pairs = Vec::new();
    for _ in 0..FLOWS {
        let client = consumer.connect(&mut flows, &target).await;
        let (server, _) = soon(listener.accept()).await.unwrap();
        pairs.push((client, server));
    }
    let mut reading = JoinSet::new();
    for (index, (mut client, mut server)) in pairs.into_iter().enumerate() {
        reading.spawn(async move {
            let bytes = vec![index as u8; 64 << 10];
            let (half, rest) = bytes.split_at(bytes.len() / 2);
            client.write_all(half).await.unwrap();
            let mut got = vec![0; half.len()];
            server.read_exact(&mut got).await.unwrap();
            assert!(got == half);
            if index % 10 == 3 {
                reset(client);
                let error = server.read_u8().await.unwrap_err();
                return assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            }
            client.write_all(rest).await.unwrap();
            client.shutdown().await.unwrap();
            got.clear();
            server.read_to_end(&mut got).await.unwrap();
            assert!(got == rest, "flow {index}");
        });
    }
    while let Some(done) = soon(reading.join_next()).await {
        done.unwrap();
    }
}
