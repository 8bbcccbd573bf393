//! A UDP port of a mapped service: one association for each client address.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use keel_fabric::EndReason;
use keel_fabric::consumer::{ConsumerConfig, ConsumerFlow};
use keel_fabric::metrics::{DropLabels, LimitLabels};
use keel_fabric::udp::{Client, Inbox, NotTaken};
use keel_fabric::wire::Protocol;
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::metrics::SidecarMetrics;
use crate::proxy::{self, Proxy, Unserved, Wanted};
use crate::spec::ServiceRef;
use crate::ways::DirectoryWays;

/// Packets read before associations that have ended are collected.
const BATCH: usize = 64;

/// For how long packets of a client are dropped after nobody took its association: each would only ask all providers again.
const SILENCE: Duration = Duration::from_secs(1);

thread_local! {
    /// One read buffer for all ports of the thread.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 16]);
}

/// How many associations there may be; beyond that the one that was idle for longest makes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxAssociations {
    /// Of one port of a service (`associations`).
    pub port: usize,
    /// Of one client, by its IP address, at one port (`associations_per_client`).
    pub client: usize,
}

impl Default for MaxAssociations {
    /// 4,096 and 1,024: resolvers take a new port for each question.
    fn default() -> Self {
        Self {
            port: 4096,
            client: 1024,
        }
    }
}

/// One open port.
pub(crate) struct Listening {
    pub(crate) socket: UdpSocket,
    pub(crate) target: ServiceRef,
    pub(crate) port: u16,
    pub(crate) proxy: Arc<Proxy>,
    /// This port is no longer wanted, or everything stops.
    pub(crate) retired: CancellationToken,
}

impl Listening {
    /// Carries packets until the port is retired; then its associations end.
    pub(crate) async fn run(self) {
        let mut associations = Associations {
            socket: Arc::new(self.socket),
            target: self.target,
            port: self.port,
            proxy: self.proxy,
            all: HashMap::new(),
            of_client: HashMap::new(),
            tasks: JoinSet::new(),
        };
        loop {
            tokio::select! {
                biased;
                () = self.retired.cancelled() => break,
                Some(ended) = associations.tasks.join_next() => if let Ok((address, inbox)) = ended {
                    associations.forget(address, &inbox);
                },
                readable = associations.socket.readable() => {
                    if let Err(error) = readable.and_then(|()| associations.receive()) {
                        tracing::debug!(%error, service = %associations.target, port = associations.port, "receiving failed");
                    }
                }
            }
        }
        associations.tasks.shutdown().await;
    }
}

struct Associations {
    socket: Arc<UdpSocket>,
    target: ServiceRef,
    port: u16,
    proxy: Arc<Proxy>,
    all: HashMap<SocketAddr, Association>,
    of_client: HashMap<IpAddr, usize>,
    tasks: JoinSet<(SocketAddr, Arc<Inbox>)>,
}

struct Association {
    inbox: Arc<Inbox>,
    fate: Arc<Fate>,
    task: AbortHandle,
}

/// What becomes of an association.
#[derive(Debug, Default)]
struct Fate {
    /// Nobody took it.
    unserved: AtomicBool,
    /// Packets that it was given: lost, if nobody takes it.
    packets: AtomicU64,
}

