//! Keeps the plan of this node's router, and its view of other routers, current by one watch.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use keel_certs::NodeName;
use keel_fabric::link::RouterPeer;
use keel_fabric::quic::HostPort;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::compile::{Following, Plan, RouterFlags, compile};
use crate::api::{FrpServer, Router, RouterSpec};
use crate::client::WatchEvent;

/// What a router needs to know of the resources.
#[derive(Debug)]
pub struct Resources {
    /// The plan of the own router.
    pub plan: watch::Receiver<Arc<Plan>>,
    /// Routers of other nodes that can be reached from here.
    pub others: watch::Receiver<Arc<Vec<RouterPeer>>>,
    /// Whether the own Router was there with a status when the resources were last read.
    pub reported: watch::Receiver<bool>,
    /// Whether the resources were read at least once; until then the plan is made of flags and defaults.
    pub synced: watch::Receiver<bool>,
}

/// Follows `events`, and those of the FRPServer that the flags name, until `stop`, for the router of `node`; the future does the work,
/// the receivers tell the outcome.
///
/// Without an APIServer the last plan stays in force.
pub fn follow(
    events: impl Stream<Item = WatchEvent> + Send,
    followed: impl Stream<Item = WatchEvent<FrpServer>> + Send,
    node: NodeName,
    flags: RouterFlags,
    stop: CancellationToken,
) -> (Resources, impl Future<Output = ()> + Send) {
    let (plan_tx, plan) = watch::channel(Arc::new(compile(&RouterSpec::default(), None, &flags)));
    let (others_tx, others) = watch::channel(Arc::new(Vec::new()));
    let (reported_tx, reported) = watch::channel(false);
    let (synced_tx, synced) = watch::channel(false);
    let work = async move {
        let mut events = std::pin::pin!(events);
        let mut followed = std::pin::pin!(followed.fuse());
        let mut known: Option<BTreeMap<String, Router>> = None;
        // Nothing is missing if nothing is followed.
        let mut server: Option<Option<FrpServer>> = flags.follow.is_none().then_some(None);
        loop {
            let changed = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(event) = followed.next() => take_server(&mut server, event),
                event = events.next() => match event {
                    Some(event) => take_router(&mut known, event),
                    None => break,
                },
            };
            let (true, Some(known), Some(server)) = (changed, &known, &server) else {
                continue;
            };
            let own = known.get(node.as_str());
            let seen = own.is_some_and(|router| router.status.is_some());
            reported_tx.send_if_modified(|reported| std::mem::replace(reported, seen) != seen);
            let spec = own.map(|router| router.spec.clone()).unwrap_or_default();
            let next = compile(&spec, server.as_ref(), &flags);
            plan_tx.send_if_modified(|plan| {
                if **plan == next {
                    return false;
                }
                tell(plan, &next);
                *plan = Arc::new(next);
                true
            });
            let next = reachable(known, &node);
            others_tx.send_if_modified(|others| {
                let changed = **others != next;
                if changed {
                    *others = Arc::new(next);
                }
                changed
            });
            // Last: whoever waited for it reads the plan next.
            synced_tx.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
    };
    (
        Resources {
            plan,
            others,
            reported,
            synced,
        },
        work,
    )
}

/// Takes an event over into the Routers that are known; whether that changes anything.
fn take_router(known: &mut Option<BTreeMap<String, Router>>, event: WatchEvent) -> bool {
    match event {
        WatchEvent::Snapshot { routers, .. } => {
            let named = routers.into_iter();
            let named = named.map(|router| (router.name().to_owned(), router));
            *known = Some(named.collect());
        }
        WatchEvent::Applied(router) => {
            let known = known.get_or_insert_default();
            known.insert(router.name().to_owned(), router);
        }
        WatchEvent::Deleted(name) => {
            known.get_or_insert_default().remove(name.as_str());
        }
        WatchEvent::Synced(_) => return false,
        WatchEvent::Interrupted(error) => {
            debug!(%error, "the watch on Routers is interrupted; going on with what is known");
            return false;
        }
    }
    true
}

/// The same for the FRPServer that is followed.
fn take_server(server: &mut Option<Option<FrpServer>>, event: WatchEvent<FrpServer>) -> bool {
    match event {
        WatchEvent::Snapshot { routers, .. } => *server = Some(routers.into_iter().next()),
        WatchEvent::Applied(one) => *server = Some(Some(one)),
        WatchEvent::Deleted(_) => *server = Some(None),
        WatchEvent::Synced(_) => return false,
        WatchEvent::Interrupted(error) => {
            debug!(%error, "the watch on the FRPServer is interrupted; going on with what is known");
            return false;
        }
    }
    true
}

fn tell(old: &Plan, new: &Plan) {
    if old.faults != new.faults {
        for fault in &new.faults {
            warn!("this part of the Router's spec cannot be used: {fault}");
        }
    }
    if old.overridden != new.overridden {
        for sentence in &new.overridden {
            warn!("{sentence}");
        }
    }
    if let Some(Following { name, found }) = new.following.as_ref()
        && old.following != new.following
    {
        match found {
            Some(found) => {
                info!(frpserver = name, generation = ?found.generation, "settings of the FRPServer taken")
            }
            None => warn!(
                frpserver = name,
                "there is no such FRPServer: the Router's own settings are in force until there is"
            ),
        }
    }
    if old.backends != new.backends || old.announced != new.announced {
        info!(
            dialled = new.backends.len(),
            announced = new.announced.len(),
            "services of the Router's spec changed"
        );
    }
}

