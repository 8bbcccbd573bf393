//! A thousand nodes under a clock of their own: what each Syncer decides is the code that is used, the network and the stores are played.
//!
//! A link is what one node's Syncer keeps of one peer: two watches (the peer's Router, and what the peer holds of ours) and the push.
//! A node has 4 ms of processor time for each end of a handshake, and serves one at a time.

mod counts;
mod link;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use keel_certs::NodeName;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use super::super::plan::{Sign, hurry};
use crate::api::{Revision, Router, RouterStatus, Source};
use crate::client::Hurry;
use counts::Counts;
use link::{Link, Way};

/// Microseconds since the start.
type Micros = u64;

const SECOND: Micros = 1_000_000;
/// What one end of a handshake takes.
const HANDSHAKE: Micros = 4_000;
/// A connection that hears nothing is given up after this, as QUIC is set up here.
const IDLE: Micros = 15 * SECOND;
/// An attempt to connect fails after this; in it, the first packet is sent again at these times.
const CONNECT: Micros = 5 * SECOND;
const AGAIN: [Micros; 2] = [SECOND, 3 * SECOND];
/// Between two heartbeats of a Router.
const HEARTBEAT: Micros = 30 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The node's Router reports.
    Report {
        node: u16,
        again: bool,
    },
    /// A way of a link does its next step, if this is still when it is due.
    Step {
        from: u16,
        to: u16,
        way: Way,
    },
    /// A first packet that may get through.
    Dial {
        from: u16,
        to: u16,
        last: bool,
    },
    /// The server's end of the handshake is done, or that of the client.
    Answered {
        from: u16,
        to: u16,
    },
    Connected {
        from: u16,
        to: u16,
    },
    /// The connection of before the cut is given up.
    Lost {
        from: u16,
        to: u16,
    },
    /// The answer to a list, or a watch that is open, is there.
    Opened {
        from: u16,
        to: u16,
        way: Way,
    },
    /// An event of a watch is there: this object of the server had this status as of this revision.
    Came {
        from: u16,
        to: u16,
        way: Way,
        source: u64,
        at: u64,
    },
    /// What came is looked at again.
    Take {
        from: u16,
        to: u16,
    },
    /// A push was answered.
    Pushed {
        from: u16,
        to: u16,
        source: u64,
    },
}

struct Node {
    name: NodeName,
    /// Its store's revision.
    revision: u64,
    /// `source.revision` of its own status, and all before it.
    reports: Vec<u64>,
    /// How many others hold the newest of them.
    held_by: usize,
    hurry: Option<Hurry>,
    /// Peers that it knows to be away.
    away: usize,
    /// When its processor has done what it was given.
    busy: Micros,
}

struct World {
    random: StdRng,
    start: Instant,
    now: Micros,
    /// What happens within this millisecond, and later: a heap of all of it would be slow.
    queue: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    later: BTreeMap<u64, Vec<(Micros, u64, Event)>>,
    sequence: u64,
    nodes: Vec<Node>,
    links: Vec<Link>,
    /// Whether the two halves cannot reach each other.
    cut: bool,
    heartbeats: bool,
    counts: Counts,
}

impl World {
    fn new(size: u16, seed: u64) -> Self {
        let start = Instant::now();
        let node = |at: u16| Node {
            name: NodeName::new(&format!("n{at}")).unwrap(),
            revision: 1_000_000,
            reports: Vec::new(),
            held_by: 0,
            hurry: None,
            away: 0,
            busy: 0,
        };
        let nodes: Vec<Node> = (0..size).map(node).collect();
        let links = usize::from(size) * usize::from(size);
        let mut world = Self {
            random: StdRng::seed_from_u64(seed),
            start,
            now: 0,
            queue: BinaryHeap::new(),
            later: BTreeMap::new(),
            sequence: 0,
            nodes,
            links: (0..links).map(|_| Link::new()).collect(),
            cut: false,
            heartbeats: true,
            counts: Counts::default(),
        };
        for node in 0..size {
            let at = world.random.random_range(0..SECOND);
            world.at(at, Event::Report { node, again: true });
            for to in (0..size).filter(|to| *to != node) {
                for way in [Way::Theirs, Way::Ours] {
                    world.due(node, to, way, at);
                }
            }
        }
        world
    }

    fn size(&self) -> u16 {
        u16::try_from(self.nodes.len()).unwrap()
    }

    fn index(&self, from: u16, to: u16) -> usize {
        usize::from(from) * self.nodes.len() + usize::from(to)
    }

