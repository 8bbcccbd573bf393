//! The connections at a router and what they use.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use keel_certs::Subject;

use super::answers::Answers;
use super::route::{ServiceKey, Table};
use super::view::{ClientView, ProviderView, Role, RouterView, ServiceView, Totals};
use crate::meter::{Meter, Passing};
use crate::metrics::{DirectionLabels, FabricMetrics};
use crate::quic::Connection;
use crate::series::{At, PairCounts};
use crate::wire::Offer;

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) identity: Subject,
    pub(super) connection: Connection,
    /// What it owes as a provider.
    pub(super) answers: Answers,
    connected_at: SystemTime,
    /// What it said in its HELLO.
    pub(super) instance: OnceLock<u64>,
    /// What had come from it when another process took its place.
    heard_before: AtomicU64,
    uses: Mutex<BTreeMap<(ServiceKey, Role), Arc<Use>>>,
}

/// What one connection does with one service.
#[derive(Debug, Default)]
struct Use {
    flows: Arc<AtomicU64>,
    bytes_in: Arc<AtomicU64>,
    bytes_out: Arc<AtomicU64>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Clients {
    started: SystemTime,
    next_id: AtomicU64,
    all: Mutex<BTreeMap<u64, Arc<Client>>>,
    flows: Arc<AtomicU64>,
    bytes_in: Arc<AtomicU64>,
    bytes_out: Arc<AtomicU64>,
    metrics: Arc<FabricMetrics>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half changed here, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Another process with the same identity takes its place.
    pub(super) fn displaced(&self) {
        self.heard_before
            .store(self.connection.heard(), Ordering::Relaxed);
    }

    /// Whether it has said anything since then. Its process may be the one that the other one came after.
    pub(super) fn is_alive(&self) -> bool {
        self.connection.heard() > self.heard_before.load(Ordering::Relaxed)
    }

    fn used(&self, key: &ServiceKey, role: Role) -> Arc<Use> {
        Arc::clone(lock(&self.uses).entry((key.clone(), role)).or_default())
    }

    /// Notes that the connection provides a service.
    pub(super) fn provides(&self, key: &ServiceKey) {
        self.used(key, Role::Provider);
    }

    /// Notes that the connection provides a service no more.
    pub(super) fn provides_no_more(&self, key: &ServiceKey) {
        lock(&self.uses).remove(&(key.clone(), Role::Provider));
    }
}

/// Connections of one identity that have the whole of their windows.
const WHOLE: u32 = 2;

/// Gives the connections of an identity what they may hold, by their age; how many there are.
fn rank(all: &BTreeMap<u64, Arc<Client>>, identity: &Subject) -> u32 {
    let mut rank = 0;
    for client in all.values().filter(|client| client.identity == *identity) {
        rank += 1;
        client.connection.set_rank(rank);
    }
    rank
}

impl Clients {
    pub(super) fn new(started: SystemTime, metrics: Arc<FabricMetrics>) -> Self {
        Self {
            started,
            next_id: AtomicU64::new(1),
            all: Mutex::default(),
            flows: Arc::default(),
            bytes_in: Arc::default(),
            bytes_out: Arc::default(),
            metrics,
        }
    }

    pub(super) fn add(&self, identity: Subject, connection: Connection) -> Arc<Client> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let connected_at = SystemTime::now();
        let client = Arc::new(Client {
            id,
            identity,
            connection,
            answers: Answers::default(),
            connected_at,
            instance: OnceLock::new(),
            heard_before: AtomicU64::new(0),
            uses: Mutex::default(),
        });
        let mut all = lock(&self.all);
        all.insert(id, Arc::clone(&client));
        if rank(&all, &client.identity) > WHOLE {
            self.metrics.hit("connection_window");
        }
        drop(all);
        client
    }

    /// Notes the instance that `client` belongs to; the older connections of that instance.
    pub(super) fn replaced(&self, client: &Client, instance: u64) -> Vec<Arc<Client>> {
        // Only the first word counts.
        let instance = client.instance.get_or_init(|| instance);
        let all = lock(&self.all);
        all.range(..client.id)
            .map(|(_, other)| other)
            .filter(|other| other.identity == client.identity)
            .filter(|other| other.instance.get() == Some(instance))
            .cloned()
            .collect()
    }

