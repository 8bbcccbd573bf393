//! Follows the host's network: a client endpoint moves to new sockets at once when its way to a peer has changed.
//!
//! Without it a connection moves when it sends next, which after an outage may be many seconds away: each unanswered
//! packet doubles the time to the next one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::time::Duration;

use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket as open,
};
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::socket;

/// Events come in groups: an address, its routes, the same for the other family. This long without one ends a group,
const QUIET: Duration = Duration::from_millis(150);
/// or this long after its first.
const GROUP: Duration = Duration::from_secs(1);
/// Peers whose ways are watched: those dialled last.
const PEERS: usize = 32;
/// A socket is connected to this port to learn its way; no packet is sent.
const DISCARD: u16 = 9;

/// Link, address, route and rule groups of rtnetlink (`RTMGRP_*`, and the rules of IPv6, which have a number only).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | (1 << (19 - 1));

/// Follows the network for a client endpoint, in a task of its own.
#[derive(Debug)]
pub(super) struct Following {
    peers: watch::Sender<Vec<IpAddr>>,
    changes: watch::Receiver<u64>,
    /// Aborted with the endpoint. The lock only makes the handle shareable.
    _task: Mutex<JoinSet<()>>,
}

impl Following {
    /// Must be called inside the runtime of the endpoints.
    pub(super) fn start(v4: &quinn::Endpoint, v6: Option<&quinn::Endpoint>) -> Self {
        let peers = watch::Sender::new(Vec::new());
        let (changed, changes) = watch::channel(0);
        let follower = Follower {
            v4: v4.clone(),
            v6: v6.cloned(),
            peers: peers.subscribe(),
            ways: Ways::new(),
            changed,
        };
        let mut task = JoinSet::new();
        task.spawn(async move {
            match Events::open() {
                Ok(events) => follower.run(events).await,
                // A sandbox may forbid it: connections find out by themselves, later.
                Err(error) => tracing::debug!(%error, "changes of the network are not followed"),
            }
        });
        Self {
            peers,
            changes,
            _task: Mutex::new(task),
        }
    }

    /// The way to this peer counts from now on.
    pub(super) fn watch(&self, peer: IpAddr) {
        self.peers.send_if_modified(|peers| {
            let known = peer.is_loopback() || peers.contains(&peer);
            if !known {
                if peers.len() == PEERS {
                    peers.remove(0);
                }
                peers.push(peer);
            }
            !known
        });
    }

    /// A number that rises with each change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}

struct Follower {
    v4: quinn::Endpoint,
    v6: Option<quinn::Endpoint>,
    peers: watch::Receiver<Vec<IpAddr>>,
    ways: Ways,
    changed: watch::Sender<u64>,
}

impl Follower {
    async fn run(mut self, events: Events) {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                dialled = self.peers.changed() => {
                    if dialled.is_err() {
                        return;
                    }
                    let now = Host::now();
                    let peers = self.peers.borrow_and_update().clone();
                    self.ways.retain(|peer, _| peers.contains(peer));
                    for peer in peers {
                        self.ways.entry(peer).or_insert_with(|| now.way(peer));
                    }
                    continue;
                }
            };
            if let Err(error) = event.and(events.settled().await) {
                tracing::warn!(%error, "changes of the network are not followed any more");
                return;
            }
            let now = Host::now();
            let ways: Ways = self
                .ways
                .keys()
                .map(|peer| (*peer, now.way(*peer)))
                .collect();
            let change = Change::between(&self.ways, &ways);
            self.ways = ways;
            self.apply(change);
        }
    }

    fn apply(&self, change: Change) {
        if !change.any {
            return;
        }
        if !change.v4 && !change.v6 {
            tracing::info!("the network changed: there is no way to some peers");
        }
        let v4 = (
            change.v4,
            Some(&self.v4),
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
        );
        let v6 = (change.v6, self.v6.as_ref(), Ipv6Addr::UNSPECIFIED.into());
        for (moved, endpoint, any) in [v4, v6] {
            if let Some(endpoint) = endpoint.filter(|_| moved) {
                let fresh = socket::bind_one(SocketAddr::new(any, 0));
                // Without a new socket the old one goes on as well as it can.
                match fresh.and_then(|fresh| endpoint.rebind(fresh)) {
                    Ok(()) => tracing::info!(
                        open = endpoint.open_connections(),
                        "the network changed: connections move to a new socket"
                    ),
                    Err(error) => {
                        tracing::warn!(%error, "the network changed, and no new socket could be had")
                    }
                }
            }
        }
        self.changed.send_modify(|count| *count += 1);
    }
}

