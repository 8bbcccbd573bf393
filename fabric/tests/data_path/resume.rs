//! A router may go and come back; the flow goes on.

use keel_fabric::EndReason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::backend::{Backend, noise};
use crate::world::{World, end, publication, soon};

#[tokio::test]
async fn a_flow_survives_the_restart_of_its_router() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let bytes = noise(11, 8 << 20);
    let (mut read, mut write) = client.split();
    let sent = bytes.clone();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let mut answer = vec![0; 1 << 20];
        read.read_exact(&mut answer).await.unwrap();
        // In the middle of the transfer.
        router.stopped().await;
        let again = world.router_at("r", router.addr.into());
        read.read_to_end(&mut answer).await.unwrap();
        (answer, again)
    };
    let ((), (answer, _again)) = soon(async { tokio::join!(send, receive) }).await;
    assert!(
        answer == bytes,
        "{} of {} bytes, or others",
        answer.len(),
        bytes.len()
    );
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(end.reason, EndReason::Done);
    assert!(end.resumes >= 1);
}

#[tokio::test]
async fn an_idle_flow_notices_the_restart_and_goes_on() {
    let mut world = World::new();
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    client.write_all(b"a").await.unwrap();
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'a');
    router.stopped().await;
    let _again = world.router_at("r", router.addr.into());
    client.write_all(b"b").await.unwrap();
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'b');
    drop(client);
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
}

#[tokio::test]
async fn a_flow_whose_router_stays_away_ends_in_a_reset_at_both_ends() {
    let mut world = World::new();
    world.limits.resume_window = std::time::Duration::from_millis(300);
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    client.write_all(b"a").await.unwrap();
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'a');
    router.stopped().await;
    let error = soon(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let end = end(&mut tasks).await.unwrap();
    assert_eq!(end.reason.name(), "WINDOW_EXPIRED");
}

#[tokio::test]
async fn a_new_connection_of_the_same_identity_takes_new_flows() {
    let mut world = World::new();
    let router = world.router("r").await;
    let name = |name: &'static [u8]| {
        Backend::new(move |mut socket| async move {
            socket.write_all(name).await.ok();
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.ok();
        })
    };
    let (first, second) = (name(b"1").await, name(b"2").await);
    let (_old, target) = world.echo(&router, first.addr).await;
    let consumer = world.consumer();
    let mut tasks = JoinSet::new();
    let mut before = consumer.connect(&mut tasks, &target).await;
    assert_eq!(soon(before.read_u8()).await.unwrap(), b'1');
    let live = world.fabric.pod("b", "default", "p");
    let mut new = world.provider(
        &live,
        &[&router],
        vec![publication("echo.default", 80, second.addr)],
    );
    new.published().await;
    let mut after = consumer.connect(&mut tasks, &target).await;
    assert_eq!(soon(after.read_u8()).await.unwrap(), b'2');
    // What ran before runs on.
    before.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon(before.read_to_end(&mut rest)).await.unwrap();
}

#[tokio::test]
async fn a_flow_survives_the_kill_of_its_router() {
    let mut world = World::new();
    let router = world.router_to_kill("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    let bytes = noise(12, 8 << 20);
    let (mut read, mut write) = client.split();
    let sent = bytes.clone();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = async {
        let mut answer = vec![0; 1 << 20];
        read.read_exact(&mut answer).await.unwrap();
        world.kill().await;
        let again = world.router_at("r", router.addr.into());
        read.read_to_end(&mut answer).await.unwrap();
        (answer, again)
    };
    let ((), (answer, _again)) = soon(async { tokio::join!(send, receive) }).await;
    assert!(
        answer == bytes,
        "{} of {} bytes, or others",
        answer.len(),
        bytes.len()
    );
    assert_eq!(end(&mut tasks).await.unwrap().reason, EndReason::Done);
}

#[tokio::test]
async fn a_client_that_resets_while_its_router_is_away_leaves_nothing_behind() {
    let mut world = World::new();
    world.limits.resume_window = std::time::Duration::from_millis(500);
    let mut router = world.router("r").await;
    let backend = Backend::echo().await;
    let (_provider, target) = world.echo(&router, backend.addr).await;
    let mut tasks = JoinSet::new();
    let mut client = world.consumer().connect(&mut tasks, &target).await;
    client.write_all(b"a").await.unwrap();
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'a');
    router.stopped().await;
    socket2::SockRef::from(&client)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
    drop(client);
    assert!(matches!(
        end(&mut tasks).await.unwrap().reason,
        EndReason::Aborted(_)
    ));
}
