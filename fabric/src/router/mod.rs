//! The router: takes connections of sidecars and other routers, keeps who publishes what, and splices legs.
//!
//! [`stream`] tells what happens to one leg, top to bottom; [`route`] decides, the rest acts.

mod answers;
mod clients;
mod conn;
mod control;
mod datagrams;
mod door;
mod drain;
mod held;
mod identities;
mod park;
mod route;
mod splice;
mod stream;
mod view;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use keel_certs::{Clients as ClientCerts, LiveIdentity, NodeName, Subject};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::flow::FlowLimits;
use crate::grace::Grace;
use crate::limits::{ProviderLimits, RouterLimits};
use crate::link::ALPN;
use crate::memory::Memory;
pub use crate::metrics::FabricMetrics as RouterMetrics;
use crate::pace::Paces;
use crate::provider::check::{Checks, Healths};
use crate::provider::terminator::Terminator;
use crate::provider::{Backend, Entrances, Publication};
use crate::quic::{BindError, Endpoint, ListenAddr, Profile, QuicKeys, Windows};
use crate::turns::Turns;
use crate::units::Rate;
use crate::wire::CloseCode;
use clients::{Client, Clients};
use door::{Door, Verdict};
use drain::Drain;
use identities::Identities;
use park::Parking;
use route::{ServiceKey, Table};
pub use view::{ClientView, ProviderView, Role, RouterView, ServiceView, Totals};

/// How often counters are reported.
const REPORT: Duration = Duration::from_secs(1);
/// Least time between two reports of what came and went: each looks at everything.
const REST: Duration = Duration::from_millis(10);
/// How long peers may take to hear of the stop.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a router needs to know.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Where to listen.
    pub listen: ListenAddr,
    /// The node it belongs to; its backends are provided under this identity.
    pub node: NodeName,
    /// The directory of its QUIC keys.
    pub quic_dir: PathBuf,
    /// Limits on peers.
    pub limits: RouterLimits,
    /// Limits on flows that end in the router.
    pub provider: ProviderLimits,
    /// Buffers of flows that end in the router.
    pub flow: FlowLimits,
    /// How long a router that stops waits at most for flows to leave it; no time cuts them at once.
    pub drain: Grace,
    /// Bandwidth of the backends that the router dials itself.
    pub paces: Arc<Paces>,
    /// Flow control of connections.
    pub windows: Windows,
    /// The memory of the process.
    pub memory: Arc<Memory>,
    /// Most bytes per second of one identity, each direction for itself; may change while flows run.
    pub identity_limit: watch::Receiver<Option<Rate>>,
}

/// The default of [`RouterConfig::drain`].
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A bound router.
pub struct Router {
    endpoint: Endpoint,
    drain_timeout: Duration,
    identity_limit: watch::Receiver<Option<Rate>>,
    hurry: CancellationToken,
    shared: Arc<Shared>,
    view: watch::Sender<Arc<RouterView>>,
}

/// What all connections of a router share.
struct Shared {
    node: NodeName,
    subject: Subject,
    limits: RouterLimits,
    metrics: Arc<RouterMetrics>,
    table: Mutex<Table<Arc<Client>>>,
    clients: Clients,
    identities: Identities,
    paces: Arc<Paces>,
    own: Arc<Terminator>,
    drain: Drain,
    parking: Parking,
    resumes: Turns,
    /// Providers or clients came or went.
    changed: Notify,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table<Arc<Client>>> {
        // The table is never left half changed, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Router {
    /// Binds the router's sockets. Must be called inside the runtime that will [`run`](Self::run) it.
    ///
    /// # Errors
    /// [`BindError`] names the address or the key file.
    pub fn bind(
        config: RouterConfig,
        live: LiveIdentity,
        metrics: Arc<RouterMetrics>,
    ) -> Result<Self, BindError> {
        let keys =
            QuicKeys::load_or_create(&config.quic_dir)?.with_peers(config.quic_dir.join("peers"));
        let tls = live.server_config(&[ALPN], ClientCerts::Required);
        let endpoint = {
            let (listen, windows) = (&config.listen, config.windows);
            Endpoint::bind_with(listen, Some(tls), &keys, Profile::Router, windows)?
        };
        let started = SystemTime::now();
        let subject = Subject::Node {
            node: config.node.clone(),
        };
        let parked = config.limits.parked;
        let resumes = Turns::new(config.limits.resumes(), Arc::clone(&metrics));
        let shared = Arc::new(Shared {
            node: config.node,
            table: Mutex::new(Table::new(subject.clone())),
            subject,
            limits: config.limits,
            clients: Clients::new(started, Arc::clone(&metrics)),
            identities: Identities::new(*config.identity_limit.borrow(), Arc::clone(&metrics)),
            paces: Arc::clone(&config.paces),
            own: Terminator::new(
                config.provider,
                config.flow,
                (config.paces, config.memory),
                // A router takes nothing from applications.
                Entrances::default(),
                Arc::clone(&metrics),
            ),
            metrics,
            drain: Drain::default(),
            parking: Parking::new(parked),
            resumes,
            changed: Notify::new(),
        });
        let (view, _) = watch::channel(Arc::new(RouterView {
            started,
            ..RouterView::default()
        }));
        Ok(Self {
            endpoint,
            drain_timeout: config.drain.time,
            identity_limit: config.identity_limit,
            hurry: config.drain.hurry.child_token(),
            shared,
            view,
        })
    }

    /// The addresses really bound.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.endpoint.local_addrs()
    }

