//! Brings the Router of one node to another, late by a chosen time.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use keel_certs::NodeName;
use keel_control::api::RouterStatus;
use keel_control::client::{Client, WatchEvent, WatchFrom};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Brings the status of the Router `node` from its own APIServer to another, for ever. What is on its way is kept in order, as a
/// connection would.
pub(crate) fn start(
    tasks: &mut JoinSet<()>,
    node: &NodeName,
    (from, to): (Client, Client),
    delay: Duration,
) {
    let node = node.clone();
    tasks.spawn(async move {
        let mut events = from.watch_router(node.clone(), WatchFrom::Snapshot);
        let mut on_its_way: VecDeque<(Instant, RouterStatus)> = VecDeque::new();
        loop {
            let next = on_its_way.front().map(|(due, _)| *due);
            let arrival = async {
                match next {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.next() => {
                    let router = match event {
                        Some(WatchEvent::Applied(router)) => Some(router),
                        Some(WatchEvent::Snapshot { routers, .. }) => routers.into_iter().next(),
                        _ => None,
                    };
                    if let Some(status) = router.and_then(|router| router.status) {
                        on_its_way.push_back((Instant::now() + delay, status));
                    }
                }
                () = arrival => {
                    if let Some((_, status)) = on_its_way.pop_front()
                        && let Err(error) = to.apply_status(&node, &status).await
                    {
                        eprintln!("the courier lost a status: {error}");
                    }
                }
            }
        }
    });
}
