//! A listener per mapped service and port. Starts and stops only what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keel_fabric::{Grace, provider::Entrances, wire::Protocol};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::proxy::{self, Proxy};
use crate::spec::{Port, ServiceRef};
use crate::udp::Listening;
use crate::vip::VipTable;

/// Connections that the kernel completes before we accept them; more than a burst of a pool that connects at once.
const BACKLOG: u32 = 1024;

/// The pause after an accept that failed for want of files or memory: closing connections makes room meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the log says that there is no room.
const REPEAT: Duration = Duration::from_secs(60);

/// Addresses that are tried for one service, if those before are taken.
const MAX_ADDRESSES: usize = 64;

/// What became of one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// It accepts connections, or packets.
    Listening,
    /// It does not; the text says why and what to do.
    Failed(String),
}

/// One mapped service as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappingState {
    /// The service.
    pub target: ServiceRef,
    /// Its address.
    pub address: IpAddr,
    /// Its ports.
    pub ports: BTreeMap<Port, PortState>,
}

/// All listeners. One task owns it.
#[derive(Debug)]
pub(crate) struct Listeners {
    proxy: Arc<Proxy>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    grace: Grace,
    vips: VipTable,
    services: BTreeMap<ServiceRef, Service>,
    tasks: JoinSet<()>,
    states: watch::Sender<Arc<Vec<MappingState>>>,
    entrances: Entrances,
}

#[derive(Debug, Default)]
struct Service {
    open: BTreeMap<Port, Open>,
    failed: BTreeMap<Port, String>,
}

/// An open listener; dropping it stops accepting, its connections go on.
#[derive(Debug)]
struct Open(CancellationToken);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Listeners {
    /// No listener yet. At most so many connections at once go to `proxy` until `stop`, and have `grace` from then on.
    pub(crate) fn new(
        proxy: Arc<Proxy>,
        connections: usize,
        vips: VipTable,
        stop: CancellationToken,
        grace: Grace,
    ) -> Self {
        let listeners = Self {
            proxy,
            permits: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            stop,
            grace,
            vips,
            services: BTreeMap::new(),
            tasks: JoinSet::new(),
            states: watch::Sender::default(),
            entrances: Entrances::default(),
        };
        listeners.publish();
        listeners
    }

    /// What became of every mapping.
    pub(crate) fn states(&self) -> watch::Receiver<Arc<Vec<MappingState>>> {
        self.states.subscribe()
    }

    /// Where the open listeners lead.
    pub(crate) fn entrances(&self) -> Entrances {
        self.entrances.clone()
    }

    /// Opens what is wanted and not open, closes what is open and not wanted. Failed ports are tried again.
    pub(crate) fn reconcile(&mut self, wanted: &BTreeMap<ServiceRef, BTreeSet<Port>>) {
        self.services
            .retain(|target, _| wanted.contains_key(target));
        for (target, ports) in wanted {
            let service = self.services.entry(target.clone()).or_default();
            service.open.retain(|port, _| ports.contains(port));
            let missing: BTreeSet<Port> = ports
                .iter()
                .copied()
                .filter(|port| !service.open.contains_key(port))
                .collect();
            if !missing.is_empty() {
                self.open(target, &missing, ports);
            }
        }
        // Those that ended by themselves are collected, so that the set holds running ones only.
        while self.tasks.try_join_next().is_some() {}
        self.publish();
    }

