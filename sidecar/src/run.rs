//! The running sidecar: what is bound at the start, what runs until the stop, in which order it ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keel_certs::PodName;
use keel_fabric::Grace;
use keel_fabric::consumer::ConsumerConfig;
use keel_fabric::limits::Limits;
use keel_fabric::link::Links;
use keel_fabric::memory::Memory;
use keel_fabric::metrics::FabricMetrics;
use keel_fabric::pace::Paces;
use keel_fabric::provider::Entrances;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Admin, NotReady, Ready};
use crate::carrying::Carrying;
use crate::config::SidecarConfig;
use crate::directory::Directory;
use crate::discovery::Known;
use crate::dns::DnsSockets;
use crate::dns::forward::Forwarder;
use crate::dns::handler::{DnsView, Handler, Others};
use crate::dns::view::NameSources;
use crate::endpoints::Endpoints;
use crate::error::{RunError, StartError};
use crate::following::Following;
use crate::identity::{Found, Lookup};
use crate::listener::{Listeners, MappingState};
use crate::mapper::Mapper;
use crate::metrics::SidecarMetrics;
use crate::options::AllOptions;
use crate::parked::Parked;
use crate::proxy::Proxy;
use crate::remember::{self, Sources};
use crate::snapshot::{Snapshot, SnapshotFiles};
use crate::spec::{MappedService, PublishedService, ServiceRef};
use crate::start::{self, Elsewhere};
use crate::state::{self, StateDir};
use crate::table::table;
use crate::unprovided;
use crate::vip::VipTable;
use crate::ways::DirectoryWays;

/// How long routers may take to hear that we go.
const GOODBYE: Duration = Duration::from_secs(1);

/// A sidecar with its sockets bound. Nothing but its listeners works before [`Sidecar::run`].
#[derive(Debug)]
pub struct Sidecar {
    pod: PodName,
    control: Handle,
    stop: CancellationToken,
    /// Held until the end: nobody else may use the directory.
    state: Option<StateDir>,
    dns: Option<(DnsSockets, Handler, Elsewhere)>,
    probing: Option<Forwarder>,
    dns_addr: Option<SocketAddr>,
    admin: Admin,
    metrics_addr: SocketAddr,
    ready: Ready,
    states: watch::Receiver<Arc<Vec<MappingState>>>,
    parts: Parts,
}

/// What the tasks of a running sidecar share.
#[derive(Debug)]
struct Parts {
    entrances: Entrances,
    listeners: Listeners,
    mapper: Mapper,
    names: NameSources,
    lookup: Lookup,
    published: Vec<PublishedService>,
    options: Arc<AllOptions>,
    grace: Grace,
    paces: Arc<Paces>,
    memory: Arc<Memory>,
    limits: Limits,
    files: Option<SnapshotFiles>,
    snapshot: Option<Snapshot>,
    metrics: Arc<SidecarMetrics>,
    fabric: Arc<FabricMetrics>,
    view: watch::Sender<DnsView>,
    directory: watch::Sender<Arc<Directory>>,
    known: watch::Sender<Known>,
    links: watch::Sender<Option<Links>>,
    waiting: (NotReady, NotReady),
}