    fn link(&mut self, from: u16, to: u16) -> &mut Link {
        let index = self.index(from, to);
        &mut self.links[index]
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_micros(self.now)
    }

    fn micros(&self, at: Instant) -> Micros {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap()
    }

    fn jitter(&mut self) -> f64 {
        self.random.random()
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.sequence += 1;
        let entry = (at, self.sequence, event);
        match at / 1000 > self.now / 1000 {
            true => self.later.entry(at / 1000).or_default().push(entry),
            false => self.queue.push(Reverse(entry)),
        }
    }

    fn soon(&mut self, event: Event) {
        let latency = self.random.random_range(10_000..50_000);
        self.at(self.now + latency, event);
    }

    /// One end of a handshake, behind those that wait for the node's processor already.
    fn work(&mut self, node: u16, then: Event) {
        let node = &mut self.nodes[usize::from(node)];
        node.busy = node.busy.max(self.now) + HANDSHAKE;
        let at = node.busy;
        self.at(at, then);
    }

    fn due(&mut self, from: u16, to: u16, way: Way, at: Micros) {
        self.link(from, to).due[way as usize] = at;
        self.at(at, Event::Step { from, to, way });
    }

    fn is_cut(&self, from: u16, to: u16) -> bool {
        let half = self.size() / 2;
        self.cut && (from < half) != (to < half)
    }

    /// Runs until `until`, or until `done`; whether it was done.
    fn run(&mut self, until: Micros, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if self.queue.is_empty() {
                let Some(next) = self.later.first_entry() else {
                    break;
                };
                if next.key() * 1000 > until {
                    break;
                }
                self.queue.extend(next.remove().into_iter().map(Reverse));
            }
            let Some(&Reverse((at, _, event))) = self.queue.peek() else {
                break;
            };
            if at > until {
                break;
            }
            self.queue.pop();
            // A hundredth of a second is exact enough.
            let tick = at / (SECOND / 100) != self.now / (SECOND / 100);
            self.now = at;
            if tick && done(self) {
                return true;
            }
            self.handle(event);
        }
        self.now = until;
        done(self)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Report { node, again } => {
                self.report(node);
                if again && self.heartbeats {
                    self.at(self.now + HEARTBEAT, event);
                }
            }
            Event::Step { from, to, way } => {
                if self.link(from, to).due[way as usize] == self.now {
                    self.step(from, to, way);
                }
            }
            Event::Dial { from, to, last } => self.dialled(from, to, last),
            Event::Answered { from, to } => self.work(from, Event::Connected { from, to }),
            Event::Connected { from, to } => self.connected(from, to),
            Event::Lost { from, to } => self.lost(from, to),
            Event::Opened { from, to, way } => self.opened(from, to, way),
            Event::Came {
                from,
                to,
                way,
                source,
                at,
            } => self.came(from, to, way, source, at),
            Event::Take { from, to } => self.take(from, to),
            Event::Pushed { from, to, source } => self.pushed(from, to, source),
        }
    }

    /// A node's own status changes: all who watch it are told.
    fn report(&mut self, node: u16) {
        let own = &mut self.nodes[usize::from(node)];
        own.revision += 1;
        let revision = own.revision;
        own.reports.push(revision);
        own.held_by = 0;
        let now = self.instant();
        for other in (0..self.size()).filter(|other| *other != node) {
            self.tell(other, node, Way::Theirs, revision, revision);
            self.link(node, other)
                .push
                .own(Some(Revision(revision)), now);
            self.plan_push(node, other);
        }
    }

    /// `server` has written: the watch of `client` on that object is told, if it is open.
    fn tell(&mut self, client: u16, server: u16, way: Way, source: u64, at: u64) {
        let cut = self.is_cut(client, server);
        let link = self.link(client, server);
        if link.connected && link.open[way as usize] && !cut {
            self.counts.events += 1;
            self.soon(Event::Came {
                from: client,
                to: server,
                way,
                source,
                at,
            });
        }
    }

    /// What `holder` holds of `of`: the source revision, and the holder's own revision of it.
    fn held(&mut self, holder: u16, of: u16) -> (u64, u64) {
        self.link(holder, of).held
    }

    fn hold(&mut self, holder: u16, of: u16, source: u64) {
        let node = &mut self.nodes[usize::from(holder)];
        node.revision += 1;
        let at = node.revision;
        self.link(holder, of).held = (source, at);
        let of_whom = &mut self.nodes[usize::from(of)];
        of_whom.held_by += usize::from(of_whom.reports.last() == Some(&source));
        self.tell(of, holder, Way::Ours, source, at);
    }

    /// The peer was heard: the others that are away may be back too.
    fn heard(&mut self, from: u16, to: u16) {
        if !std::mem::take(&mut self.link(from, to).away) {
            return;
        }
        let now = self.instant();
        let node = &mut self.nodes[usize::from(from)];
        node.away -= 1;
        let Some(new) = hurry(Sign::Heard, node.hurry, node.away, now) else {
            return;
        };
        node.hurry = Some(new);
        for other in 0..self.size() {
            for way in [Way::Theirs, Way::Ours] {
                let due = self.link(from, other).due[way as usize];
                if due != Micros::MAX && due > self.now && other != from {
                    let left = Duration::from_micros(due - self.now);
                    let jitter = self.jitter();
                    let left = new.shorten(left, now, jitter);
                    let at = self.now + u64::try_from(left.as_micros()).unwrap();
                    self.due(from, other, way, at);
                }
            }
        }
    }

    fn cut(&mut self) {
        self.cut = true;
        for from in 0..self.size() {
            for to in 0..self.size() {
                if self.is_cut(from, to) && self.link(from, to).connected {
                    self.at(self.now + IDLE, Event::Lost { from, to });
                }
            }
        }
    }

    /// Attempts that are under way get through with their next packet, if that leaves before they are given up.
    fn heal(&mut self) {
        self.cut = false;
        for from in 0..self.size() {
            for to in 0..self.size() {
                let link = self.link(from, to);
                let Some(since) = link.dialling.filter(|_| !link.arrived) else {
                    continue;
                };
                if let Some(again) = AGAIN.into_iter().find(|again| since + again > self.now) {
                    self.at(
                        since + again,
                        Event::Dial {
                            from,
                            to,
                            last: false,
                        },
                    );
                }
            }
        }
    }

    /// Whether every node holds what every other node is.
    fn is_in_sync(&self) -> bool {
        let others = self.nodes.len() - 1;
        self.nodes.iter().all(|node| node.held_by == others)
    }

    fn router(&self, node: u16, source: u64) -> Arc<Router> {
        Arc::new(Router {
            status: Some(RouterStatus {
                source: Some(Source {
                    revision: Revision(source),
                }),
                ..RouterStatus::default()
            }),
            ..Router::named(self.nodes[usize::from(node)].name.as_str())
        })
    }
}

