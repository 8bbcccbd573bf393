//! The Router of a node: its spec followed, its sockets bound, its view reported.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use keel_certs::{ClusterName, Hosts, LiveIdentity, NodeName};
use keel_control::client::{Client, WatchFrom};
use keel_control::routes::{
    Plan, ReportContext, Reporter, ReporterConfig, RouterFlags, StatusWriter, follow,
};
use keel_fabric::Grace;
use keel_fabric::limits::{Limits, LinkLimits};
use keel_fabric::link::{Links, RouterPeer};
use keel_fabric::memory::Memory;
use keel_fabric::metrics::FabricMetrics;
use keel_fabric::pace::Paces;
use keel_fabric::provider::{Entrances, Provider, ProviderConfig, Publication};
use keel_fabric::quic::{Endpoint, HostPort, ListenAddr, Profile, Windows};
use keel_fabric::router::{Router, RouterConfig, RouterView};
use keel_fabric::units::Rate;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use super::datapath::DataPath;
use super::ports;
use crate::errors::chain;
use crate::telemetry::Runtimes;

/// How long the first bind waits for the Router's spec. A node alone at home starts with flags and defaults after that.
const SPEC_PATIENCE: Duration = Duration::from_secs(5);

/// What a router part is made of.
pub(super) struct RouterSettings {
    pub(super) node: NodeName,
    pub(super) cluster: ClusterName,
    /// An advertised port 0 stands for the port really bound; only nodes in one process with others use that.
    pub(super) flags: RouterFlags,
    pub(super) quic_dir: PathBuf,
    pub(super) status_interval: Duration,
    /// How long a stop waits at most for flows to go elsewhere.
    pub(super) drain: Grace,
    /// Bounds of what peers may do and of what flows may hold.
    pub(super) limits: Limits,
    /// Where the data path's tasks are counted.
    pub(super) runtimes: Runtimes,
}

/// A running Router.
pub(super) struct RouterPart {
    data_path: DataPath,
    control: JoinSet<()>,
    stop: CancellationToken,
    context: watch::Receiver<Arc<ReportContext>>,
    _stop_on_drop: DropGuard,
}

impl RouterPart {
    /// Binds the router and starts everything around it. Returns once it listens.
    pub(super) async fn start(
        settings: RouterSettings,
        live: LiveIdentity,
        client: Client,
        metrics: Arc<FabricMetrics>,
    ) -> anyhow::Result<Self> {
        let stop = CancellationToken::new();
        let stop_on_drop = stop.clone().drop_guard();
        let mut control = JoinSet::new();
        let events = client.watch_routers(WatchFrom::Snapshot);
        let followed = match &settings.flags.follow {
            Some(name) => client.watch_frpserver(name),
            None => futures_util::stream::pending().boxed(),
        };
        // The view of other routers outlives the router itself: its farewell is written after the data path has ended.
        let (following, work) = follow(
            events,
            followed,
            settings.node.clone(),
            settings.flags.clone(),
            stop.clone(),
        );
        control.spawn(work);
        let mut synced = following.synced.clone();
        if timeout(SPEC_PATIENCE, synced.wait_for(|synced| *synced))
            .await
            .is_err()
        {
            warn!("the Router's spec cannot be read yet; starting with flags and defaults");
        }
        let writer = StatusWriter::new(client, following.plan.clone());
        let (view_tx, view) = watch::channel(Arc::new(RouterView::default()));
        let (bound_tx, mut bound) = watch::channel(None);
        let serve = Serve {
            node: settings.node.clone(),
            quic_dir: settings.quic_dir,
            cluster: settings.cluster,
            drain: settings.drain,
            live,
            paces: Paces::new(None, Arc::clone(&metrics)),
            memory: Memory::new(settings.limits.memory, Arc::clone(&metrics)),
            limits: settings.limits,
            identity_limit: watch::Sender::default(),
            metrics,
            plan: following.plan,
            others: following.others,
            view: view_tx,
            bound: bound_tx,
            stop: stop.clone(),
        };
        let mut data_path = DataPath::start("keel-data", settings.runtimes, move || serve.run())?;
        tokio::select! {
            biased;
            ended = data_path.ended() => {
                stop.cancel();
                control.shutdown().await;
                return Err(ended.err().unwrap_or_else(|| anyhow!("the router ended at once")));
            }
            // A sender that went away without a word says nothing here: what the data path ended with does.
            Ok(_) = bound.wait_for(Option::is_some) => {}
        }
        let context = flatten(bound, &mut control);
        let reporter = Reporter::new(
            ReporterConfig {
                node: settings.node,
                interval: settings.status_interval,
            },
            writer,
        );
        control.spawn(reporter.run(view, context.clone(), following.reported, stop.clone()));
        Ok(Self {
            data_path,
            control,
            stop,
            context,
            _stop_on_drop: stop_on_drop,
        })
    }

    /// Where other nodes reach the router now; empty behind NAT.
    pub(super) fn context(&self) -> watch::Receiver<Arc<ReportContext>> {
        self.context.clone()
    }

