//! Connects to the router of a way; where that takes long, to the next best one's beside it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use keel_certs::NodeName;
use keel_fabric::link::{LinkError, Links};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::directory::{Candidate, Directory};
use crate::endpoints::Endpoints;
use crate::pick::{Class, Tried};

/// How long a router may take to be reached before another one that is as good is tried beside it.
const HEAD_START: Duration = Duration::from_millis(300);

/// The same before one that is worse. A handshake takes two round trips and half a second over the worst of links; a router
/// that does not answer costs its deadline only where there is nothing better.
const REACH_TIME: Duration = Duration::from_millis(1500);

/// Routers that are dialled for one connection at a time.
const RACERS: usize = 3;

type Dial = BoxFuture<'static, (Candidate, Result<(), LinkError>)>;

/// What a race needs to know.
pub(crate) struct Race<'a> {
    pub(crate) links: &'a Links,
    pub(crate) endpoints: &'a Endpoints,
    pub(crate) directory: &'a mut watch::Receiver<Arc<Directory>>,
    pub(crate) deadline: Instant,
    /// Takes the dials that lost.
    pub(crate) late: &'a mut Late,
}

/// Dials that nobody waits for any more.
#[derive(Default)]
pub(crate) struct Late(FuturesUnordered<Dial>);

impl fmt::Debug for Late {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Late").field(&self.0.len()).finish()
    }
}

impl Late {
    /// Waits until it is known of each router whether it can be reached: the next connection need not find out.
    pub(crate) async fn settle(mut self, endpoints: &Endpoints) {
        while let Some((way, outcome)) = self.0.next().await {
            settled(endpoints, &way.router.node, &outcome);
        }
    }
}

fn settled(endpoints: &Endpoints, router: &NodeName, outcome: &Result<(), LinkError>) {
    match outcome {
        Ok(()) => endpoints.back(router),
        Err(_) => endpoints.away(router),
    }
}

/// The way whose router was reached first. `first` has a head start before `another` way; routers that failed go to `tried`.
///
/// # Errors
/// No router was reached; the last error.
pub(crate) async fn reach(
    race: Race<'_>,
    first: (Candidate, Class),
    tried: &mut Tried,
    another: impl Fn(&Directory, &Tried) -> Option<(Candidate, Class)>,
) -> Result<Candidate, LinkError> {
    let Race {
        links,
        endpoints,
        directory,
        deadline,
        late,
    } = race;
    let (first, class) = first;
    let mut error = LinkError::TimedOut {
        node: first.router.node.clone(),
    };
    let mut dialling: FuturesUnordered<Dial> = FuturesUnordered::new();
    // What the next router may not be: those that were tried, and those that are being dialled.
    let mut not = tried.clone();
    not.router(&first.router.node);
    let mut started = Instant::now();
    dialling.push(dial(links, first.clone()));
    let mut latest = first;
    loop {
        let next = another(&directory.borrow(), &not).filter(|_| dialling.len() < RACERS);
        let due = next.as_ref().map(|(_, other)| {
            started
                + if *other == class {
                    HEAD_START
                } else {
                    REACH_TIME
                }
        });
        tokio::select! {
            biased;
            Some((way, outcome)) = dialling.next() => {
                settled(endpoints, &way.router.node, &outcome);
                match outcome {
                    Ok(()) => {
                        late.0.extend(dialling);
                        return Ok(way);
                    }
                    Err(failed) => {
                        tried.router(&way.router.node);
                        error = failed;
                        if dialling.is_empty() {
                            return Err(error);
                        }
                    }
                }
            }
            () = sleep_until(due.unwrap_or(deadline)), if due.is_some() => if let Some((way, _)) = next {
                // Until it is known, others need not wait for it too.
                endpoints.away(&latest.router.node);
                not.router(&way.router.node);
                dialling.push(dial(links, way.clone()));
                started = Instant::now();
                latest = way;
            },
            Ok(()) = directory.changed() => {}
            () = sleep_until(deadline) => return Err(error),
        }
    }
}

fn dial(links: &Links, way: Candidate) -> Dial {
    let links = links.clone();
    Box::pin(async move {
        let reached = links.link(&way.router).await;
        (way, reached.map(drop))
    })
}