impl Associations {
    /// Takes the packets that are there, but not for ever.
    fn receive(&mut self) -> io::Result<()> {
        for _ in 0..BATCH {
            let received: io::Result<_> = READ.with_borrow_mut(|buffer| {
                let (length, from) = self.socket.try_recv_from(buffer)?;
                Ok((Bytes::copy_from_slice(&buffer[..length]), from))
            });
            match received {
                Ok((packet, from)) => self.take(packet, from),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Hands a packet to its client's association; starts one if there is none.
    fn take(&mut self, packet: Bytes, from: SocketAddr) {
        if let Some(association) = self.all.get(&from) {
            if association.fate.unserved.load(Ordering::Relaxed) {
                return self.dropped("unserved", 1);
            }
            match association.inbox.push(packet.clone()) {
                Ok(()) => {
                    association.fate.packets.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(NotTaken::Full(limit)) => {
                    let limits = &self.proxy.consumer.metrics.limit_hit;
                    limits.get_or_create(&LimitLabels { name: limit }).inc();
                    return self.dropped("queue", 1);
                }
                // It is just ending, and has taken no packet that it will not carry.
                Err(NotTaken::Closed) => self.remove(from),
            }
        }
        self.make_room(from.ip());
        self.start(packet, from);
    }

    fn start(&mut self, packet: Bytes, from: SocketAddr) {
        let inbox = Arc::new(Inbox::new(&self.proxy.consumer.limits));
        // An empty inbox takes any packet.
        let _ = inbox.push(packet);
        let fate = Arc::new(Fate {
            packets: AtomicU64::new(1),
            ..Fate::default()
        });
        let client = Client {
            inbox: Arc::clone(&inbox),
            socket: Arc::clone(&self.socket),
            address: from,
        };
        let (proxy, target, port) = (Arc::clone(&self.proxy), self.target.clone(), self.port);
        let (ended, said) = ((from, Arc::clone(&inbox)), Arc::clone(&fate));
        let task = self.tasks.spawn(async move {
            if !serve(&proxy, client, &target, port).await {
                said.unserved.store(true, Ordering::Relaxed);
                let lost = said.packets.load(Ordering::Relaxed);
                dropped(&proxy, "unserved", lost);
                tokio::time::sleep(SILENCE).await;
            }
            ended
        });
        let association = Association { inbox, fate, task };
        self.all.insert(from, association);
        *self.of_client.entry(from.ip()).or_default() += 1;
    }

    /// Ends associations that were idle for longest, until there is room for another one of `client`.
    fn make_room(&mut self, client: IpAddr) {
        let MaxAssociations { port, client: most } = self.proxy.max_associations;
        while self.of_client.get(&client).is_some_and(|&n| n >= most) {
            self.evict("associations_per_client", |address| address.ip() == client);
        }
        while !self.all.is_empty() && self.all.len() >= port {
            self.evict("associations", |_| true);
        }
    }

    fn evict(&mut self, limit: &'static str, among: impl Fn(&SocketAddr) -> bool) {
        self.proxy.metrics.dns.limit_hit(limit);
        let those = self.all.iter().filter(|(address, _)| among(address));
        let idlest = those.min_by_key(|(_, association)| association.inbox.moved());
        if let Some(address) = idlest.map(|(address, _)| *address) {
            if let Some(association) = self.all.get(&address) {
                association.task.abort();
            }
            self.remove(address);
        }
    }

    /// An association has ended; another one of the same client may have taken its place.
    fn forget(&mut self, address: SocketAddr, inbox: &Arc<Inbox>) {
        let is_it = |association: &Association| Arc::ptr_eq(&association.inbox, inbox);
        if self.all.get(&address).is_some_and(is_it) {
            self.remove(address);
        }
    }

    fn remove(&mut self, address: SocketAddr) {
        if self.all.remove(&address).is_none() {
            return;
        }
        if let Some(count) = self.of_client.get_mut(&address.ip()) {
            *count -= 1;
            if *count == 0 {
                self.of_client.remove(&address.ip());
            }
        }
    }

    fn dropped(&self, reason: &'static str, packets: u64) {
        dropped(&self.proxy, reason, packets);
    }
}

fn dropped(proxy: &Proxy, reason: &'static str, packets: u64) {
    let dropped = &proxy.consumer.metrics.packets_dropped;
    dropped
        .get_or_create(&DropLabels { reason })
        .inc_by(packets);
}

/// The settings of an association: who else may take it depends on the mapping.
fn consumer(proxy: &Proxy, target: &ServiceRef) -> ConsumerConfig {
    let mut config = proxy.consumer.clone();
    if target.cluster.is_some() {
        config.ways = Arc::new(DirectoryWays {
            cluster: target.cluster.clone(),
            directory: proxy.directory.clone(),
            links: proxy.links.clone(),
        });
    }
    config
}

/// Carries one association to its end; `false` if nobody took it.
async fn serve(proxy: &Proxy, client: Client, target: &ServiceRef, port: u16) -> bool {
    let _open = Open::count(&proxy.metrics);
    let from = client.address;
    let asked = (target.service.clone(), port);
    let mut flow = Box::new(ConsumerFlow::udp(client, asked, consumer(proxy, target)));
    let wanted = Wanted {
        target,
        port,
        protocol: Protocol::Udp,
        client: from.ip(),
    };
    match Box::pin(proxy::open(proxy, &mut flow, wanted)).await {
        Ok(late) => {
            tokio::join!(flow.carry(), late.settle(&proxy.endpoints));
            true
        }
        Err(why) => {
            proxy.metrics.connections_unserved.inc();
            tracing::debug!(service = %target, port, client = %from, "association not served: {why}");
            flow.unserved(match why {
                Unserved::NoIdentity => EndReason::NoIdentity,
                Unserved::NoProvider | Unserved::Crowded => EndReason::NoProvider,
                Unserved::Open(_) | Unserved::NoAnswer => EndReason::NoAnswer,
            });
            false
        }
    }
}

/// An association counts as closed however it ends: one that makes room for another is dropped.
struct Open<'a>(&'a SidecarMetrics);

impl<'a> Open<'a> {
    fn count(metrics: &'a SidecarMetrics) -> Self {
        metrics.connections_accepted.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections_closed.inc();
    }
}
