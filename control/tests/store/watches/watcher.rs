//! Clients that watch, each in a manner of its own, and write down every line.

use std::time::Duration;

use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt;
use keel_control::http::{Body, read};
use keel_control::store::EventKind;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::clients::{Desk, Link, ROUTERS, listed};
use super::history::{Change, End, From, List, Object, SELECTED, SIDE, Seen, Watch};

/// How a watcher behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    pub(crate) name: &'static str,
    /// Watches the selected half only.
    pub(crate) selects: bool,
    /// Begins with what is there, instead of with a list.
    pub(crate) whole: bool,
    /// Takes up to so long for each line.
    pub(crate) slow: Duration,
    /// Reads nothing for up to so long, now and then.
    pub(crate) pauses: Duration,
    /// Goes away in the middle, now and then.
    pub(crate) leaves: bool,
    /// Goes on after up to so long when a watch has ended, however it did.
    pub(crate) away: Duration,
    /// Asks for watches of a second, which end with a bookmark.
    pub(crate) short: bool,
}

pub(crate) const MANNERS: [Manner; 9] = {
    let plain = Manner {
        name: "steady",
        selects: false,
        whole: false,
        slow: Duration::ZERO,
        pauses: Duration::ZERO,
        leaves: false,
        away: Duration::ZERO,
        short: false,
    };
    [
        plain,
        Manner {
            name: "selecting",
            selects: true,
            ..plain
        },
        Manner {
            name: "beginning",
            whole: true,
            leaves: true,
            ..plain
        },
        Manner {
            name: "slow",
            slow: Duration::from_millis(10),
            ..plain
        },
        Manner {
            name: "paused",
            pauses: Duration::from_millis(1500),
            ..plain
        },
        Manner {
            name: "leaving",
            leaves: true,
            ..plain
        },
        Manner {
            name: "away",
            leaves: true,
            away: Duration::from_millis(1000),
            ..plain
        },
        Manner {
            name: "short",
            short: true,
            ..plain
        },
        Manner {
            name: "short and selecting",
            selects: true,
            whole: true,
            short: true,
            ..plain
        },
    ]
};

/// What a watcher brings home.
#[derive(Default)]
pub(crate) struct Diary {
    pub(crate) watches: Vec<Watch>,
    pub(crate) lists: Vec<List>,
}

/// Watches until it has seen everything up to the last revision.
pub(crate) async fn watch(desk: Desk, manner: Manner, seed: u64) -> Diary {
    let mut watcher = Watcher {
        random: StdRng::seed_from_u64(seed),
        diary: Diary::default(),
        next: None,
        desk,
        manner,
    };
    while !watcher.is_done() {
        let link = watcher.desk.connect(&mut watcher.random).await;
        while !watcher.is_done() && !link.gone.is_cancelled() {
            watcher.go_on(&link).await;
        }
    }
    watcher.diary
}

struct Watcher {
    desk: Desk,
    manner: Manner,
    random: StdRng,
    diary: Diary,
    /// The revision to go on behind; none at the beginning, and when that one is too old.
    next: Option<u64>,
}

impl Watcher {
    fn is_done(&self) -> bool {
        let last = *self.desk.last.borrow();
        matches!((self.next, last), (Some(next), Some(last)) if next >= last)
    }

    fn reach(&mut self, revision: u64) {
        self.next = Some(revision);
        let name = self.manner.name;
        self.desk.reached.send_modify(|reached| {
            reached.insert(name.to_owned(), revision);
        });
    }

    /// One watch, from its request to its end.
    async fn go_on(&mut self, link: &Link) {
        let from = match self.next {
            Some(revision) => From::After(revision),
            None if self.manner.whole => From::State,
            None => {
                let listed = listed(&self.desk, link, self.manner.name, self.manner.selects, 0);
                if let Some(list) = listed.await {
                    self.reach(list.revision);
                    self.diary.lists.push(list);
                }
                return;
            }
        };
        let mut watch = Watch {
            watcher: self.manner.name.to_owned(),
            selects: self.manner.selects,
            from,
            asked: self.desk.now(),
            seen: Vec::new(),
            end: End::Open,
            ended: self.desk.now(),
        };
        let Some(answer) = link.send(Method::GET, &self.path(from), None).await else {
            return;
        };
        if answer.status().is_success() {
            self.read(link, Lines::new(answer.into_body()), &mut watch)
                .await;
        } else {
            watch.end = End::Refused(answer.status().as_u16());
            // What it says is not looked at.
            let _ = read(answer.into_body(), 1 << 20).await;
        }
        if matches!(watch.end, End::Refused(_)) {
            self.next = None;
        }
        watch.ended = self.desk.now();
        self.diary.watches.push(watch);
        let away = self.manner.away.mul_f64(self.random.random());
        if away > Duration::ZERO {
            spend(away, &mut self.desk.last.clone()).await;
        }
    }

