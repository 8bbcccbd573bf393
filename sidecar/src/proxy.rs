//! One connection from accept to its end: the consumer's path, top to bottom.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keel_fabric::EndReason;
use keel_fabric::consumer::{ConsumerConfig, ConsumerFlow, FlowOptions, OpenError, Target};
use keel_fabric::link::Links;
use keel_fabric::wire::{Health, Protocol, RefuseCode};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::directory::{Candidate, Directory, PortKey};
use crate::endpoints::{Endpoints, Failure};
use crate::metrics::SidecarMetrics;
use crate::options::{AllOptions, ServiceOptions, Sticky};
use crate::parked::Parked;
use crate::pick::{Class, Here, Rules, Tried, pick};
use crate::reach::{Late, Race, reach};
use crate::spec::ServiceRef;
use crate::udp::MaxAssociations;

/// The pause before providers that could not be reached are tried once more; those that refused are not.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What was refused so long ago says nothing any more.
const OLD_NEWS: Duration = Duration::from_secs(1);

/// How long a provider may take to answer while another one could be asked: longer than a SYN that is sent twice takes. And
/// how long if not: one that lives has refused by then, as it dials for five seconds at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(1500), Duration::from_secs(6));

/// How long a client that spoke waits on for a provider that its router does not hear, while another one could be asked when
/// it comes again: a provider that only lost its way says so over another router meanwhile.
const SILENCE: Duration = Duration::from_secs(2);

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Who provides what.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// Connections to routers; `None` until there is an identity.
    pub(crate) links: watch::Receiver<Option<Links>>,
    /// What is said about single services.
    pub(crate) options: Arc<AllOptions>,
    /// Settings of the consumer's end of flows.
    pub(crate) consumer: ConsumerConfig,
    /// How long a connection waits for a provider.
    pub(crate) connect_timeout: Duration,
    /// Counters.
    pub(crate) metrics: Arc<SidecarMetrics>,
    /// What came of earlier opens.
    pub(crate) endpoints: Endpoints,
    /// Who waits for a provider.
    pub(crate) parked: Parked,
    /// How many UDP associations there may be.
    pub(crate) max_associations: MaxAssociations,
}

/// Why no provider took a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unserved {
    #[error("the sidecar has no identity yet")]
    NoIdentity,
    #[error("nobody provides it")]
    NoProvider,
    #[error("nobody provides it, and too many wait for that already")]
    Crowded,
    #[error("{0}")]
    Open(OpenError),
    #[error("no answer in time")]
    NoAnswer,
}

/// What a connection is for, and whose it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) target: &'a ServiceRef,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) client: IpAddr,
}

/// Carries one accepted connection: picks a provider, opens a flow, tries the next one if that one refuses or is gone, and
/// copies until both directions have ended. If nobody takes it the client gets an RST: at once when somebody refused, at
/// the connect timeout when nobody was there. Dropping the future resets the client.
pub(crate) async fn serve(
    proxy: &Proxy,
    stream: TcpStream,
    from: SocketAddr,
    target: &ServiceRef,
    port: u16,
) {
    proxy.metrics.connections_accepted.inc();
    let asked = (target.service.clone(), port);
    let mut flow = Box::new(ConsumerFlow::new(stream, asked, proxy.consumer.clone()));
    let wanted = Wanted {
        target,
        port,
        protocol: Protocol::Tcp,
        client: from.ip(),
    };
    // The end is logged and counted by the flow itself, with bytes, duration and reason.
    // Boxed: what opening needs is given back before the bytes are carried.
    match Box::pin(open(proxy, &mut flow, wanted)).await {
        Ok(late) => {
            let carried = async {
                flow.carry().await;
                proxy.metrics.connections_closed.inc();
            };
            tokio::join!(carried, late.settle(&proxy.endpoints));
        }
        Err(Unserved::Open(OpenError::ClientGone)) => {
            flow.reset();
            proxy.metrics.connections_closed.inc();
        }
        Err(why) => {
            proxy.metrics.connections_unserved.inc();
            tracing::debug!(service = %target, port, client = %from, "connection reset: {why}");
            flow.unserved(match why {
                Unserved::NoIdentity => EndReason::NoIdentity,
                Unserved::NoProvider | Unserved::Crowded => EndReason::NoProvider,
                Unserved::Open(_) | Unserved::NoAnswer => EndReason::NoAnswer,
            });
            proxy.metrics.connections_closed.inc();
        }
    }
}

