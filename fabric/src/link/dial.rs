//! One attempt at a router: all its addresses, raced.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, Aborted, abortable};
use futures_util::stream::FuturesUnordered;
use keel_certs::{LiveIdentity, NodeName};
use tokio::time::Instant;

use super::{ALPN, RouterPeer};
use crate::limits::LinkLimits;
use crate::quic::{Connection, Endpoint, HostPort, Lost};

/// Why there is no connection to a router.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The router has no address that can be used.
    #[error("router {node} has no address")]
    NoAddress {
        /// The router's node.
        node: NodeName,
    },
    /// Every address failed.
    #[error("router {node} cannot be reached: {tried}")]
    Unreachable {
        /// The router's node.
        node: NodeName,
        /// Each address with its error.
        tried: String,
    },
    /// No address answered in time.
    #[error("router {node} did not answer in time")]
    TimedOut {
        /// The router's node.
        node: NodeName,
    },
    /// The connection was made and ended at once.
    #[error("router {node}: {lost}")]
    Lost {
        /// The router's node.
        node: NodeName,
        /// Why it ended.
        lost: Lost,
    },
}

/// Attempts at one address that run at once.
const ATTEMPTS: usize = 3;
/// At first a silent address is tried afresh more often: a router that restarts is away for a moment only.
const EAGER: Duration = Duration::from_secs(2);

/// Races the addresses of `router` within the time of `limits`.
pub(super) async fn dial(
    endpoint: &Endpoint,
    live: &LiveIdentity,
    router: &RouterPeer,
    limits: &LinkLimits,
) -> Result<Connection, LinkError> {
    let mut tried = String::new();
    let attempt = async {
        let (addrs, failed) = resolve(&router.addresses).await;
        tried = failed;
        race(endpoint, live, router, addrs, limits, &mut tried).await
    };
    match tokio::time::timeout(limits.connect_time, attempt).await {
        Ok(done) => done,
        Err(_) if tried.is_empty() => Err(LinkError::TimedOut {
            node: router.node.clone(),
        }),
        Err(_) => {
            note(&mut tried, "the rest", &"no answer in time");
            Err(LinkError::Unreachable {
                node: router.node.clone(),
                tried,
            })
        }
    }
}

async fn resolve(hosts: &[HostPort]) -> (VecDeque<SocketAddr>, String) {
    let found = futures_util::future::join_all(hosts.iter().map(HostPort::resolve)).await;
    let mut addrs = VecDeque::new();
    let mut failed = String::new();
    for (host, found) in hosts.iter().zip(found) {
        match found {
            Ok(more) => {
                for addr in more {
                    if !addrs.contains(&addr) {
                        addrs.push_back(addr);
                    }
                }
            }
            Err(error) => note(&mut failed, &host.to_string(), &error),
        }
    }
    (addrs, failed)
}

fn note(tried: &mut String, what: &str, error: &dyn std::fmt::Display) {
    let separator = if tried.is_empty() { "" } else { "; " };
    // Writing to a String cannot fail.
    let _ = write!(tried, "{separator}{what}: {error}");
}

/// The first connection wins; a failed attempt lets the next one start at once.
///
/// A handshake that nobody answers repeats its packets at growing distances, so a router that comes back would be found
/// late: silent addresses are tried afresh while the first attempts run. Those in between give way to newer ones; the first
/// go on, because a handshake over a slow network takes its time.
async fn race(
    endpoint: &Endpoint,
    live: &LiveIdentity,
    router: &RouterPeer,
    mut addrs: VecDeque<SocketAddr>,
    limits: &LinkLimits,
    tried: &mut String,
) -> Result<Connection, LinkError> {
    let begun = Instant::now();
    let mut next = addrs.clone();
    let mut first_round = addrs.len();
    let mut later: VecDeque<AbortHandle> = VecDeque::new();
    let tls = live.client_config(&[ALPN], &router.node);
    let mut running = FuturesUnordered::new();
    loop {
        if let Some(addr) = next.pop_front() {
            let tls = tls.clone();
            let (attempt, handle) = abortable(async move {
                (
                    addr,
                    endpoint.connect(addr, &addr.ip().to_string(), tls).await,
                )
            });
            running.push(attempt);
            if first_round > 0 {
                first_round -= 1;
            } else {
                later.push_back(handle);
                if later.len() > addrs.len() * (ATTEMPTS - 1)
                    && let Some(oldest) = later.pop_front()
                {
                    oldest.abort();
                }
            }
        } else if running.is_empty() {
            let node = router.node.clone();
            let tried = std::mem::take(tried);
            return Err(if tried.is_empty() {
                LinkError::NoAddress { node }
            } else {
                LinkError::Unreachable { node, tried }
            });
        }
        let pause = if !next.is_empty() {
            limits.stagger
        } else if begun.elapsed() < EAGER {
            limits.again / 4
        } else {
            limits.again
        };
        tokio::select! {
            biased;
            done = running.next() => match done {
                Some(Ok((_, Ok(connection)))) => return Ok(connection),
                Some(Ok((addr, Err(error)))) => {
                    note(tried, &addr.to_string(), &error);
                    addrs.retain(|other| *other != addr);
                    next.retain(|other| *other != addr);
                }
                // One that gave way, or all are done.
                Some(Err(Aborted)) | None => {}
            },
            () = tokio::time::sleep(pause) => if next.is_empty() {
                next.clone_from(&addrs);
            },
        }
    }
}
