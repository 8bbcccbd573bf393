//! The consumer's end of a flow: from an accepted TCP connection to a provider.

mod answer;
mod error;

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use keel_certs::{ServiceId, Subject};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::end::{EndReason, FlowEnd, Route, Told, tell};
use crate::flow::{Flow, FlowLimits, FlowStats, State};
use crate::leg::Leg;
use crate::legs::{Current, Found, Seek, Sought, Ways, Why, sought, stirred, why};
use crate::link::{LinkError, Links, RouterPeer};
use crate::memory::{Buffers, Memory};
use crate::meter::FlowMeter;
use crate::metrics::{FabricMetrics, RoleLabels, Side};
pub use crate::options::FlowOptions;
use crate::options::MAX_RESUME_WINDOW;
use crate::pace::Paces;
use crate::pump::tcp::{self, Socket};
use crate::pump::{Event, Pump};
use crate::series::At;
use crate::udp;
use crate::wire::{
    AbortCode, Decoder, FlowId, Generation, Open, Protocol, RefuseCode, Secret, VERSION,
};

pub use error::OpenError;

/// How long an association looks for its provider while another one is there. It ends then, and the client's next packet
/// begins a new one: nothing of it is kept, but its backend sees another address.
const ANEW: Duration = Duration::from_secs(5);

/// What a consumer's end needs besides its socket.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Buffers and resume window.
    pub limits: FlowLimits,
    /// Where flows are counted.
    pub metrics: Arc<FabricMetrics>,
    /// Bandwidth.
    pub paces: Arc<Paces>,
    /// The memory of the process.
    pub memory: Arc<Memory>,
    /// The routers over which a flow may go on, besides the one that it was opened at.
    pub ways: Arc<dyn Ways>,
}

/// Where to open a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: ServiceId,
    /// Its port.
    pub port: u16,
    /// The provider that was chosen.
    pub provider: Subject,
    /// A router that lists the provider.
    pub router: RouterPeer,
    /// What the consumer says about the service.
    pub options: FlowOptions,
}

/// One accepted TCP connection, or the UDP association of one client, on its way to a provider.
///
/// Dropped before its end, the application sees an RST; that of an association sees nothing.
pub struct ConsumerFlow {
    tcp: Option<Socket>,
    udp: Option<udp::Client>,
    protocol: Protocol,
    client: Option<SocketAddr>,
    /// What the application connected to.
    service: (ServiceId, u16),
    config: ConsumerConfig,
    started: Instant,
    pump: Option<Pump>,
    links: Option<Links>,
    target: Option<Target>,
    routers: Route,
    failed: Option<EndReason>,
    /// The newest leg's link.
    current: Option<Current>,
    /// The search for another leg; whoever waits for events may stop and come back.
    seek: Option<Box<Seek>>,
    told: bool,
}