/// Opens `flow` at one provider after the other until one takes it, or none does within the connect timeout.
///
/// Returns the routers that are still being dialled: they lost a race, but the next connection may find them reached.
pub(crate) async fn open(
    proxy: &Proxy,
    flow: &mut ConsumerFlow,
    wanted: Wanted<'_>,
) -> Result<Late, Unserved> {
    let mut opening = Opening::begin(proxy, flow, wanted).await?;
    loop {
        let Some(first) = opening.next() else {
            opening.wait(flow).await?;
            continue;
        };
        let Some(way) = opening.reach(flow, first).await? else {
            continue;
        };
        if opening.ask(flow, &way).await? {
            return Ok(opening.late);
        }
    }
}

/// The open of one connection.
struct Opening<'a> {
    proxy: &'a Proxy,
    wanted: Wanted<'a>,
    key: PortKey,
    options: ServiceOptions,
    rules: Rules,
    links: Links,
    deadline: Instant,
    directory: watch::Receiver<Arc<Directory>>,
    /// The directory when the last way was chosen.
    now: Arc<Directory>,
    tried: Tried,
    /// When the first of those that were tried was.
    round: Instant,
    asked_again: bool,
    refused: Option<OpenError>,
    unreachable: Option<OpenError>,
    late: Late,
}

impl<'a> Opening<'a> {
    /// Waits for an identity.
    async fn begin(
        proxy: &'a Proxy,
        flow: &mut ConsumerFlow,
        wanted: Wanted<'a>,
    ) -> Result<Self, Unserved> {
        let Wanted {
            target,
            port,
            protocol,
            client,
        } = wanted;
        let deadline = Instant::now() + proxy.connect_timeout;
        let links = tokio::select! {
            links = identified(proxy, deadline) => links?,
            gone = flow.gone() => return Err(Unserved::Open(gone)),
        };
        let options = proxy.options.of(&target.service, port);
        let mut directory = proxy.directory.clone();
        let now = directory.borrow_and_update().clone();
        Ok(Self {
            proxy,
            wanted,
            key: PortKey::new(target.service.clone(), port, protocol),
            rules: rules(&options, client),
            options,
            links,
            deadline,
            directory,
            now,
            tried: Tried::default(),
            round: Instant::now(),
            asked_again: false,
            refused: None,
            unreachable: None,
            late: Late::default(),
        })
    }

    /// The next way to try, with its class.
    fn next(&mut self) -> Option<(Candidate, Class)> {
        self.now = self.directory.borrow_and_update().clone();
        let (key, wanted, rules) = (&self.key, self.wanted, self.rules);
        next(self.proxy, &self.now, key, wanted, rules, &self.tried)
    }

    /// No way is left to try: waits until one may be.
    ///
    /// If somebody answered, the client hears of it at once, unless that was some time ago, while others kept silent: then
    /// who refused may say yes by now. If nobody did, one may still come.
    async fn wait(&mut self, flow: &mut ConsumerFlow) -> Result<(), Unserved> {
        if let Some(error) = self.refused.take() {
            if self.asked_again || self.round.elapsed() < OLD_NEWS {
                return Err(Unserved::Open(error));
            }
            self.tried = Tried::default();
            self.asked_again = true;
            return Ok(());
        }
        let Some(_place) = self.proxy.parked.enter(&self.key) else {
            self.proxy.metrics.dns.limit_hit("parked");
            let why = self.unreachable.take();
            return Err(why.map_or(Unserved::Crowded, Unserved::Open));
        };
        let pause = RETRY_PAUSE.mul_f64(rand::random_range(0.75..1.25));
        let (directory, tried) = (&mut self.directory, &self.tried);
        let again = async {
            tokio::select! {
                changed = directory.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = sleep(pause), if !tried.is_empty() => {}
            }
        };
        let waited = tokio::select! {
            waited = timeout_at(self.deadline, again) => waited,
            gone = flow.gone() => return Err(Unserved::Open(gone)),
        };
        if waited.is_err() {
            let why = self.unreachable.take();
            return Err(why.map_or(Unserved::NoProvider, Unserved::Open));
        }
        (self.tried, self.round) = (Tried::default(), Instant::now());
        Ok(())
    }

