//! One end of a flow as a state machine without IO: bytes, frames and times in; bytes, frames and times out.
//!
//! The flow lives in its two ends. [`Flow::initiate`] makes the consumer's end, [`Flow::terminate`] the provider's.
//! Routers in between splice streams and know nothing of this module.
//!
//! # How a driver uses it
//!
//! After *anything* went in (any call that takes `&mut self`), the driver does the outputs again until nothing moves:
//!
//! 1. [`state`](Flow::state): act on a change. `Refused` (initiator): [`restart`](Flow::restart) or give up.
//!    `Aborted`: RST to the application. `Done`: everything was delivered both ways.
//! 2. [`readable`](Flow::readable) to the application's socket, then [`consumed`](Flow::consumed) with what it took;
//!    once [`at_eof`](Flow::at_eof) says so, shut down its writing side (once).
//! 3. [`transmit`](Flow::transmit) with the generation of the leg at hand until `None`, each frame onto the stream.
//! 4. Read the socket while [`writable`](Flow::writable) is not 0, at most so many bytes; [`write`](Flow::write), then
//!    [`transmit`](Flow::transmit) again. Its end of file is [`finish`](Flow::finish), its reset is
//!    [`abort`](Flow::abort).
//! 5. Sleep until the socket, the leg or [`next_timeout`](Flow::next_timeout); at the timeout [`tick`](Flow::tick).
//!
//! Frames from the leg go into [`receive`](Flow::receive) with the leg's generation. On an `Err` the leg is of no use
//! any more: take what `transmit` still has (it may be an ABORT), drop the leg, look at `state`.
//!
//! **Legs.** The first leg has generation 1 and exists from the start: the initiator's first `transmit` is OPEN. When a
//! stream ends or is reset before the flow is over, call [`leg_lost`](Flow::leg_lost). The initiator dials again while
//! [`wants_leg`](Flow::wants_leg) (also while a leg that it still uses is suspected, or asked to move), calls [`resume`](Flow::resume) when the new stream is there, and uses the generation
//! that it returns for this stream; an older stream is fenced by that and can be reset with `ABANDONED`. The terminator
//! gets the header of a new leg from its listener: for RESUME call [`attach`](Flow::attach), for an OPEN whose flow id
//! is known already [`attach_open`](Flow::attach_open) (never dial twice for one id), and answer an `Err(code)` with
//! GONE on that new leg without touching the old one. An OPEN of a later generation whose flow is not known never starts
//! it: the first one may have started it in a process that is gone. It is answered with RESUMED, which says since when
//! this process has forgotten no flow, and REFUSE, and its id is kept as [`Finished::never_arrived`]. If the flow is
//! younger than that, nothing was delivered anywhere, and the initiator may [`restart`](Flow::restart); else nobody
//! knows, which cuts the flow if its application has said anything.
//!
//! **Terminator.** [`terminate`](Flow::terminate) when the OPEN was authorised; then dial the backend and call
//! [`accept`](Flow::accept) or [`refuse`](Flow::refuse). Early bytes are held until then. When the flow is over, keep
//! [`finished`](Flow::finished) in the table under the flow's id until its deadline, and answer later legs from it.
//!
//! **The end.** When `state` is final ([`State::is_final`]), `transmit` gives `None` and [`is_telling`](Flow::is_telling)
//! is false, finish the stream (a reset could overtake the last frame) and forget the machine. The application's socket can
//! be closed as soon as the state is final.
//!
//! Every call costs time in proportion to the chunks it moves, never to what is buffered; only a resume walks over the
//! replay buffer. Memory: at most [`FlowLimits::max_window`] bytes in each direction, nothing while idle.

mod finished;
mod leg;
mod local;
mod queue;
mod receive;
mod recv;
mod send;
mod suspicion;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

pub use finished::Finished;
use recv::RecvHalf;
use send::SendHalf;
use suspicion::{Look, Owed, Suspicion};

use crate::wire::{AbortCode, EARLY, FlowId, Generation, Open, Place, RefuseCode, Role, Secret};