impl Sidecar {
    /// Binds everything: state directory, DNS, metrics, and the listeners whose ports are known. Must be called inside the
    /// runtime of the data path, which is best a current-thread one; DNS, metrics and discovery run on `control`.
    ///
    /// `registry` may hold families of the caller; it is served at `/metrics`.
    ///
    /// # Errors
    /// [`StartError`]: something that the user asked for is not possible. What a default asks for gives way instead.
    pub async fn start(
        config: SidecarConfig,
        mut registry: Registry,
        stop: CancellationToken,
        control: Handle,
    ) -> Result<Self, StartError> {
        let home = state::find(
            config.state_dir.as_deref(),
            &config.state_root,
            &config.namespace,
            config.pod.as_ref(),
            &config.pod_base,
            &purpose(&config),
        )?;
        let state_path = home.dir.as_ref().map(StateDir::path);
        let (files, snapshot) = state_path
            .map(start::read_snapshot)
            .map_or((None, None), |(files, snapshot)| (Some(files), snapshot));
        let targets = mapped_services(&config.mapped);
        let kept = snapshot
            .as_ref()
            .map(|snapshot| snapshot.addresses.clone())
            .unwrap_or_default();
        let vips = VipTable::assign(config.ip_range, &targets, &kept)?;

        let metrics = SidecarMetrics::register(&mut registry);
        let fabric = FabricMetrics::register(&mut registry);
        let stop = stop.child_token();
        let ready = Ready::default();
        let waiting = (ready.wait_for("identity"), ready.wait_for("routers"));
        let admin = start::bind_admin(config.metrics, registry, ready.clone(), &control).await?;
        let metrics_addr = admin.local_addr();

        let conf = start::read_resolv_conf(&config.resolv_conf);
        let names = NameSources {
            mapped: config.mapped.clone(),
            namespace: config.namespace.clone(),
            zones: config.dns_zones.clone(),
            search: conf.search.clone(),
        };
        let view = watch::Sender::new(DnsView {
            names: Arc::new(names.table(vips.addresses()).0),
            synced: false,
        });
        let mut probing = None;
        let dns = if config.mapped.is_empty() {
            None
        } else {
            let (sockets, why) = start::bind_dns(config.dns, &control).await?;
            let others = start::others(&config, &conf, sockets.address())?;
            if let Others::Forward(forwarder) = &others {
                probing = Some(forwarder.clone());
            }
            Some((
                sockets,
                Handler::new(view.subscribe(), others, metrics.dns.clone()),
                why,
            ))
        };

        let (directory, known, links) = (
            watch::Sender::default(),
            watch::Sender::default(),
            watch::Sender::new(None),
        );
        let options = Arc::new(config.options.clone());
        let paces = Paces::new(options.limit, fabric.clone());
        let memory = Memory::new(config.limits.memory, fabric.clone());
        let proxy = Proxy {
            options: Arc::clone(&options),
            directory: directory.subscribe(),
            links: links.subscribe(),
            consumer: ConsumerConfig {
                paces: Arc::clone(&paces),
                memory: Arc::clone(&memory),
                limits: config.limits.flow,
                metrics: fabric.clone(),
                ways: Arc::new(DirectoryWays {
                    cluster: None,
                    directory: directory.subscribe(),
                    links: links.subscribe(),
                }),
            },
            connect_timeout: config.connect_timeout,
            metrics: metrics.clone(),
            endpoints: Endpoints::default(),
            parked: Parked::new(config.limits.consumer.waiting),
            max_associations: config.max_associations,
        };
        let most = config.limits.consumer.connections;
        let (proxy, stopped) = (Arc::new(proxy), stop.clone());
        let mut listeners = Listeners::new(proxy, most, vips, stopped, config.stop_grace.clone());
        let mut mapper = Mapper::new(&config.mapped);
        if let Some(Snapshot {
            origin: Some(origin),
            routers,
            ..
        }) = &snapshot
        {
            directory.send_replace(Arc::new(Directory::build(
                &origin.node,
                routers.iter().map(|router| &**router),
            )));
        }
        listeners.reconcile(&mapper.wanted(&directory.borrow()));
        let origin = snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.origin.clone());
        let lookup = Lookup::new(&config, home.pod.clone(), state_path, origin);
        Ok(Self {
            pod: home.pod,
            control,
            stop,
            dns_addr: dns.as_ref().map(|(sockets, ..)| sockets.address()),
            dns,
            probing,
            admin,
            metrics_addr,
            ready,
            states: listeners.states(),
            state: home.dir,
            parts: Parts {
                entrances: listeners.entrances(),
                listeners,
                mapper,
                names,
                lookup,
                published: config.published,
                options,
                grace: config.stop_grace,
                paces,
                memory,
                limits: config.limits,
                files,
                snapshot,
                metrics,
                fabric,
                view,
                directory,
                known,
                links,
                waiting,
            },
        })
    }

    /// The name of the pod, or the one that was made up.
    pub fn pod(&self) -> &PodName {
        &self.pod
    }

    /// Where DNS listens; `None` if nothing is mapped.
    pub fn dns_addr(&self) -> Option<SocketAddr> {
        self.dns_addr
    }

    /// Where metrics and health are served.
    pub fn metrics_addr(&self) -> SocketAddr {
        self.metrics_addr
    }

    /// What readiness still waits for.
    pub fn ready(&self) -> Ready {
        self.ready.clone()
    }

    /// The mapped services with their addresses and ports, now and at every change.
    pub fn mappings(&self) -> watch::Receiver<Arc<Vec<MappingState>>> {
        self.states.clone()
    }

    /// Serves until the stop that was given at the start, then ends in order: listeners close, live connections have their
    /// grace, routers are told, and everything is joined.
    ///
    /// # Errors
    /// [`RunError`] if it ended by itself.
    pub async fn run(self) -> Result<(), RunError> {
        let Self {
            control,
            stop,
            dns,
            probing,
            admin,
            states,
            parts,
            state,
            ready,
            ..
        } = self;
        let (identity, found) = watch::channel(None::<Found>);
        let origin = watch::Sender::new(
            parts
                .snapshot
                .as_ref()
                .and_then(|snapshot| snapshot.origin.clone()),
        );
        let mut tasks: JoinSet<Result<(), RunError>> = JoinSet::new();
        let mut background =
            |work: std::pin::Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>>| {
                tasks.spawn_on(work, &control);
            };

        background(unfailing(admin.run(stop.clone())));
        if let Some(forwarder) = probing {
            // While it runs the server does too, which is what sees the probes that come back.
            let stop = stop.clone();
            background(unfailing(async move {
                stop.run_until_cancelled_owned(forwarder.probe()).await;
            }));
        }
        if let Some((sockets, handler, why)) = dns {
            // At once, without waiting for anybody: addresses are known, and ports that come later have their own lines.
            say_table(&parts.names, &states.borrow(), (sockets.address(), why));
            background(unfailing(sockets.serve(handler, stop.clone())));
            background(unfailing(parts.names.clone().follow(
                states.clone(),
                parts.known.subscribe(),
                parts.view,
                stop.clone(),
            )));
        }
        if let Some(files) = parts.files {
            let sources = Sources {
                directory: parts.directory.subscribe(),
                known: parts.known.subscribe(),
                states: states.clone(),
                origin: origin.subscribe(),
            };
            let before = parts.snapshot.clone().filter(|snapshot| snapshot.whole);
            background(unfailing(remember::keep(
                files,
                sources,
                before,
                stop.clone(),
            )));
        }
        background(unfailing(unprovided::say(
            parts.names.mapped.clone(),
            parts.known.subscribe(),
            parts.directory.subscribe(),
            stop.clone(),
        )));
        let directory = parts.directory.subscribe();
        let links = parts.links.subscribe();
        let following = Following {
            lookup: parts.lookup,
            identity,
            origin,
            snapshot: parts.snapshot,
            directory: parts.directory,
            known: parts.known,
            metrics: parts.metrics,
            mapped: mapped_services(&parts.names.mapped),
            waiting: parts.waiting,
        };
        background(Box::pin(following.run(stop.clone())));

        // The data path, on this runtime.
        let mut data: JoinSet<Result<(), RunError>> = JoinSet::new();
        let (mapper, listeners) = (parts.mapper, parts.listeners);
        let mapping = (directory.clone(), ready, stop.clone());
        data.spawn(async move {
            mapper
                .run(listeners, mapping.0, mapping.1, mapping.2)
                .await
                .closed()
                .await;
            Ok(())
        });
        let carrying = Carrying {
            published: parts.published,
            options: parts.options,
            grace: parts.grace,
            paces: parts.paces,
            memory: parts.memory,
            entrances: parts.entrances,
            limits: parts.limits,
            fabric: parts.fabric,
            links: parts.links,
            directory,
            found,
        };
        data.spawn(carrying.run(stop.clone()));

        let mut outcome = Ok(());
        loop {
            let ended = tokio::select! {
                Some(ended) = data.join_next() => ended,
                Some(ended) = tasks.join_next() => ended,
                else => break,
            };
            let ended = ended.unwrap_or_else(|error| Err(RunError::Task(error)));
            if let Err(error) = ended {
                // The first failure is the reason; what follows from it is not.
                stop.cancel();
                outcome = outcome.and(Err(error));
            }
        }
        // Nobody uses them any more: say so to the routers instead of letting them time out.
        let links = links.borrow().clone();
        if let Some(links) = links {
            let _ = tokio::time::timeout(GOODBYE, links.close("the sidecar stops")).await;
        }
        drop(state);
        outcome
    }
}

/// What a sidecar is for, as text: by it a start without a name finds the directory of its last run.
fn purpose(config: &SidecarConfig) -> String {
    let mapped = config.mapped.iter().map(|one| one.target.to_string());
    let published = config
        .published
        .iter()
        .map(|one| format!("{}=", one.target));
    mapped.chain(published).collect::<Vec<_>>().join(",")
}

fn mapped_services(mapped: &[MappedService]) -> Vec<ServiceRef> {
    mapped.iter().map(|one| one.target.clone()).collect()
}

fn unfailing(
    work: impl Future<Output = ()> + Send + 'static,
) -> std::pin::Pin<Box<dyn Future<Output = Result<(), RunError>> + Send>> {
    Box::pin(async move {
        work.await;
        Ok(())
    })
}

/// Prints the table of names, addresses and ports.
fn say_table(names: &NameSources, states: &[MappingState], dns: (SocketAddr, Elsewhere)) {
    let addresses = states
        .iter()
        .map(|state| (state.target.clone(), state.address))
        .collect();
    tracing::info!("{}", table(&names.table(&addresses).0, states, dns));
}