    /// Ends only by itself: with an error.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        match self.data_path.ended().await {
            Ok(()) => anyhow!("the router ended by itself"),
            Err(error) => error.context("the router"),
        }
    }

    /// Stops and waits for everything.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let outcome = self.data_path.join().await;
        while self.control.join_next().await.is_some() {}
        outcome
    }
}

/// The same watch without its "not yet".
fn flatten(
    mut bound: watch::Receiver<Option<Arc<ReportContext>>>,
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<Arc<ReportContext>> {
    // Invariant: the caller waited until something was bound, and nobody takes it back.
    let first = bound
        .borrow_and_update()
        .clone()
        .expect("something is bound");
    let (sender, receiver) = watch::channel(first);
    tasks.spawn(async move {
        while bound.changed().await.is_ok() {
            if let Some(context) = bound.borrow_and_update().clone() {
                sender.send_replace(context);
            }
        }
    });
    receiver
}

/// The data path's side: lives on its own thread.
struct Serve {
    node: NodeName,
    quic_dir: PathBuf,
    cluster: ClusterName,
    drain: Grace,
    live: LiveIdentity,
    metrics: Arc<FabricMetrics>,
    paces: Arc<Paces>,
    memory: Arc<Memory>,
    limits: Limits,
    identity_limit: watch::Sender<Option<Rate>>,
    plan: watch::Receiver<Arc<Plan>>,
    others: watch::Receiver<Arc<Vec<RouterPeer>>>,
    view: watch::Sender<Arc<RouterView>>,
    bound: watch::Sender<Option<Arc<ReportContext>>>,
    stop: CancellationToken,
}

/// A bound router that serves.
struct Serving {
    task: JoinSet<()>,
    stop: CancellationToken,
    hurry: CancellationToken,
    view: watch::Receiver<Arc<RouterView>>,
    addrs: Vec<SocketAddr>,
    listen: ListenAddr,
}

/// How often an address that could not be had is tried again.
const MOVE_AGAIN: Duration = Duration::from_secs(5);

impl Serve {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut plan = self.plan.borrow_and_update().clone();
        let (backends_tx, backends) = watch::channel(Arc::new(plan.backends.clone()));
        let (elsewhere_tx, elsewhere_rx) = watch::channel(elsewhere(&plan));
        self.identity_limit.send_replace(plan.identity_limit);
        let mut serving = self.bind((plan.listen, &plan.listen_said_by), &backends)?;
        let mut trouble = None;
        // Routers on addresses of before, which drain.
        let mut retired = JoinSet::new();
        let mut provider = JoinSet::new();
        provider.spawn(self.publish_elsewhere(elsewhere_rx)?);
        let mut again = tokio::time::interval(MOVE_AGAIN);
        loop {
            self.tell(&plan, &serving, trouble.clone());
            self.view
                .send_replace(serving.view.borrow_and_update().clone());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(_) = serving.task.join_next() => return Err(anyhow!("the router on {} ended by itself", serving.listen)),
                Some(_) = retired.join_next() => {}
                // What was taken may be free by now. On the same port this router would have to go first, each time.
                _ = again.tick(), if plan.listen.port() != serving.listen.port() => {
                    let wanted = (plan.listen, plan.listen_said_by.as_str());
                    if let Ok(new) = self.bind(wanted, &backends) {
                        retired.spawn(std::mem::replace(&mut serving, new).end());
                        trouble = None;
                    }
                }
                Some(_) = provider.join_next() => return Err(anyhow!("the router's publications ended by themselves")),
                Ok(()) = serving.view.changed() => {}
                Ok(()) = self.plan.changed() => {
                    plan = self.plan.borrow_and_update().clone();
                    backends_tx.send_if_modified(|old| replace(old, &plan.backends));
                    elsewhere_tx.send_if_modified(|old| replace(old, &elsewhere(&plan)));
                    self.identity_limit.send_if_modified(|old| std::mem::replace(old, plan.identity_limit) != plan.identity_limit);
                    if plan.listen != serving.listen {
                        let wanted = (plan.listen, plan.listen_said_by.as_str());
                        (serving, trouble) = self.rebind(serving, wanted, &backends, &mut retired).await?;
                    }
                }
            }
        }
        serving.end().await;
        while retired.join_next().await.is_some() {}
        while provider.join_next().await.is_some() {}
        Ok(())
    }

    /// A router that listens there; with what says so.
    fn bind(
        &self,
        (listen, place): (ListenAddr, &str),
        backends: &watch::Receiver<Arc<Vec<Publication>>>,
    ) -> anyhow::Result<Serving> {
        let config = RouterConfig {
            listen,
            node: self.node.clone(),
            quic_dir: self.quic_dir.clone(),
            limits: self.limits.router.clone(),
            provider: self.limits.provider.clone(),
            flow: self.limits.flow,
            drain: self.drain.clone(),
            paces: Arc::clone(&self.paces),
            memory: Arc::clone(&self.memory),
            windows: Windows::of(&self.limits),
            identity_limit: self.identity_limit.subscribe(),
        };
        let router = Router::bind(config, self.live.clone(), self.metrics.clone())
            .with_context(|| ports::router_cannot_listen(listen, place))?;
        let (view, addrs, hurry) = (router.view(), router.local_addrs(), router.hurry());
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(router.run(backends.clone(), stop.clone()));
        match listen.port() {
            0 => info!(?addrs, "router listens"),
            _ => info!(%listen, "router listens"),
        }
        Ok(Serving {
            task,
            stop,
            hurry,
            view,
            addrs,
            listen,
        })
    }

    /// Moves the router to another address; if that cannot be had it stays where it is, and the reason comes back.
    async fn rebind(
        &self,
        old: Serving,
        (listen, place): (ListenAddr, &str),
        backends: &watch::Receiver<Arc<Vec<Publication>>>,
        retired: &mut JoinSet<()>,
    ) -> anyhow::Result<(Serving, Option<String>)> {
        // Another port: take it before giving up the old one. The same port: the old one is in the way, and its flows wait
        // for the new one.
        if listen.port() == 0 || listen.port() != old.listen.port() {
            return Ok(match self.bind((listen, place), backends) {
                Ok(new) => {
                    retired.spawn(old.end());
                    (new, None)
                }
                Err(error) => self.stay(old, &error),
            });
        }
        let before = old.listen;
        old.hurry.cancel();
        old.end().await;
        match self.bind((listen, place), backends) {
            Ok(new) => Ok((new, None)),
            Err(error) => Ok(self.stay(self.bind((before, "as before"), backends)?, &error)),
        }
    }

    fn stay(&self, old: Serving, error: &anyhow::Error) -> (Serving, Option<String>) {
        let reason = format!(
            "{}; still listening on {}",
            chain(error.as_ref()),
            old.listen
        );
        warn!("{reason}");
        (old, Some(reason))
    }

    /// Publishes the router's own backends at other routers while nobody can reach this one.
    fn publish_elsewhere(
        &self,
        publications: watch::Receiver<Arc<Vec<Publication>>>,
    ) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let endpoint = Endpoint::client_with(Profile::Router, Windows::of(&self.limits))
            .context("cannot dial other routers")?;
        let links = Links::new(
            endpoint,
            self.live.clone(),
            LinkLimits::default(),
            self.metrics.clone(),
        );
        let provider = Provider::new(
            links,
            self.live.clone(),
            ProviderConfig {
                grace: self.drain.clone(),
                limits: self.limits.provider.clone(),
                flow: self.limits.flow,
                paces: Arc::clone(&self.paces),
                memory: Arc::clone(&self.memory),
                entrances: Entrances::default(),
            },
            self.metrics.clone(),
        );
        let (others, stop) = (self.others.clone(), self.stop.clone());
        Ok(async move { provider.serve(publications, others, stop).await })
    }

    fn tell(&self, plan: &Plan, serving: &Serving, trouble: Option<String>) {
        let mut plan = plan.clone();
        let port = serving.addrs.first().map_or(0, SocketAddr::port);
        for address in plan
            .addresses
            .iter_mut()
            .filter(|address| address.port() == 0)
        {
            if let Ok(ip) = address.host().parse() {
                *address = HostPort::from(SocketAddr::new(ip, port));
            }
        }
        let context = ReportContext {
            cluster: self.cluster.clone(),
            plan,
            node_addresses: node_addresses(&serving.addrs),
            trouble,
        };
        self.bound.send_if_modified(|old| {
            let same = old.as_ref().is_some_and(|old| **old == context);
            if !same {
                *old = Some(Arc::new(context));
            }
            !same
        });
    }
}