/// One end of a flow; see the [module](self) for the order of calls.
#[derive(Debug)]
pub struct Flow {
    role: Role,
    id: FlowId,
    secret: Secret,
    /// What was asked for; only the initiator needs it again.
    open: Option<Box<Open>>,
    limits: FlowLimits,
    state: State,
    generation: Generation,
    leg: Leg,
    /// OPEN was handed to some leg, so the other end may know the flow.
    opened: bool,
    /// Initiator: when that was the first time.
    asked: Option<Instant>,
    /// The open was given up, or its window has passed, before it had an answer, and nothing was said.
    forsaken: bool,
    /// ACCEPT was received or decided.
    accepted: bool,
    /// ACCEPT's or OPEN's value, whichever is lower.
    max_datagram: u64,
    send: SendHalf,
    recv: RecvHalf,
    outbox: Outbox,
    move_requested: Option<Place>,
    suspicion: Suspicion,
    resumes: u32,
}

/// Where a flow stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No ACCEPT or REFUSE yet.
    Opening,
    /// A leg of this generation carries the flow.
    Attached(Generation),
    /// No leg, or its RESUME has no answer yet. The flow is cut at `until`.
    Detached {
        /// End of the resume window.
        until: Instant,
    },
    /// The other end cut the flow; what arrived before may still go to the application until then.
    Aborting {
        /// Why.
        code: AbortCode,
        /// When the rest is given up.
        until: Instant,
    },
    /// Both ends own everything; only the delivery to this end's application is left. Needs no leg and has no limit.
    Draining,
    /// Final: the provider refused; nothing was delivered.
    Refused {
        /// Why.
        code: RefuseCode,
        /// For people.
        text: String,
    },
    /// Final: everything was delivered.
    Done,
    /// Final: the application must see an RST.
    Aborted(AbortCode),
}

impl State {
    /// Whether nothing will be delivered any more and the state stays.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Done | Self::Aborted(_))
    }
}

/// The leg of the current generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leg {
    None,
    /// This header goes first; with `wait`, nothing but an ABORT follows before the answer.
    Header(Header, Wait),
    /// The header was sent and the answer is awaited.
    Waiting,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    Open,
    Resume,
    Resumed,
}

type Wait = bool;

/// Frames that wait to be sent once.
#[derive(Debug, Default)]
struct Outbox {
    accept: bool,
    refuse: bool,
    complete: bool,
    abort: Option<AbortCode>,
    /// An ABORT that was sent, with bytes before it that are kept until the other end is known to have heard it.
    unconfirmed: Option<AbortCode>,
    /// Without a leg: how long one is looked for in order to tell the ABORT.
    tell_until: Option<Instant>,
    request_move: Option<Place>,
    ping: bool,
}

/// Bounds of one flow's end; the same values serve both roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowLimits {
    /// Bytes of credit and of replay at the start.
    pub window: usize,
    /// Bytes to which either may grow with measured use.
    pub max_window: usize,
    /// How long the initiator looks for another leg; the terminator waits [`TERMINATOR_GRACE`] longer. Zero: not at all;
    /// the flow lives and dies with its first leg, what was sent is not kept, and only credit is acknowledged.
    pub resume_window: Duration,
    /// UDP packets that wait at one end of an association, for its application or for its way; more are dropped
    /// (`waiting_packets`).
    pub packets: usize,
    /// Their bytes (`waiting_packet_bytes`).
    pub packet_bytes: usize,
}

impl Default for FlowLimits {
    /// 256 KiB, 4 MiB, 60 s; 256 packets, of which one is of the largest kind and as much again for the others: thousands
    /// of clients may wait for a provider.
    fn default() -> Self {
        Self {
            window: 256 * 1024,
            max_window: 4 * 1024 * 1024,
            resume_window: Duration::from_secs(60),
            packets: 256,
            packet_bytes: 128 << 10,
        }
    }
}

/// How much longer than the initiator the terminator waits, so that the initiator gives up first and never resumes
/// towards an end that has just forgotten the flow.
pub const TERMINATOR_GRACE: Duration = Duration::from_secs(15);

/// How long bytes that arrived before an ABORT may still go to an application that is slow to take them. A TCP stack
/// would keep what is in its receive buffer; ours must not keep a socket for an application that never reads.
pub const ABORT_LINGER: Duration = Duration::from_secs(5);