/// The host's events: that there was one is all that is read out of them.
///
/// To the runtime a datagram is a datagram: its Unix socket asks nothing of the family when it receives.
struct Events(UnixDatagram);

impl Events {
    fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let route = SockProtocol::NetlinkRoute;
        let events = open(AddressFamily::Netlink, SockType::Raw, flags, route)?;
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        let events = std::os::unix::net::UnixDatagram::from(events);
        Ok(Self(UnixDatagram::from_std(events)?))
    }

    /// Cancel safe: an event that was read stands for those that follow it.
    async fn next(&self) -> io::Result<()> {
        match self.0.recv(&mut [0; 8192]).await {
            // So many events that some were lost are an event as well.
            Err(error) if error.raw_os_error() != Some(nix::libc::ENOBUFS) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits for the end of a group of events.
    async fn settled(&self) -> io::Result<()> {
        let end = Instant::now() + GROUP;
        loop {
            let quiet = end.min(Instant::now() + QUIET);
            match tokio::time::timeout_at(quiet, self.next()).await {
                Ok(event) => event?,
                Err(_) => return Ok(()),
            }
            if Instant::now() >= end {
                return Ok(());
            }
        }
    }
}

/// How packets leave for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    source: IpAddr,
    /// Whether the interface has a carrier.
    running: bool,
}

/// The ways to peers; `None` is a peer that cannot be reached.
type Ways = HashMap<IpAddr, Option<Way>>;

/// The addresses of the host, and whether their interfaces have a carrier.
struct Host(HashMap<IpAddr, bool>);

impl Host {
    fn now() -> Self {
        let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let with_state = addresses.filter_map(|found| {
            let address = found.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            let ip = v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))?;
            Some((ip, found.flags.contains(InterfaceFlags::IFF_RUNNING)))
        });
        Self(with_state.collect())
    }

    fn way(&self, peer: IpAddr) -> Option<Way> {
        let any = match peer {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let asking = UdpSocket::bind((any, 0)).ok()?;
        asking.connect((peer, DISCARD)).ok()?;
        let source = asking.local_addr().ok()?.ip();
        Some(Way {
            source,
            running: self.0.get(&source).copied().unwrap_or(true),
        })
    }
}

/// What a change of ways asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    /// Something is different.
    any: bool,
    /// There is a way over IPv4 that was not there before: connections shall take it.
    v4: bool,
    /// The same over IPv6.
    v6: bool,
}

impl Change {
    fn between(before: &Ways, after: &Ways) -> Self {
        let mut change = Self {
            any: false,
            v4: false,
            v6: false,
        };
        for (peer, way) in after {
            if before.get(peer).is_none_or(|before| before == way) {
                continue;
            }
            change.any = true;
            let moves = way.is_some_and(|way| way.running);
            change.v4 |= moves && peer.is_ipv4();
            change.v6 |= moves && peer.is_ipv6();
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(way: Option<(u8, bool)>) -> Ways {
        let peer = IpAddr::from([198, 51, 100, 1]);
        let way = way.map(|(last, running)| Way {
            source: IpAddr::from([192, 0, 2, last]),
            running,
        });
        Ways::from([(peer, way)])
    }

    #[test]
    fn connections_move_when_there_is_another_way() {
        let change = |before, after| {
            let change = Change::between(&ways(before), &ways(after));
            assert!(!change.v6, "no peer has an IPv6 address");
            (change.any, change.v4)
        };
        let (one, other, out) = (Some((1, true)), Some((2, true)), Some((1, false)));
        assert_eq!(change(one, one), (false, false));
        assert_eq!(change(one, other), (true, true), "another address");
        assert_eq!(change(one, None), (true, false), "nowhere to move to");
        assert_eq!(change(None, one), (true, true), "and back");
        assert_eq!(change(one, out), (true, false), "the cable is out");
        assert_eq!(change(out, one), (true, true), "and in again");
        let unknown = Change::between(&Ways::new(), &ways(one));
        assert!(!unknown.any, "a peer that is new is no change");
    }

    #[test]
    fn the_way_to_this_host_is_known() {
        let way = Host::now().way(Ipv4Addr::LOCALHOST.into());
        let loopback = Way {
            source: Ipv4Addr::LOCALHOST.into(),
            running: true,
        };
        assert_eq!(way, Some(loopback));
    }

    #[tokio::test]
    async fn events_can_be_had() {
        Events::open().unwrap();
    }
}