impl fmt::Debug for ConsumerFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerFlow")
            .field("client", &self.client)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl ConsumerFlow {
    /// Takes over a socket that an application opened towards `service` and port. Nothing is read from it before a flow
    /// is opened.
    #[must_use]
    pub fn new(tcp: TcpStream, service: (ServiceId, u16), config: ConsumerConfig) -> Self {
        let client = tcp.peer_addr().ok();
        if let Err(error) = tcp::prepare(&tcp) {
            // The socket is dead already; the flow will see that when it reads.
            tracing::debug!(%error, "socket options");
        }
        let mut flow = Self::empty(Protocol::Tcp, client, service, config);
        flow.tcp = Some(Socket::new(tcp));
        flow
    }

    /// Takes the association of one client of `service` and port. Its packets wait where they are before a flow is opened.
    #[must_use]
    pub fn udp(client: udp::Client, service: (ServiceId, u16), config: ConsumerConfig) -> Self {
        let mut flow = Self::empty(Protocol::Udp, Some(client.address), service, config);
        flow.udp = Some(client);
        flow
    }

    fn empty(
        protocol: Protocol,
        client: Option<SocketAddr>,
        service: (ServiceId, u16),
        config: ConsumerConfig,
    ) -> Self {
        config
            .metrics
            .flows_started
            .get_or_create(&RoleLabels {
                role: Side::consumer,
            })
            .inc();
        Self {
            tcp: None,
            udp: None,
            protocol,
            client,
            service,
            config,
            started: Instant::now(),
            pump: None,
            links: None,
            target: None,
            routers: Route::default(),
            failed: None,
            current: None,
            seek: None,
            told: false,
        }
    }

    /// Opens the flow at `target`: sends OPEN with the bytes that are already there and waits for the answer.
    ///
    /// After an error for which [`OpenError::elsewhere`] is true, it may be called again with another target. A leg that
    /// is lost before the answer is replaced, and the open repeated under the same id at the same provider. If the first one
    /// never arrived there, it is asked under another id; if its process is another one by now, the flow is cut. There is no
    /// deadline here: drop the future and [`reset`](Self::reset) when the application has waited long enough.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(&mut self, links: &Links, target: &Target) -> Result<(), OpenError> {
        self.target = Some(target.clone());
        self.links = Some(links.clone());
        self.failed = None;
        let mut router = target.router.clone();
        let result = loop {
            match self.try_open(links, target, &router).await {
                Err(OpenError::Refused {
                    code: RefuseCode::NeverArrived,
                    ..
                }) if self.is_repeated() => {
                    if let Some(current) = &self.current {
                        router = current.router().clone();
                    }
                }
                result => break result,
            }
        };
        if let Err(error) = &result {
            self.failed = Some(error.end());
            // It waits for another provider, perhaps, and rides on no link meanwhile.
            self.current = None;
        }
        result
    }

    /// Whether more than the first leg has asked.
    fn is_repeated(&self) -> bool {
        let generation = self.pump.as_ref().map(|pump| pump.flow().generation());
        generation.is_some_and(|generation| generation > Generation::FIRST)
    }

    async fn try_open(
        &mut self,
        links: &Links,
        target: &Target,
        router: &RouterPeer,
    ) -> Result<(), OpenError> {
        if self.pump.is_none()
            && let Err(why) = self.config.memory.admit(None)
        {
            return Err(OpenError::Refused {
                code: RefuseCode::Limit,
                text: why.to_owned(),
            });
        }
        let link = links.link(router).await?;
        let (send, recv) = link.open_leg().await.map_err(|lost| LinkError::Lost {
            node: router.node.clone(),
            lost,
        })?;
        let mut open = open_of(target);
        open.protocol = self.protocol;
        if self.protocol == Protocol::Udp {
            open.max_datagram = send.datagrams().max_packet();
        }
        self.routers.note(&router.node);
        let meter = FlowMeter::new(
            &self.config.metrics,
            Side::consumer,
            At(&target.service, target.port, self.protocol),
            &target.provider,
            None,
        );
        let pump = match &mut self.pump {
            Some(pump) => {
                if !pump.flow_mut().restart(open) {
                    return Err(OpenError::Lost);
                }
                pump.restarted(meter);
                pump
            }
            None => {
                let limits = limits_of(target, self.config.limits);
                let flow = Flow::initiate(open, limits);
                let buffers = Buffers::new(Arc::clone(&self.config.memory), None, limits);
                let what = (target.service.clone(), target.port, self.protocol);
                let paces = &self.config.paces;
                let pace = paces.pace(what, target.options.limit, Side::consumer);
                let mut pump = Pump::new(
                    flow,
                    self.tcp.take(),
                    AbortCode::Reset,
                    buffers,
                    meter,
                    pace,
                );
                if let Some(client) = self.udp.take() {
                    let metrics = Arc::clone(&self.config.metrics);
                    let bounds = (target.options.idle_timeout, limits);
                    pump.set_udp(udp::End::client(client, bounds, metrics));
                }
                self.pump.insert(pump)
            }
        };
        pump.flow_mut().set_patience(link.patience());
        pump.attach(Leg::new(Generation::FIRST, send, recv, Decoder::new()));
        self.seek = None;
        self.current = Some(Current::new(link, router.clone()));
        self.answer(&target.options).await
    }

    /// The next event of the pump; a leg that is wanted is looked for meanwhile. `None`: nothing was opened.
    async fn next_event(&mut self) -> Option<Event> {
        loop {
            self.reconsider();
            let (pump, seek, current) = (self.pump.as_mut()?, &mut self.seek, &mut self.current);
            tokio::select! {
                // The link may have been heard again just before a stream for another leg is there.
                biased;
                () = stirred(current) => {}
                event = pump.event() => if event != Event::Legs { return Some(event) },
                sought = sought(seek) => match sought {
                    Sought::Found(found) => self.attach(found),
                    Sought::Stuck(stuck) => if let Some(current) = current {
                        current.set_stuck(stuck);
                    },
                },
            }
        }
    }

    /// Begins to look for another leg, or stops: after a loss, and before the old leg is lost if it should be left. The old
    /// one carries on until another one is really there.
    fn reconsider(&mut self) {
        let (Some(pump), Some(links), Some(target)) = (&mut self.pump, &self.links, &self.target)
        else {
            return;
        };
        if self.protocol == Protocol::Udp
            && matches!(pump.flow().state(), State::Detached { .. })
            && (self.config.ways).another(&target.service, target.port, &target.provider)
        {
            pump.flow_mut().hurry(Instant::now() + ANEW);
        }
        let flow = pump.flow();
        let why = why(flow, self.current.as_ref());
        let wanted = flow.wants_leg() || (why.is_some() && flow.may_move());
        if !wanted {
            if let Some(seek) = &mut self.seek {
                seek.stop();
            }
            if let Some(current) = &mut self.current {
                current.set_stuck(false);
            }
            if !matches!(flow.state(), State::Detached { .. }) {
                self.seek = None;
            }
            return;
        }
        let resumes = flow.stats().resumes;
        self.seek.take_if(|seek| seek.resumes() != resumes);
        let crowd = self.current.as_ref().map_or(1, Current::crowd);
        let mut lost = false;
        let last = match &mut self.current {
            Some(current) => {
                lost = !flow.has_leg() && current.leg_lost();
                current.router()
            }
            None => &target.router,
        };
        let seek = self.seek.get_or_insert_with(|| {
            let what = (target.service.clone(), target.port, target.provider.clone());
            let ways = Arc::clone(&self.config.ways);
            let metrics = Arc::clone(&self.config.metrics);
            let (links, last) = (links.clone(), last.clone());
            Box::new(Seek::new(links, ways, metrics, what, last, resumes))
        });
        if !seek.is_active() || lost {
            seek.begin(last, why.unwrap_or(Why::LinkLost), crowd);
        }
    }

    /// Goes on over a new leg; fences the old one.
    fn attach(&mut self, found: Found) {
        let Found {
            link,
            router,
            send,
            recv,
        } = found;
        let Some(pump) = &mut self.pump else { return };
        if let Some(generation) = pump.flow_mut().resume(Instant::now()) {
            pump.flow_mut().set_patience(link.patience());
            pump.attach(Leg::new(generation, send, recv, Decoder::new()));
            self.routers.note(&router.node);
            self.current = Some(Current::new(link, router));
        }
    }

    /// Waits until the application has reset its connection, or it has to go to make room, while no open runs. Its end of file
    /// is none: it may still want an answer. Cancel safe.
    pub async fn gone(&mut self) -> OpenError {
        let why = poll_fn(|cx| {
            if self.pump.as_ref().is_some_and(|pump| pump.poll_cut(cx)) {
                return Poll::Ready(OpenError::Shed);
            }
            let failed = match (&mut self.tcp, &mut self.pump) {
                (Some(socket), _) => socket.poll_failed(cx),
                (None, Some(pump)) => pump.poll_failed(cx),
                // A client of UDP says nothing when it goes.
                (None, None) if self.udp.is_some() => Poll::Pending,
                (None, None) => Poll::Ready(()),
            };
            failed.map(|()| OpenError::ClientGone)
        })
        .await;
        self.failed = Some(why.end());
        why
    }

    /// Carries the bytes until the flow is over. Legs that are lost are replaced, at the same router or at another one.
    ///
    /// Boxed: an argument of a future takes its room twice, for as long as that lives.
    pub fn carry(self: Box<Self>) -> impl Future<Output = FlowEnd> + Send {
        let mut flow = self;
        async move {
            while !matches!(flow.next_event().await, Some(Event::Over) | None) {}
            let reason = flow.pump.as_ref().map_or(EndReason::NoAnswer, |pump| {
                EndReason::of(pump.flow().state())
            });
            flow.tell(reason)
        }
    }

    /// Gives the application an RST; a provider that was asked is told.
    pub fn reset(mut self) -> FlowEnd {
        self.cut()
    }

    /// Gives the application an RST because nobody could be asked, and says why.
    pub fn unserved(mut self, why: EndReason) -> FlowEnd {
        self.failed.get_or_insert(why);
        self.cut()
    }

    fn cut(&mut self) -> FlowEnd {
        let reason = self.failed.unwrap_or_else(|| match &self.pump {
            Some(pump) => EndReason::of(pump.flow().state()),
            None => EndReason::NoAnswer,
        });
        if let Some(pump) = &mut self.pump {
            let code = match reason {
                EndReason::NoAnswer | EndReason::ProviderSilent => AbortCode::Limit,
                EndReason::Aborted(code) => code,
                _ => AbortCode::Shutdown,
            };
            pump.abort(code);
            if let Some(socket) = pump.take_tcp() {
                drop(socket);
            }
        }
        if let Some(socket) = self.tcp.take() {
            drop(socket);
        }
        self.tell(reason)
    }

    fn tell(&mut self, reason: EndReason) -> FlowEnd {
        self.told = true;
        let stats = self.pump.as_ref().map_or(FlowStats::default(), Pump::stats);
        let stalls = self
            .pump
            .as_mut()
            .map_or((0, Duration::ZERO), |pump| pump.meter().stalls());
        let lasted = self.started.elapsed();
        let end = FlowEnd::new(Side::consumer, reason, stats, stalls, lasted);
        let none: &(dyn fmt::Display + Sync) = &"";
        let told = Told {
            flow: self.pump.as_ref().map(|pump| pump.flow().id()),
            side: Side::consumer,
            peer: self.client.as_ref().map_or(none, |client| client),
            service: At(&self.service.0, self.service.1, self.protocol),
            provider: self.target.as_ref().map_or(none, |target| &target.provider),
            routers: &self.routers,
        };
        let meter = self.pump.as_mut().map(Pump::meter);
        tell(&told, &end, &self.config.metrics, meter);
        end
    }
}

impl Drop for ConsumerFlow {
    fn drop(&mut self) {
        if !self.told {
            self.cut();
        }
    }
}

fn open_of(target: &Target) -> Open {
    Open {
        version: VERSION,
        flow: FlowId::random(),
        generation: Generation::FIRST,
        secret: Secret::random(),
        service: target.service.clone(),
        port: target.port,
        protocol: Protocol::Tcp,
        provider: target.provider.clone(),
        limit: 0,
        max_datagram: 0,
        hops: 0,
        flags: 0,
        from: None,
        window: None,
        rest: bytes::Bytes::new(),
    }
}

fn limits_of(target: &Target, limits: FlowLimits) -> FlowLimits {
    let own = target.options.resume_window;
    FlowLimits {
        resume_window: own.map_or(limits.resume_window, |own| own.min(MAX_RESUME_WINDOW)),
        ..limits
    }
}