/// The routers of other nodes that say how they are reached.
fn reachable(known: &BTreeMap<String, Router>, node: &NodeName) -> Vec<RouterPeer> {
    let others = known
        .values()
        .filter(|router| router.name() != node.as_str());
    others
        .filter_map(|router| {
            let addresses: Vec<HostPort> = router
                .status
                .as_ref()?
                .addresses
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect();
            let name = router.name().parse().ok()?;
            (!addresses.is_empty()).then_some(RouterPeer {
                node: name,
                addresses,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Revision;

    fn router(json: serde_json::Value) -> Router {
        serde_json::from_value(json).unwrap()
    }

    #[tokio::test]
    async fn the_plan_follows_the_own_router_and_others_their_status() {
        let own = router(
            serde_json::json!({"metadata": {"name": "a"}, "spec": {"frps": {"bindPort": 7100}}}),
        );
        let other = router(
            serde_json::json!({"metadata": {"name": "b"}, "status": {"addresses": ["b.example.net:7000", "no"]}}),
        );
        let hidden =
            router(serde_json::json!({"metadata": {"name": "c"}, "status": {"addresses": []}}));
        let changed = router(
            serde_json::json!({"metadata": {"name": "a"}, "spec": {"frps": {"bindPort": 7200}}}),
        );
        let events = futures_util::stream::iter([
            WatchEvent::Snapshot {
                routers: vec![own, other, hidden],
                revision: Revision(1),
            },
            WatchEvent::Applied(changed),
        ]);
        let (following, work) = follow(
            events,
            futures_util::stream::pending(),
            "a".parse().unwrap(),
            RouterFlags::default(),
            CancellationToken::new(),
        );
        assert_eq!(following.plan.borrow().listen.port(), 7000);
        work.await;
        assert_eq!(following.plan.borrow().listen.port(), 7200);
        let others = following.others.borrow().clone();
        assert_eq!(others.len(), 1);
        assert_eq!(
            (others[0].node.as_str(), others[0].addresses.len()),
            ("b", 1)
        );
        assert!(*following.synced.borrow());
    }

    #[tokio::test]
    async fn a_deleted_router_means_flags_and_defaults_again_and_no_report() {
        let own = router(
            serde_json::json!({"metadata": {"name": "a"}, "spec": {"frps": {"bindPort": 7100}}, "status": {}}),
        );
        let snapshot = |routers| WatchEvent::Snapshot {
            routers,
            revision: Revision(1),
        };
        let there = || snapshot(vec![own.clone()]);
        let deleted = WatchEvent::Deleted("a".parse().unwrap());
        let cases = [
            (vec![there()], 7100),
            (vec![there(), deleted], 7000),
            // Another store under the same address.
            (vec![there(), snapshot(Vec::new())], 7000),
        ];
        for (events, port) in cases {
            let (following, work) = follow(
                futures_util::stream::iter(events),
                futures_util::stream::pending(),
                "a".parse().unwrap(),
                RouterFlags::default(),
                CancellationToken::new(),
            );
            work.await;
            assert_eq!(following.plan.borrow().listen.port(), port);
            assert_eq!(*following.reported.borrow(), port == 7100);
        }
    }

    #[tokio::test]
    async fn the_settings_of_an_frpserver_come_and_go_while_the_router_runs() {
        let server = |port: u16, generation: i64| -> FrpServer {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "s", "generation": generation}, "spec": {"bindPort": port}}))
            .unwrap()
        };
        let (routers, events) = tokio::sync::mpsc::channel(8);
        let (servers, followed) = tokio::sync::mpsc::channel(8);
        let flags = RouterFlags {
            follow: Some("s".to_owned()),
            ..RouterFlags::default()
        };
        let stop = CancellationToken::new();
        let (mut resources, work) = follow(
            stream(events),
            stream(followed),
            "a".parse().unwrap(),
            flags,
            stop.clone(),
        );
        let mut plan = resources.plan.clone();
        let mut port = async |port: u16| {
            let plan = plan.wait_for(|plan| plan.listen.port() == port).await;
            plan.unwrap().following.clone().unwrap()
        };
        let steps = async {
            let own = router(
                serde_json::json!({"metadata": {"name": "a"}, "spec": {"frps": {"bindPort": 7100}}}),
            );
            let all = WatchEvent::Snapshot {
                routers: vec![own],
                revision: Revision(1),
            };
            routers.send(all).await.unwrap();
            let none = WatchEvent::Snapshot {
                routers: Vec::new(),
                revision: Revision(1),
            };
            servers.send(none).await.unwrap();
            assert_eq!(port(7100).await.found, None, "its own, while there is none");
            resources.synced.wait_for(|synced| *synced).await.unwrap();
            servers
                .send(WatchEvent::Applied(server(17000, 1)))
                .await
                .unwrap();
            assert_eq!(port(17000).await.found.unwrap().generation, Some(1));
            servers
                .send(WatchEvent::Applied(server(17001, 2)))
                .await
                .unwrap();
            assert_eq!(port(17001).await.found.unwrap().generation, Some(2));
            servers
                .send(WatchEvent::Deleted("s".to_owned()))
                .await
                .unwrap();
            assert_eq!(port(7100).await.found, None);
            stop.cancel();
        };
        tokio::join!(work, steps);
    }

    fn stream<T>(from: tokio::sync::mpsc::Receiver<T>) -> impl Stream<Item = T> {
        futures_util::stream::unfold(
            from,
            |mut from| async move { Some((from.recv().await?, from)) },
        )
    }
}