    fn path(&self, from: From) -> String {
        let mut path = format!("{ROUTERS}?watch=1&allowWatchBookmarks=true");
        match from {
            From::After(revision) => path += &format!("&resourceVersion={revision}"),
            From::State => path += "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
        }
        if self.manner.selects {
            path += &format!("&labelSelector={SIDE}%3D{SELECTED}");
        }
        if self.manner.short {
            path += "&timeoutSeconds=1";
        }
        path
    }

    async fn read(&mut self, link: &Link, mut lines: Lines, watch: &mut Watch) {
        // What a watch begins with is not in the order of the revisions; only its end says how far it is.
        let mut begun = watch.from != From::State;
        let mut last = self.desk.last.clone();
        while !self.is_done() {
            self.dawdle(&mut last).await;
            if self.is_done() {
                return;
            }
            let line = tokio::select! {
                biased;
                line = lines.next() => line,
                () = link.gone.cancelled() => return,
                // Whether everything was seen, is looked at again.
                _ = last.changed() => continue,
            };
            let Some(line) = line else { return };
            if line["type"] == "ERROR" {
                let code = line["object"]["code"].as_u64().unwrap();
                watch.end = End::Refused(u16::try_from(code).unwrap());
                return;
            }
            let seen = seen(&line);
            let revision = match &seen {
                Seen::Change(change) => change.revision(),
                Seen::Bookmark { revision, begins } => {
                    begun |= *begins;
                    *revision
                }
            };
            if begun {
                self.reach(revision);
            }
            watch.seen.push(seen);
            if self.manner.leaves && begun && self.random.random_ratio(1, 15) {
                // Changes come meanwhile; now and then the beginning is wanted once more.
                if self.manner.whole {
                    self.next = None;
                }
                return;
            }
        }
    }

    /// Takes the time that it takes; not once everything only has to be seen.
    async fn dawdle(&mut self, last: &mut tokio::sync::watch::Receiver<Option<u64>>) {
        let mut time = self.manner.slow.mul_f64(self.random.random());
        if self.random.random_ratio(1, 100) {
            time += self.manner.pauses.mul_f64(self.random.random());
        }
        if time > Duration::ZERO {
            spend(time, last).await;
        }
    }
}

/// Lets time pass, as long as the end is not known.
async fn spend(time: Duration, last: &mut tokio::sync::watch::Receiver<Option<u64>>) {
    // That the time is over is as good as the end.
    let _ = tokio::time::timeout(time, last.wait_for(Option::is_some)).await;
}

fn seen(line: &Value) -> Seen {
    let kind = match line["type"].as_str() {
        Some("ADDED") => EventKind::Added,
        Some("MODIFIED") => EventKind::Modified,
        Some("DELETED") => EventKind::Deleted,
        Some("BOOKMARK") => {
            let metadata = &line["object"]["metadata"];
            let revision = metadata["resourceVersion"].as_str().unwrap();
            return Seen::Bookmark {
                revision: revision.parse().unwrap(),
                begins: metadata["annotations"]["k8s.io/initial-events-end"] == "true",
            };
        }
        _ => panic!("{line} is no line of a watch"),
    };
    let object = Object::read(&line["object"]);
    Seen::Change(Change { kind, object })
}

/// The lines of a body.
struct Lines {
    body: Body,
    buffer: BytesMut,
}

impl Lines {
    fn new(body: Body) -> Self {
        let buffer = BytesMut::new();
        Self { body, buffer }
    }

    /// The next line; `None` at the end, be it the server's or the connection's. Cancel safe.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.ok()?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}