    /// Connects to the router of `first`, or of another way beside it; `None` if none of them is reached.
    async fn reach(
        &mut self,
        flow: &mut ConsumerFlow,
        first: (Candidate, Class),
    ) -> Result<Option<Candidate>, Unserved> {
        let race = Race {
            links: &self.links,
            endpoints: &self.proxy.endpoints,
            directory: &mut self.directory,
            deadline: self.deadline,
            late: &mut self.late,
        };
        let (proxy, key, wanted, rules) = (self.proxy, &self.key, self.wanted, self.rules);
        let another = |now: &Directory, tried: &Tried| next(proxy, now, key, wanted, rules, tried);
        let reached = tokio::select! {
            reached = reach(race, first, &mut self.tried, another) => reached,
            gone = flow.gone() => return Err(Unserved::Open(gone)),
        };
        match reached {
            Ok(way) => Ok(Some(way)),
            Err(error) => {
                let Wanted { target, port, .. } = wanted;
                tracing::debug!(service = %target, port, %error, "no router reached, trying another way");
                let error = OpenError::NoRouter(error);
                if Instant::now() >= self.deadline {
                    // What is still being dialled is not known to be away: it would be tried again without end.
                    return Err(Unserved::Open(error));
                }
                self.unreachable = Some(error);
                Ok(None)
            }
        }
    }

    /// Asks the provider of `way`; whether it took the flow, and if not, another one may.
    async fn ask(&mut self, flow: &mut ConsumerFlow, way: &Candidate) -> Result<bool, Unserved> {
        let (proxy, key) = (self.proxy, &self.key);
        let another = another(&self.now, self.wanted, way, &self.tried);
        let one = Target {
            service: self.wanted.target.service.clone(),
            port: self.wanted.port,
            provider: way.provider.clone(),
            router: (*way.router).clone(),
            options: FlowOptions {
                patience: Some(patience(proxy, key, way, another)),
                silence: another.then_some(SILENCE),
                ..self.options.flow()
            },
        };
        let asking = proxy.endpoints.asking(key, way);
        let asked = Instant::now();
        let outcome = timeout_at(self.deadline, flow.open(&self.links, &one)).await;
        drop(asking);
        note(proxy, key, way, asked, outcome.as_ref().ok());
        let error = match outcome {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(error)) if error.elsewhere() => error,
            Ok(Err(error)) => return Err(Unserved::Open(error)),
            Err(_) => {
                let why = self.unreachable.take();
                return Err(why.map_or(Unserved::NoAnswer, Unserved::Open));
            }
        };
        let Wanted { target, port, .. } = self.wanted;
        tracing::debug!(service = %target, port, provider = %one.provider, router = %one.router.node, %error, "trying the next provider");
        if backend_failed(&error).is_some() {
            // It says so over every router.
            self.tried.provider(&way.provider);
        } else {
            self.tried.way(way);
        }
        if is_answer(&error) {
            self.refused = Some(error);
        } else {
            self.unreachable = Some(error);
        }
        Ok(false)
    }
}

/// What this sidecar was told of the choice, for a connection of `client`.
fn rules(options: &ServiceOptions, client: IpAddr) -> Rules {
    Rules {
        weight: options.weight,
        priority: options.priority,
        sticky: options.sticky.map(|Sticky::Client| client),
    }
}

/// The next way to try, with its class.
fn next(
    proxy: &Proxy,
    directory: &Directory,
    key: &PortKey,
    wanted: Wanted<'_>,
    rules: Rules,
    tried: &Tried,
) -> Option<(Candidate, Class)> {
    let here = Here {
        node: directory.own_node(),
        cluster: directory.own_cluster(),
    };
    let ways = directory.candidates(wanted.target, wanted.port, wanted.protocol);
    let seen = proxy.endpoints.of(key);
    let (way, class) = pick(ways, tried, here, rules, &seen, &mut rand::rng())?;
    Some((way.clone(), class))
}