impl Serving {
    async fn end(mut self) {
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
    }
}

fn replace(old: &mut Arc<Vec<Publication>>, new: &[Publication]) -> bool {
    let changed = old.as_slice() != new;
    if changed {
        *old = Arc::new(new.to_vec());
    }
    changed
}

/// What is published at other routers: everything of ours while this one cannot be reached, else nothing.
fn elsewhere(plan: &Plan) -> Arc<Vec<Publication>> {
    Arc::new(if plan.addresses.is_empty() {
        plan.backends.clone()
    } else {
        Vec::new()
    })
}

/// How the node's own sidecars reach sockets bound to `bound`: an unspecified address stands for loopback and every address
/// of the machine.
fn node_addresses(bound: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    let machine = Hosts::local().ips;
    for addr in bound {
        if !addr.ip().is_unspecified() {
            all.push(*addr);
            continue;
        }
        let loopback = if addr.is_ipv4() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        };
        all.push(SocketAddr::new(loopback, addr.port()));
        let same_family = machine
            .iter()
            .filter(|ip| ip.is_ipv4() == addr.is_ipv4() && !ip.is_loopback());
        all.extend(same_family.map(|ip| SocketAddr::new(*ip, addr.port())));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_address_stands_for_loopback_first() {
        let all = node_addresses(&[
            "0.0.0.0:7000".parse().unwrap(),
            "192.0.2.1:7001".parse().unwrap(),
        ]);
        assert_eq!(all[0].to_string(), "127.0.0.1:7000");
        assert_eq!(all.last().unwrap().to_string(), "192.0.2.1:7001");
        assert!(all.iter().all(SocketAddr::is_ipv4));
    }
}