    /// Opens `missing` at the service's address; if one is taken there, `all` at the next address where none is.
    fn open(&mut self, target: &ServiceRef, missing: &BTreeSet<Port>, all: &BTreeSet<Port>) {
        let Some(current) = self.vips.get(target) else {
            return;
        };
        let mut bound = bind_all(current, missing);
        let mut address = current;
        if taken(&bound) {
            let mut next = current;
            for _ in 1..MAX_ADDRESSES {
                match self.vips.next_after(next) {
                    Some(other) if other != current => next = other,
                    _ => break,
                }
                let there = bind_all(next, all);
                if !taken(&there) {
                    tracing::warn!(
                        "{target}: a port of {current} is taken by another program; its address is {next} from now on"
                    );
                    self.vips.relocate(target, next);
                    (address, bound) = (next, there);
                    break;
                }
            }
        }
        let service = self.services.entry(target.clone()).or_default();
        if address != current {
            service.open.clear();
        }
        for (port, outcome) in bound {
            match outcome {
                Ok(socket) => {
                    service.failed.remove(&port);
                    tracing::info!(service = %target, %address, %port, "listening");
                    let retired = self.stop.child_token();
                    let (target, proxy) = (target.clone(), self.proxy.clone());
                    match socket {
                        Socket::Tcp(listener) => self.tasks.spawn(
                            Accepting {
                                listener,
                                target,
                                port: port.number,
                                proxy,
                                permits: self.permits.clone(),
                                waiting: None,
                                told: None,
                                retired: retired.clone(),
                                stop: self.stop.clone(),
                                grace: self.grace.clone(),
                            }
                            .run(),
                        ),
                        Socket::Udp(socket) => self.tasks.spawn(
                            Listening {
                                socket,
                                target,
                                port: port.number,
                                proxy,
                                retired: retired.clone(),
                            }
                            .run(),
                        ),
                    };
                    service.open.insert(port, Open(retired));
                }
                Err(error) => {
                    let text = explain(SocketAddr::new(address, port.number), &error);
                    if service.failed.get(&port) != Some(&text) {
                        tracing::warn!("{target} port {port} cannot be mapped: {text}");
                    }
                    service.failed.insert(port, text);
                }
            }
        }
    }

    /// True if a port could not be opened.
    pub(crate) fn has_failures(&self) -> bool {
        self.services
            .values()
            .any(|service| !service.failed.is_empty())
    }

    /// True if there are ports to listen on, and none of them could be opened.
    pub(crate) fn are_useless(&self) -> bool {
        let mut all = self.services.values();
        self.has_failures() && all.all(|service| service.open.is_empty())
    }

    /// Waits until every connection has ended; `stop` must have been cancelled.
    pub(crate) async fn closed(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    fn publish(&self) {
        let states = self.vips.addresses().iter().map(|(target, address)| {
            let mut ports = BTreeMap::new();
            if let Some(service) = self.services.get(target) {
                ports.extend(
                    service
                        .open
                        .keys()
                        .map(|port| (*port, PortState::Listening)),
                );
                ports.extend(
                    service
                        .failed
                        .iter()
                        .map(|(port, why)| (*port, PortState::Failed(why.clone()))),
                );
            }
            MappingState {
                target: target.clone(),
                address: *address,
                ports,
            }
        });
        let states: Arc<Vec<MappingState>> = Arc::new(states.collect());
        let open = states.iter().flat_map(|mapped| {
            let open = mapped
                .ports
                .iter()
                .filter(|(_, state)| **state == PortState::Listening);
            open.map(|(port, _)| {
                let to = (mapped.target.service.clone(), port.number);
                (SocketAddr::new(mapped.address, port.number), to)
            })
        });
        self.entrances.replace(open.collect());
        let count = |listening: bool| {
            let all = states.iter().flat_map(|state| state.ports.values());
            i64::try_from(
                all.filter(|port| (**port == PortState::Listening) == listening)
                    .count(),
            )
            .unwrap_or(i64::MAX)
        };
        self.proxy.metrics.listeners.set(count(true));
        self.proxy.metrics.listeners_failed.set(count(false));
        self.states.send_if_modified(|old| {
            let changed = **old != *states;
            if changed {
                *old = states;
            }
            changed
        });
    }
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

type Bound = BTreeMap<Port, io::Result<Socket>>;

fn bind_all(address: IpAddr, ports: &BTreeSet<Port>) -> Bound {
    let bind = |port: &Port| {
        let address = SocketAddr::new(address, port.number);
        match port.protocol {
            Protocol::Tcp => bind_tcp(address).map(Socket::Tcp),
            Protocol::Udp => bind_udp(address).map(Socket::Udp),
        }
    };
    ports.iter().map(|port| (*port, bind(port))).collect()
}

fn taken(bound: &Bound) -> bool {
    bound
        .values()
        .any(|outcome| matches!(outcome, Err(error) if error.kind() == io::ErrorKind::AddrInUse))
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Connections of an earlier run that linger do not block the port; another listener still does.
    socket.set_reuseaddr(true)?;
    // What is accepted inherits it: a connection that is dropped before anybody has taken it over is reset, too.
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
    // So is this: an urgent byte that comes before it is set wakes nobody.
    SockRef::from(&socket).set_out_of_band_inline(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// All clients of the port share its socket, so it holds more than a few of their packets, as far as the system lets it.
fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    const BUFFER: usize = 1 << 20;
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    // Only a wish.
    let _ = SockRef::from(&socket).set_recv_buffer_size(BUFFER);
    Ok(socket)
}

/// Why an address cannot be listened on, and what helps.
fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a permission: run `sudo sysctl net.ipv4.ip_unprivileged_port_start={}`, or give the program \
             the capability with `sudo setcap cap_net_bind_service=+ep $(command -v keel-sidecar)`",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "{} is no address of this machine: choose --ip-range inside 127.0.0.0/8, or add the range to an interface, like \
             `sudo ip addr add {} dev lo`",
            address.ip(),
            ipnet::IpNet::from(address.ip())
        ),
        io::ErrorKind::AddrInUse => format!(
            "{address} and the addresses behind it are taken by other programs; stop one, or give another --ip-range"
        ),
        _ => format!("{address}: {error}"),
    }
}

