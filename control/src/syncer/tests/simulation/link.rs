//! One node's Syncer and one peer.

use super::{CONNECT, Event, Micros, World};
use crate::api::Revision;
use crate::client::watcher::{Step, Watcher};
use crate::client::{Backoff, Class, WatchFrom};
use crate::syncer::plan::{Push, When};
use crate::syncer::taking::{Do, Taking};

/// What a link does at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// Watches the peer's Router.
    Theirs,
    /// Watches what the peer holds of ours.
    Ours,
    /// Pushes.
    Push,
}

pub(super) struct Link {
    pub(super) connected: bool,
    /// Since when an attempt to connect is under way.
    pub(super) dialling: Option<Micros>,
    /// Whether one of its packets has arrived.
    pub(super) arrived: bool,
    /// Ways that wait for the connection.
    waiting: [bool; 3],
    /// Whether the server sends events of this watch.
    pub(super) open: [bool; 2],
    /// When each way does its next step; never while it waits for something else.
    pub(super) due: [Micros; 3],
    watchers: [Watcher; 2],
    taking: Taking,
    pub(super) push: Push,
    push_backoff: Backoff,
    pushing: bool,
    /// Whether the node knows that the peer is away.
    pub(super) away: bool,
    /// What the node holds of the peer: its source revision, and the node's own revision of it.
    pub(super) held: (u64, u64),
}

impl Link {
    pub(super) fn new() -> Self {
        let watcher = || Watcher::new(WatchFrom::Snapshot, Backoff::remote());
        Self {
            connected: false,
            dialling: None,
            arrived: false,
            waiting: [false; 3],
            open: [false; 2],
            due: [Micros::MAX; 3],
            watchers: [watcher(), watcher()],
            taking: Taking::new(),
            push: Push::new(),
            push_backoff: Backoff::remote(),
            pushing: false,
            away: false,
            held: (0, 0),
        }
    }
}

impl World {
    /// A way of a link does what it wants to do next; without a connection it dials first.
    pub(super) fn step(&mut self, from: u16, to: u16, way: Way) {
        let now = self.now;
        let link = self.link(from, to);
        link.due[way as usize] = Micros::MAX;
        if !link.connected {
            link.waiting[way as usize] = true;
            if link.dialling.is_none() {
                link.dialling = Some(now);
                match self.is_cut(from, to) {
                    false => self.soon(Event::Dial {
                        from,
                        to,
                        last: false,
                    }),
                    // It fails, unless the cut ends before one of its packets is lost too.
                    true => self.at(
                        now + CONNECT,
                        Event::Dial {
                            from,
                            to,
                            last: true,
                        },
                    ),
                }
            }
            return;
        }
        match way {
            Way::Push => self.send_push(from, to),
            Way::Theirs | Way::Ours => {
                match self.link(from, to).watchers[way as usize].next() {
                    Step::List => self.counts.lists += 1,
                    Step::Watch(_) => self.counts.watches += 1,
                }
                self.soon(Event::Opened { from, to, way });
            }
        }
    }

    /// A first packet arrives, or the attempt is over.
    pub(super) fn dialled(&mut self, from: u16, to: u16, last: bool) {
        let cut = self.is_cut(from, to);
        let link = self.link(from, to);
        if link.dialling.is_none() || link.arrived {
            return;
        }
        if !cut && !last {
            self.link(from, to).arrived = true;
            self.counts.handshakes += 1;
            self.work(to, Event::Answered { from, to });
        } else if last {
            self.counts.failed += 1;
            self.link(from, to).dialling = None;
            let ways = std::mem::take(&mut self.link(from, to).waiting);
            for way in [Way::Theirs, Way::Ours, Way::Push] {
                if ways[way as usize] {
                    self.failed(from, to, way);
                }
            }
        }
    }

    pub(super) fn connected(&mut self, from: u16, to: u16) {
        let link = self.link(from, to);
        link.connected = true;
        (link.dialling, link.arrived) = (None, false);
        let ways = std::mem::take(&mut link.waiting);
        for way in [Way::Theirs, Way::Ours, Way::Push] {
            if ways[way as usize] {
                self.step(from, to, way);
            }
        }
    }

    pub(super) fn lost(&mut self, from: u16, to: u16) {
        let link = self.link(from, to);
        if !std::mem::take(&mut link.connected) {
            return;
        }
        link.open = [false; 2];
        for way in [Way::Theirs, Way::Ours] {
            self.failed(from, to, way);
        }
        if std::mem::take(&mut self.link(from, to).pushing) {
            self.failed(from, to, Way::Push);
        }
    }

    /// An attempt failed: the next one is due after a wait.
    fn failed(&mut self, from: u16, to: u16, way: Way) {
        let (jitter, hurried) = (self.jitter(), self.jitter());
        let now = self.instant();
        let hurry = self.nodes[usize::from(from)].hurry;
        let link = self.link(from, to);
        let wait = match way {
            Way::Push => {
                link.pushing = false;
                link.push_backoff.failed_by(jitter)
            }
            Way::Theirs | Way::Ours => {
                let watcher = &mut link.watchers[way as usize];
                watcher.failed(Class::Retry, jitter);
                let wait = watcher.wait();
                hurry.map_or(wait, |hurry| hurry.shorten(wait, now, hurried))
            }
        };
        // What is told to `keel status` is what the pull meets.
        if way == Way::Theirs && !std::mem::replace(&mut link.away, true) {
            self.nodes[usize::from(from)].away += 1;
        }
        let at = self.now + u64::try_from(wait.as_micros()).unwrap();
        self.due(from, to, way, at);
    }