    pub(super) fn remove(&self, client: &Client) {
        let mut all = lock(&self.all);
        all.remove(&client.id);
        rank(&all, &client.identity);
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.all).len()
    }

    /// Counts a leg from `consumer` to `provider`, or to a backend of the router itself; `resumed` if it is not its flow's
    /// first.
    pub(super) fn passing(
        &self,
        key: &ServiceKey,
        consumer: &Client,
        provider: Option<&Client>,
        resumed: bool,
    ) -> Passing {
        let service = At(&key.service, key.port, key.protocol);
        let pair = self
            .metrics
            .pairs
            .start("router", service, &consumer.identity);
        pair.resumed(u32::from(resumed));
        let near = consumer.used(key, Role::Consumer);
        let mut up = vec![
            Arc::clone(&near.bytes_in),
            Arc::clone(&self.bytes_in),
            Arc::clone(&pair.up),
        ];
        let mut down = vec![
            Arc::clone(&near.bytes_out),
            Arc::clone(&self.bytes_out),
            Arc::clone(&pair.down),
        ];
        let mut gauges = vec![Arc::clone(&near.flows), Arc::clone(&self.flows)];
        if let Some(provider) = provider {
            let far = provider.used(key, Role::Provider);
            up.push(Arc::clone(&far.bytes_out));
            down.push(Arc::clone(&far.bytes_in));
            gauges.push(Arc::clone(&far.flows));
        }
        let metric = |direction| {
            self.metrics
                .router_bytes
                .get_or_create(&DirectionLabels { direction })
                .clone()
        };
        let up = Meter {
            counters: up,
            metric: metric("up"),
        };
        let down = Meter {
            counters: down,
            metric: metric("down"),
        };
        Passing::new(gauges, up, down, pair)
    }

    /// The report of now.
    pub(super) fn view(&self, table: &Table<Arc<Client>>) -> RouterView {
        let mut clients: BTreeMap<ServiceKey, Vec<ClientView>> = BTreeMap::new();
        let all: Vec<Arc<Client>> = lock(&self.all).values().cloned().collect();
        let providers = table.providers();
        for client in &all {
            // What nobody provides any more, or never did, is not shown, and would be kept as long as the connection: legs of
            // known flows reach a provider under whatever name their initiator gives the service.
            lock(&client.uses).retain(|(key, role), used| {
                let provides =
                    |(identity, ..): &(&Subject, SystemTime, Offer)| **identity == client.identity;
                used.flows.load(Ordering::Relaxed) > 0
                    || providers.get(key).is_some_and(|all| match role {
                        Role::Consumer => true,
                        Role::Provider => all.iter().any(provides),
                    })
            });
            for ((key, role), used) in lock(&client.uses).iter() {
                clients.entry(key.clone()).or_default().push(ClientView {
                    identity: client.identity.clone(),
                    role: *role,
                    remote: client.connection.remote_address(),
                    connected_at: client.connected_at,
                    connections: used.flows.load(Ordering::Relaxed),
                    bytes_in: used.bytes_in.load(Ordering::Relaxed),
                    bytes_out: used.bytes_out.load(Ordering::Relaxed),
                });
            }
        }
        let mut counts: BTreeMap<String, Vec<PairCounts>> = BTreeMap::new();
        for pair in self.metrics.pairs.counts() {
            if matches!(pair.role, "router" | "provider") {
                counts.entry(pair.service.clone()).or_default().push(pair);
            }
        }
        let services = providers
            .into_iter()
            .map(|(key, providers)| {
                let counted = At(&key.service, key.port, key.protocol).to_string();
                let mut clients = clients.remove(key).unwrap_or_default();
                clients.sort_by(|a, b| {
                    (&a.identity, a.role, a.remote).cmp(&(&b.identity, b.role, b.remote))
                });
                ServiceView {
                    service: key.service.clone(),
                    port: key.port,
                    protocol: key.protocol,
                    providers: providers
                        .into_iter()
                        .map(|(identity, since, offer)| ProviderView {
                            identity: identity.clone(),
                            since,
                            offer,
                        })
                        .collect(),
                    clients,
                    counts: counts.remove(&counted).unwrap_or_default(),
                }
            })
            .collect();
        RouterView {
            started: self.started,
            services,
            totals: Totals {
                clients: all.len() as u64,
                connections: self.flows.load(Ordering::Relaxed),
                bytes_in: self.bytes_in.load(Ordering::Relaxed),
                bytes_out: self.bytes_out.load(Ordering::Relaxed),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::tests::pair;
    use crate::wire::Protocol;

    /// Legs of known flows reach a provider that is connected, under any name.
    #[tokio::test]
    async fn a_service_that_nobody_provides_leaves_nothing_behind() {
        let clients = Clients::new(SystemTime::UNIX_EPOCH, Arc::default());
        let (near, far, _endpoints) = pair().await;
        let subject = |path: &str| path.parse::<Subject>().unwrap();
        let consumer = clients.add(subject("/node/a/ns/default/pod/a"), near);
        let provider = clients.add(subject("/node/a/ns/default/pod/b"), far);
        let table = Table::new(subject("/node/a"));
        let key = |number| ServiceKey {
            service: format!("s-{number}.default").parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
        };
        let uses = |client: &Client| lock(&client.uses).len();
        let passing = clients.passing(&key(0), &consumer, Some(&provider), true);
        for number in 1..1000 {
            drop(clients.passing(&key(number), &consumer, Some(&provider), true));
        }
        clients.view(&table);
        assert_eq!((uses(&consumer), uses(&provider)), (1, 1), "one runs");
        drop(passing);
        clients.view(&table);
        assert_eq!((uses(&consumer), uses(&provider)), (0, 0));
    }
}