    /// What can be reached here and who uses it. Sent at once when providers or clients come or go, and at most every
    /// second when only counters moved.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Arc<RouterView>> {
        self.view.subscribe()
    }

    /// Once it is cancelled, this router waits for no flow when it stops.
    #[must_use]
    pub fn hurry(&self) -> CancellationToken {
        self.hurry.clone()
    }

    /// Serves until `stop`; then drains: takes nothing new, asks the ends of all flows to go elsewhere, and waits until no
    /// flow is left that could, or until [`RouterConfig::drain_timeout`]. At last it closes all connections with `RESTART`
    /// and cuts the flows that end here; others go on when there is a router again.
    ///
    /// `backends` are dialled by the router itself, under the identity of its node.
    pub async fn run(
        self,
        mut backends: watch::Receiver<Arc<Vec<Publication>>>,
        stop: CancellationToken,
    ) {
        let Self {
            endpoint,
            drain_timeout,
            mut identity_limit,
            hurry,
            shared,
            view,
        } = self;
        let mut deadline = pin!(tokio::time::sleep(drain_timeout));
        let mut door = Door::default();
        let mut connections = JoinSet::new();
        let mut handshakes: JoinSet<Option<conn::Admitted>> = JoinSet::new();
        let mut report = tokio::time::interval(REPORT);
        report.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rested = pin!(tokio::time::sleep(Duration::ZERO));
        let mut backends_live = true;
        let checks = Checks::new(Arc::clone(&shared.metrics));
        let mut healths = checks.healths();
        let mut checking = std::pin::pin!(checks.run(backends.clone()));
        set_own(
            &shared,
            &backends.borrow_and_update(),
            &healths.borrow_and_update(),
        );
        loop {
            tokio::select! {
                () = stop.cancelled(), if !shared.drain.has_begun() => {
                    tracing::info!(legs = shared.drain.movable(), own = shared.own.live(), "draining");
                    shared.drain.begin();
                    deadline.as_mut().reset(Instant::now() + drain_timeout);
                }
                () = async { tokio::join!(shared.drain.left(), shared.own.idle()); }, if shared.drain.has_begun() => break,
                () = hurry.cancelled(), if shared.drain.has_begun() => break,
                () = &mut deadline, if shared.drain.has_begun() => {
                    let (legs, own) = (shared.drain.movable(), shared.own.live());
                    tracing::warn!(legs, own, "not all flows have left in time");
                    shared.metrics.hit("drain_time");
                    break;
                }
                incoming = endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    if shared.drain.has_begun() {
                        incoming.refuse();
                    } else {
                        let from = (incoming.remote_address().ip(), incoming.is_validated());
                        match door.decide(from, handshakes.len(), &shared.limits, Instant::now()) {
                            Verdict::Take => { handshakes.spawn(conn::admit(Arc::clone(&shared), incoming)); }
                            Verdict::Prove(limit) => {
                                shared.metrics.hit(limit);
                                incoming.retry();
                            }
                            Verdict::Refuse(limit) => {
                                shared.metrics.hit(limit);
                                incoming.refuse();
                            }
                        }
                    }
                }
                Some(done) = handshakes.join_next() => match done {
                    Ok(Some(admitted)) => { connections.spawn(conn::serve(Arc::clone(&shared), admitted)); }
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "a handshake failed"),
                },
                Some(done) = connections.join_next() => if let Err(error) = done {
                    tracing::error!(%error, "a connection's task failed");
                },
                changed = backends.changed(), if backends_live => match changed {
                    Ok(()) => set_own(&shared, &backends.borrow_and_update(), &healths.borrow()),
                    Err(_) => backends_live = false,
                },
                // Whoever set it may be gone: it stays as it is.
                Ok(()) = identity_limit.changed() => shared.identities.limit(*identity_limit.borrow_and_update()),
                () = &mut checking => {}
                Ok(()) = healths.changed() => {
                    set_own(&shared, &backends.borrow(), &healths.borrow_and_update());
                }
                () = async { rested.as_mut().await; shared.changed.notified().await } => {
                    publish_view(&shared, &view);
                    rested.as_mut().reset(Instant::now() + REST);
                }
                _ = report.tick() => publish_view(&shared, &view),
            }
        }
        shared.own.shutdown().await;
        endpoint.close(CloseCode::Restart.to_wire(), b"the router stops");
        handshakes.shutdown().await;
        connections.shutdown().await;
        // A peer that does not hear it notices at its next packet, or by the idle time.
        let _ = tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await;
    }
}

fn set_own(shared: &Shared, backends: &[Publication], healths: &Healths) {
    shared.paces.set(backends.iter().map(|one| {
        let service = (one.service.clone(), one.port, one.protocol);
        (service, &one.options)
    }));
    let own = backends.iter().map(|publication| {
        let key = ServiceKey {
            service: publication.service.clone(),
            port: publication.port,
            protocol: publication.protocol,
        };
        (key, Backend::from(publication), healths.offer(publication))
    });
    shared.table().set_own(own, SystemTime::now());
    shared.changed.notify_one();
}

fn publish_view(shared: &Shared, view: &watch::Sender<Arc<RouterView>>) {
    let now = shared.clients.view(&shared.table());
    view.send_if_modified(|old| {
        let moved = **old != now;
        if moved {
            *old = Arc::new(now);
        }
        moved
    });
}