/// The other end broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame that this end does not expect now.
    #[error("unexpected {frame} frame")]
    Unexpected {
        /// The frame's name.
        frame: &'static str,
    },
    /// A gap or an overlap.
    #[error("bytes at offset {offset}, expected {expected}")]
    Offset {
        /// Where the bytes start.
        offset: u64,
        /// Where they had to start.
        expected: u64,
    },
    /// More bytes than were allowed.
    #[error("bytes up to {end}, only {limit} were allowed")]
    Credit {
        /// Where the bytes end.
        end: u64,
        /// The credit given.
        limit: u64,
    },
    /// Bytes or another FIN behind the FIN.
    #[error("data behind the end of the direction")]
    AfterFin,
    /// An acknowledgement of what was never sent, or less than before.
    #[error("acknowledged {recv}, which is outside of {low} to {high}")]
    Acknowledged {
        /// What was acknowledged.
        recv: u64,
        /// Least that is possible.
        low: u64,
        /// Most that is possible.
        high: u64,
    },
    /// RESUMED with a wrong proof: the leg leads to somebody else. Cuts the leg, not the flow.
    #[error("the answer to the resume is not from the flow's other end")]
    Proof,
}

/// Counters of one end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Bytes taken from the application.
    pub written: u64,
    /// Bytes given to the application.
    pub delivered: u64,
    /// Bytes in memory, both directions.
    pub buffered: usize,
    /// Legs after the first that were attached.
    pub resumes: u32,
    /// Whether the provider took the flow.
    pub accepted: bool,
    /// Bytes of the application that the other end owns.
    pub acked: u64,
    /// Whether bytes are on their way that the other end does not own, or would be if there were a leg. Bytes that only
    /// wait for credit are not.
    pub outstanding: bool,
}

impl Flow {
    /// The consumer's end of a new flow. `open` says what is asked for; its `limit`, `generation` and `window` are set here.
    pub fn initiate(open: Open, limits: FlowLimits) -> Self {
        let window = limits.window.min(limits.max_window);
        let recv = RecvHalf::new(window as u64, window, limits.max_window, keeps(&limits));
        let mut flow = Self::new(Role::Initiator, &open, limits, recv, EARLY);
        flow.set_open(open);
        flow.leg = Leg::Header(Header::Open, false);
        flow
    }

    /// The provider's end for a first OPEN that is allowed, with the shorter of both ends' windows. Decide next with
    /// [`accept`](Self::accept) or [`refuse`](Self::refuse).
    pub fn terminate(open: &Open, limits: FlowLimits) -> Self {
        let told = open.window.map_or(Duration::MAX, Duration::from_millis);
        let resume_window = match limits.resume_window.min(told) {
            Duration::ZERO => Duration::ZERO,
            window => window + TERMINATOR_GRACE,
        };
        let keeps = !resume_window.is_zero();
        let recv = RecvHalf::new(EARLY, limits.window, limits.max_window, keeps);
        let mut flow = Self::new(
            Role::Terminator,
            open,
            FlowLimits {
                resume_window,
                ..limits
            },
            recv,
            open.limit,
        );
        flow.generation = open.generation;
        flow.opened = true;
        if !flow.is_kept() {
            flow.send.keep_nothing();
        }
        flow.leg = Leg::Up;
        flow
    }

    fn new(role: Role, open: &Open, limits: FlowLimits, recv: RecvHalf, limit: u64) -> Self {
        Self {
            role,
            id: open.flow,
            secret: open.secret.clone(),
            open: None,
            limits,
            state: State::Opening,
            generation: Generation::FIRST,
            leg: Leg::None,
            opened: false,
            asked: None,
            forsaken: false,
            accepted: false,
            max_datagram: open.max_datagram,
            send: SendHalf::new(limit, limits.window, limits.max_window),
            recv,
            outbox: Outbox::default(),
            move_requested: None,
            suspicion: Suspicion::new(),
            resumes: 0,
        }
    }

    fn set_open(&mut self, open: Open) {
        self.id = open.flow;
        self.secret = open.secret.clone();
        self.max_datagram = open.max_datagram;
        self.generation = Generation::FIRST;
        self.open = Some(Box::new(Open {
            generation: Generation::FIRST,
            limit: self.recv.limit(),
            window: Some(self.limits.resume_window.as_millis() as u64),
            ..open
        }));
    }

    /// The flow's id.
    pub fn id(&self) -> FlowId {
        self.id
    }

    /// Where the flow stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The generation of the newest leg.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether a leg of the newest generation is in use. Without one, the driver drops what it still holds.
    pub fn has_leg(&self) -> bool {
        self.leg != Leg::None
    }

    /// Largest datagram payload that both ends can use, known after ACCEPT; 0 for none.
    pub fn max_datagram(&self) -> u64 {
        self.max_datagram
    }