/// One listener with its connections.
struct Accepting {
    listener: TcpListener,
    target: ServiceRef,
    port: u16,
    proxy: Arc<Proxy>,
    permits: Arc<Semaphore>,
    /// A connection for which there is no room.
    waiting: Option<(TcpStream, SocketAddr)>,
    /// When the log said so last.
    told: Option<Instant>,
    /// This listener is no longer wanted; its connections go on.
    retired: CancellationToken,
    /// Everything stops.
    stop: CancellationToken,
    grace: Grace,
}

impl Accepting {
    async fn run(mut self) {
        let mut connections = JoinSet::new();
        let retired = self.retired.clone();
        loop {
            tokio::select! {
                biased;
                () = retired.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.accept() => match accepted {
                    Ok((stream, from, permit)) => {
                        let (proxy, target, port) = (self.proxy.clone(), self.target.clone(), self.port);
                        connections.spawn(async move {
                            proxy::serve(&proxy, stream, from, &target, port).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, service = %self.target, port = self.port, "accepting a connection failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        // Nobody gives it room any more: its client is reset.
        drop(self.waiting.take());
        tokio::select! {
            () = async { while connections.join_next().await.is_some() {} } => {}
            () = async { self.stop.cancelled().await; self.grace.over().await } => {}
        }
        // What is left is dropped, which resets its clients.
        connections.shutdown().await;
    }

    /// The next connection, once there is room. Cancel safe: a connection that waits for room waits on.
    ///
    /// The connection comes first: a permit that a listener holds while nobody comes would be one less for all others.
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        if self.waiting.is_none() {
            self.waiting = Some(self.listener.accept().await?);
            if self.permits.available_permits() == 0 {
                self.is_full();
            }
        }
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.map_err(io::Error::other)?;
        match self.waiting.take() {
            Some((stream, from)) => Ok((stream, from, permit)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn is_full(&mut self) {
        self.proxy.metrics.dns.limit_hit("connections");
        if self.told.is_none_or(|told| told.elapsed() >= REPEAT) {
            self.told = Some(Instant::now());
            tracing::warn!(
                service = %self.target, port = self.port,
                "no room for another connection: it waits for one to end; `proxiedConnections` is how many there may be"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn every_failure_says_what_to_do() {
        let address = "127.0.66.1:80".parse().unwrap();
        for (kind, part) in [
            (
                io::ErrorKind::PermissionDenied,
                "ip_unprivileged_port_start=80",
            ),
            (
                io::ErrorKind::PermissionDenied,
                "setcap cap_net_bind_service",
            ),
            (
                io::ErrorKind::AddrNotAvailable,
                "ip addr add 127.0.66.1/32 dev lo",
            ),
            (io::ErrorKind::AddrInUse, "--ip-range"),
        ] {
            let text = explain(address, &kind.into());
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_nobody_took_over_is_no_clean_end() {
        let listener = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        drop(listener.accept().await.unwrap());
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn an_address_that_is_not_ours_fails_alone_and_says_so() {
        // TEST-NET-1: nobody has it.
        let outcomes = bind_all(
            "192.0.2.1".parse().unwrap(),
            &BTreeSet::from([Port::tcp(8080)]),
        );
        assert!(!taken(&outcomes));
        assert!(
            explain(
                "192.0.2.1:8080".parse().unwrap(),
                outcomes[&Port::tcp(8080)].as_ref().err().unwrap()
            )
            .contains("no address of this machine")
        );
    }
}