/// Whether another provider than that of `way` could be asked.
fn another(directory: &Directory, wanted: Wanted<'_>, way: &Candidate, tried: &Tried) -> bool {
    directory
        .candidates(wanted.target, wanted.port, wanted.protocol)
        .any(|other| {
            let works = other.offer.health != Health::Unhealthy && !other.draining;
            works && other.provider != way.provider && !tried.contains(other)
        })
}

/// How long the provider of `way` has for its answer, while another one could be asked or not.
fn patience(proxy: &Proxy, key: &PortKey, way: &Candidate, another: bool) -> Duration {
    if another {
        let usual = proxy.endpoints.of(key).usual(way).unwrap_or_default();
        (usual * 4).clamp(PATIENCE.0, PATIENCE.1)
    } else {
        PATIENCE.1
    }
}

/// Remembers what came of an open, for the choices after this one. `None`: nothing came of it.
fn note(
    proxy: &Proxy,
    key: &PortKey,
    way: &Candidate,
    asked: Instant,
    outcome: Option<&Result<(), OpenError>>,
) {
    let router = &way.router.node;
    let failure = match outcome {
        Some(Ok(())) => {
            let endpoints = &proxy.endpoints;
            return endpoints.answered(key, &way.provider, router, asked.elapsed());
        }
        Some(Err(OpenError::NoRouter(_))) => return proxy.endpoints.away(router),
        Some(Err(OpenError::Refused { code, .. })) if *code == RefuseCode::Draining => {
            return proxy.endpoints.away(router);
        }
        Some(Err(error)) => backend_failed(error),
        // The client's time was over: that says something of a provider which had a good part of it.
        None => {
            let enough = PATIENCE.0.min(proxy.connect_timeout / 2);
            (asked.elapsed() >= enough).then_some(Failure::Silent)
        }
    };
    let Some(failure) = failure else { return };
    if let Some(pause) = proxy.endpoints.failed(key, &way.provider, asked, failure) {
        proxy.metrics.ejections.inc();
        tracing::warn!(service = %key.service, port = key.port, provider = %way.provider, ?pause, "provider fails and is tried last");
    }
}

/// How the backend failed, if it did.
fn backend_failed(error: &OpenError) -> Option<Failure> {
    match error {
        OpenError::Refused { code, .. } => match code {
            RefuseCode::BackendRefused | RefuseCode::BackendUnreachable => Some(Failure::Refused),
            RefuseCode::BackendTimeout => Some(Failure::Silent),
            _ => None,
        },
        OpenError::Lost | OpenError::Silent | OpenError::Unanswered => Some(Failure::Silent),
        _ => None,
    }
}

/// Whether somebody said no for good. A backend that says nothing may still do so until the connection's own deadline, and
/// a provider that is not where the directory has it, or stops, may be just about to come back.
fn is_answer(error: &OpenError) -> bool {
    let OpenError::Refused { code, .. } = error else {
        return false;
    };
    !matches!(
        code,
        RefuseCode::BackendTimeout
            | RefuseCode::NoProvider
            | RefuseCode::UnknownService
            | RefuseCode::Draining
    )
}

/// The connections to routers, once there is an identity to make them with.
async fn identified(proxy: &Proxy, deadline: Instant) -> Result<Links, Unserved> {
    let mut links = proxy.links.clone();
    match timeout_at(deadline, links.wait_for(Option::is_some)).await {
        Ok(Ok(links)) => links.clone().ok_or(Unserved::NoIdentity),
        _ => Err(Unserved::NoIdentity),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_no_for_good_is_an_answer() {
        let refused = |code| OpenError::Refused {
            code,
            text: String::new(),
        };
        for (code, answer) in [
            (RefuseCode::BackendRefused, true),
            (RefuseCode::Limit, true),
            (RefuseCode::BackendTimeout, false),
            (RefuseCode::NoProvider, false),
            (RefuseCode::UnknownService, false),
            (RefuseCode::Draining, false),
        ] {
            assert_eq!(is_answer(&refused(code)), answer, "{code}");
        }
    }
}
