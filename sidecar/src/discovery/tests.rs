use futures_util::stream;
use keel_control::api::Revision;
use keel_control::client::ClientError;
use keel_fabric::wire::Protocol;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::directory::tests::{router, serving, target};

const POD_B: &str = "/node/b/ns/default/pod/db-0";

/// A discovery that follows events which the test sends.
struct Running {
    events: mpsc::Sender<WatchEvent>,
    directory: watch::Receiver<Arc<Directory>>,
    known: watch::Receiver<Known>,
    tasks: JoinSet<()>,
}

fn start(snapshot: Option<Vec<Arc<Router>>>) -> Running {
    let (events, receiver) = mpsc::channel(8);
    let (directory, known) = (watch::Sender::default(), watch::Sender::default());
    let (seen, kept) = (directory.subscribe(), known.subscribe());
    let discovery = Discovery::new(
        "a".parse().unwrap(),
        vec![target("mysql.default")],
        snapshot,
        directory,
        known,
        Arc::default(),
    );
    let stream = stream::unfold(receiver, |mut receiver| async {
        Some((receiver.recv().await?, receiver))
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(discovery.run(stream, CancellationToken::new()));
    Running {
        events,
        directory: seen,
        known: kept,
        tasks,
    }
}

impl Running {
    async fn send(&self, event: WatchEvent) {
        self.events.send(event).await.unwrap();
    }

    async fn providers(&mut self, expected: usize) {
        let count = |directory: &Arc<Directory>| {
            directory
                .candidates(&target("mysql.default"), 3306, Protocol::Tcp)
                .count()
        };
        timeout(
            Duration::from_secs(5),
            self.directory.wait_for(|d| count(d) == expected),
        )
        .await
        .unwrap()
        .unwrap();
    }
}

fn serving_b() -> Router {
    router("b", serving("east", &["b:7000"], "mysql", 3306, &[POD_B]))
}

fn away() -> WatchEvent {
    WatchEvent::Interrupted(ClientError::Answer("the test cut it".to_owned()))
}

#[tokio::test]
async fn routers_come_change_and_go() {
    let mut running = start(None);
    assert!(!running.known.borrow().synced);
    running
        .send(WatchEvent::Snapshot {
            routers: vec![router("a", json!({}))],
            revision: Revision(1),
        })
        .await;
    timeout(
        Duration::from_secs(5),
        running.known.wait_for(|known| known.synced),
    )
    .await
    .unwrap()
    .unwrap();
    running.send(WatchEvent::Applied(serving_b())).await;
    running.providers(1).await;
    running
        .send(WatchEvent::Applied(router(
            "b",
            json!({"addresses": "nonsense", "activeServices": [7]}),
        )))
        .await;
    running.providers(0).await;
    running.send(WatchEvent::Applied(serving_b())).await;
    running.providers(1).await;
    running
        .send(WatchEvent::Deleted("b".parse().unwrap()))
        .await;
    running.providers(0).await;
    drop(running.events);
    running.tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn what_was_known_stays_while_the_apiserver_is_away() {
    let mut running = start(Some(vec![Arc::new(serving_b())]));
    running.providers(1).await;
    assert!(
        running.known.borrow().synced,
        "a snapshot counts as a whole state"
    );
    running.send(away()).await;
    running.send(away()).await;
    running.send(WatchEvent::Synced(Revision(5))).await;
    running.providers(1).await;
}

fn list(routers: Vec<Router>) -> WatchEvent {
    WatchEvent::Snapshot {
        routers,
        revision: Revision(6),
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_lacks_most_is_believed_after_a_minute() {
    let mut running = start(Some(vec![Arc::new(serving_b())]));
    let start = Instant::now();
    running.send(list(vec![router("a", json!({}))])).await;
    timeout(
        HOLD / 2,
        running.directory.wait_for(|d| d.routers().is_empty()),
    )
    .await
    .unwrap_err();
    assert_eq!(running.known.borrow().routers.len(), 2, "and in snapshots");
    running.send(away()).await;
    // Read again, still without it: the minute does not begin anew.
    running.send(list(Vec::new())).await;
    let gone = running.directory.wait_for(|d| d.routers().is_empty());
    timeout(HOLD, gone).await.unwrap().unwrap();
    assert!(start.elapsed().abs_diff(HOLD) < Duration::from_secs(1));
    running.providers(0).await;
    assert!(running.known.borrow().routers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_a_router_itself_counts_at_once() {
    let mut running = start(Some(vec![Arc::new(serving_b())]));
    let start = Instant::now();
    running.send(list(Vec::new())).await;
    running.providers(1).await;
    // Its status comes back without the service, then again with it, then it is deleted.
    running
        .send(WatchEvent::Applied(router("b", json!({}))))
        .await;
    running.providers(0).await;
    running.send(WatchEvent::Applied(serving_b())).await;
    running.providers(1).await;
    running
        .send(WatchEvent::Deleted("b".parse().unwrap()))
        .await;
    running.providers(0).await;
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_lacks_a_little_is_believed_at_once() {
    let other = |name| {
        let status = serving("east", &["c:7000"], "other", 80, &["/node/c"]);
        router(name, status)
    };
    let mut running = start(Some(vec![
        Arc::new(serving_b()),
        Arc::new(other("c")),
        Arc::new(other("d")),
    ]));
    let start = Instant::now();
    running.send(list(vec![serving_b(), other("c")])).await;
    let gone = running.directory.wait_for(|d| d.routers().len() == 2);
    timeout(HOLD, gone).await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
    running.providers(1).await;
}