    /// Where the other end asked for another leg. The next [`resume`](Self::resume) clears it.
    pub fn move_requested(&self) -> Option<Place> {
        self.move_requested
    }

    /// Tells how long a round trip may take before the silence of a leg is suspicious; at least one second is waited.
    pub fn set_patience(&mut self, patience: Duration) {
        self.suspicion.set_patience(patience);
    }

    /// Whether the other end owes an answer for too long. The leg may still turn out to be good.
    pub fn is_suspected(&self) -> bool {
        self.suspicion.is_suspected()
    }

    /// Whether the flow can go on over another leg.
    pub fn is_kept(&self) -> bool {
        keeps(&self.limits)
    }

    /// Counters.
    pub fn stats(&self) -> FlowStats {
        FlowStats {
            written: self.send.written(),
            delivered: self.recv.consumed(),
            buffered: self.send.buffered() + self.recv.buffered(),
            resumes: self.resumes,
            accepted: self.accepted,
            acked: self.send.acked(),
            outstanding: match self.leg {
                Leg::Up => self.send.sent() > self.send.acked(),
                _ => self.send.written() > self.send.acked(),
            },
        }
    }

    /// Lowers or raises [`FlowLimits::max_window`] while the flow runs, for budgets over many flows. Credit that the
    /// other end was given stays given.
    pub fn set_max_window(&mut self, bytes: usize) {
        self.limits.max_window = bytes;
        self.send.set_max(bytes);
        self.recv.set_max(bytes);
    }

    /// When [`tick`](Self::tick) is due, if nothing happens before.
    pub fn next_timeout(&self) -> Option<Instant> {
        let own = match self.state {
            State::Detached { until } | State::Aborting { until, .. } => Some(until),
            State::Aborted(_) if self.is_telling() => self.outbox.tell_until,
            State::Attached(_) if self.leg == Leg::Up => self.recv.ack_timeout(),
            _ => None,
        };
        let check = self.suspicion.check().filter(|_| !self.is_over());
        own.into_iter().chain(check).min()
    }

    /// Lets time pass: ends the resume window and the linger of an ABORT. An ACK that is due by now comes out of the
    /// next [`transmit`](Self::transmit); it is not named by [`next_timeout`](Self::next_timeout) again, so a leg that
    /// takes nothing at the moment does not keep the driver awake.
    pub fn tick(&mut self, now: Instant) {
        if self.suspicion.check().is_some_and(|at| at <= now)
            && self.suspicion.look(self.owed(), now) == Look::Ask
        {
            self.ping();
        }
        match self.state {
            State::Detached { until } if until <= now => self.expire(),
            State::Aborting { code, until } if until <= now => self.cut(code),
            State::Attached(_) => self.recv.tick(now),
            State::Aborted(_) if self.outbox.tell_until.is_some_and(|until| until <= now) => {
                self.outbox = Outbox::default();
                self.send.clear();
            }
            _ => {}
        }
    }

    /// What the initiator waits for. Only a flow that can go on elsewhere has any use for a doubt.
    fn owed(&self) -> Owed {
        if self.role != Role::Initiator || self.is_over() || !self.is_kept() {
            return Owed::Nothing;
        }
        match self.leg {
            Leg::Waiting => Owed::Resumed,
            Leg::Up if !self.accepted => Owed::Decision,
            Leg::Up if self.send.is_outstanding() || self.suspicion.has_asked() => Owed::Ack,
            Leg::Up | Leg::None | Leg::Header(..) => Owed::Nothing,
        }
    }

    /// Ends in `Aborted`: no byte and no end of file is delivered from here on.
    fn cut(&mut self, code: AbortCode) {
        self.state = State::Aborted(code);
        self.recv.clear();
        // Whoever is asked next hears what was said.
        let kept = self.forsaken;
        if !kept && self.outbox.abort.is_none() && self.outbox.unconfirmed.is_none() {
            self.send.clear();
        }
    }

    /// Cuts because of this end, and tells the other end.
    fn cut_and_tell(&mut self, code: AbortCode) {
        self.send.clear();
        self.outbox.abort = Some(code);
        self.cut(code);
    }

    /// Both ends own everything.
    fn complete(&mut self) {
        self.send.clear();
        self.state = if self.recv.is_consumed() {
            State::Done
        } else {
            State::Draining
        };
    }
}

const fn keeps(limits: &FlowLimits) -> bool {
    !limits.resume_window.is_zero()
}