    /// A list was answered, or a watch is open at the server.
    pub(super) fn opened(&mut self, from: u16, to: u16, way: Way) {
        let cut = self.is_cut(from, to);
        if !self.link(from, to).connected || cut {
            return;
        }
        let next = self.link(from, to).watchers[way as usize].next();
        // The object that is asked for, as the server holds it: the number of its node, and the server's.
        let (source, at) = match way {
            Way::Theirs => {
                let own = self.nodes[usize::from(to)]
                    .reports
                    .last()
                    .copied()
                    .unwrap_or(0);
                (own, own)
            }
            Way::Ours | Way::Push => self.held(to, from),
        };
        match next {
            Step::List => {
                let revision = Revision(self.nodes[usize::from(to)].revision);
                self.link(from, to).watchers[way as usize].listed(revision);
                self.snapshot(from, to, way, source);
                self.step(from, to, way);
            }
            Step::Watch(Revision(seen)) => {
                self.link(from, to).open[way as usize] = true;
                // What was missed comes now: of their Router every report, of ours what is held.
                let missed: Vec<(u64, u64)> = match way {
                    Way::Theirs => {
                        let reports = &self.nodes[usize::from(to)].reports;
                        let behind = reports.partition_point(|report| *report <= seen);
                        reports[behind..].iter().map(|one| (*one, *one)).collect()
                    }
                    Way::Ours | Way::Push => Some((source, at))
                        .filter(|_| at > seen)
                        .into_iter()
                        .collect(),
                };
                for (source, at) in missed {
                    self.counts.events += 1;
                    self.soon(Event::Came {
                        from,
                        to,
                        way,
                        source,
                        at,
                    });
                }
            }
        }
    }

    fn snapshot(&mut self, from: u16, to: u16, way: Way, source: u64) {
        match way {
            Way::Theirs => {
                self.heard(from, to);
                if source > 0 {
                    self.arrived(from, to, source);
                }
            }
            Way::Ours | Way::Push => {
                let held = Some(Revision(source)).filter(|held| held.0 > 0);
                let now = self.instant();
                self.link(from, to).push.held(held, now);
                self.plan_push(from, to);
            }
        }
    }

    pub(super) fn came(&mut self, from: u16, to: u16, way: Way, source: u64, at: u64) {
        let link = self.link(from, to);
        if !link.connected || !link.watchers[way as usize].came(Revision(at)) {
            return;
        }
        self.snapshot(from, to, way, source);
    }

    fn arrived(&mut self, from: u16, to: u16, source: u64) {
        let router = self.router(to, source);
        self.link(from, to).taking.came(router);
        self.take(from, to);
    }

    /// What `Pull::act` does.
    pub(super) fn take(&mut self, from: u16, to: u16) {
        let peer = self.nodes[usize::from(to)].name.clone();
        loop {
            let now = self.instant();
            let held = Some(Revision(self.link(from, to).held.0)).filter(|held| held.0 > 0);
            let link = self.link(from, to);
            match link.taking.next(&peer, now, Revision::MAX) {
                Do::Nothing => return,
                Do::Wait(at) => {
                    let at = self.micros(at).max(self.now + 1);
                    return self.at(at, Event::Take { from, to });
                }
                Do::ReadHeld => link.taking.held(held),
                Do::Write(router, revision) => {
                    // A push may have brought a later one.
                    let newest = revision.max(held.unwrap_or(Revision(0)));
                    link.taking.wrote(&router, Some(newest), now);
                    if Some(revision) > held {
                        self.hold(from, to, revision.0);
                    }
                }
                Do::Known => {}
                Do::Refuse(why) => panic!("nobody lies here: {why}"),
            }
        }
    }

    /// What the loop of the `Pusher` does.
    pub(super) fn plan_push(&mut self, from: u16, to: u16) {
        let now = self.instant();
        let link = self.link(from, to);
        if link.pushing || link.waiting[Way::Push as usize] {
            return;
        }
        let due = link.due[Way::Push as usize];
        let at = match link.push.when(now) {
            When::Idle => {
                link.due[Way::Push as usize] = Micros::MAX;
                return;
            }
            When::At(at) => self.micros(at).max(self.now),
            // One that failed waits for its time.
            When::Now if due != Micros::MAX => return,
            When::Now => self.now,
        };
        if at != due {
            self.due(from, to, Way::Push, at);
        }
    }

    fn send_push(&mut self, from: u16, to: u16) {
        let now = self.instant();
        if self.link(from, to).push.when(now) != When::Now {
            return self.plan_push(from, to);
        }
        let Some(&source) = self.nodes[usize::from(from)].reports.last() else {
            return;
        };
        self.link(from, to).pushing = true;
        if self.is_cut(from, to) {
            // Ends with the connection.
            return;
        }
        self.counts.pushes += 1;
        if self.held(to, from).0 < source {
            self.hold(to, from, source);
        }
        self.soon(Event::Pushed { from, to, source });
    }

    pub(super) fn pushed(&mut self, from: u16, to: u16, source: u64) {
        let now = self.instant();
        let link = self.link(from, to);
        if !std::mem::take(&mut link.pushing) {
            return;
        }
        link.push_backoff.succeeded();
        link.push.sent(Revision(source), now);
        self.plan_push(from, to);
    }
}