/// In the short form 300 nodes, with `KEEL_LONG=1` a thousand: half a minute of processor time.
#[test]
fn nodes_are_in_sync_again_within_ten_seconds_of_a_partition() {
    let seed = rand::rng().next_u64();
    let long = std::env::var_os("KEEL_LONG").is_some_and(|value| !value.is_empty() && value != "0");
    let size = if long { 1000 } else { 300 };
    println!("{size} nodes, seed {seed}");
    let pairs = f64::from(size) * f64::from(size - 1);
    let mut world = World::new(size, seed);
    assert!(
        world.run(60 * SECOND, World::is_in_sync),
        "all start within a second"
    );
    let start = world.now;
    let tell = |what: &str, took: Micros, counts: Counts| {
        let messages = counts.messages();
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        let each = messages as f64 / pairs;
        println!(
            "{what}: {:.1} s, {messages} messages ({each:.2} for each pair): {counts:?}",
            took as f64 / 1e6
        );
    };
    tell("start", start, world.counts);

    // One change of each node, while nothing else happens.
    world.heartbeats = false;
    world.run(world.now + 2 * HEARTBEAT, |_| false);
    let before = world.counts;
    let since = world.now;
    for node in 0..size {
        world.at(since + 1, Event::Report { node, again: false });
    }
    assert!(world.run(since + 60 * SECOND, World::is_in_sync));
    tell(
        "a change of each",
        world.now - since,
        world.counts.since(&before),
    );

    let (before, since) = (world.counts, world.now);
    world.cut();
    for round in 0..2 {
        for node in 0..size {
            let at = since + round * HEARTBEAT + world.random.random_range(0..HEARTBEAT);
            world.at(at, Event::Report { node, again: false });
        }
    }
    assert!(!world.run(since + 2 * 60 * SECOND, |_| false));
    assert!(!world.is_in_sync());
    tell(
        "two minutes in two halves",
        world.now - since,
        world.counts.since(&before),
    );

    let (before, since) = (world.counts, world.now);
    world.heal();
    let in_time = world.run(since + 10 * SECOND, World::is_in_sync);
    tell(
        "in sync again",
        world.now - since,
        world.counts.since(&before),
    );
    assert!(in_time, "not in sync within 10 s, seed {seed}");
}
