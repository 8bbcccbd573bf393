//! The matrix: scripts of clients times scripts of servers, over sizes.
//!
//! Each case is made so that plain TCP gives the same outcome every time (the test runs it three times to see that):
//! a reset is sent only when the bytes before it have been read or fit the receiver's kernel, and where it may overtake
//! bytes the reader says so (`ReadCut`).

use crate::script::Case;
use crate::script::Step::{
    self, Banner, Close, Duplex, Fin, Hear, Mark, Options, Pause, Ping, Pong, Push, Read, ReadCut,
    ReadEnd, ReadSlowly, Reset, Send, SendFin, Tell, Trickle, Unread, Urgent,
};

const K: usize = 1 << 10;
const M: usize = 1 << 20;

/// All cases, under unique names.
pub(crate) fn matrix() -> Vec<Case> {
    let mut matrix = Matrix::default();
    matrix.exchanges();
    matrix.half_closes();
    matrix.closes();
    matrix.resets();
    matrix.resets_behind_ends();
    matrix.unread();
    matrix.slow();
    matrix.urgent();
    matrix.timed();
    matrix.refused();
    matrix.cases
}

#[derive(Default)]
struct Matrix {
    cases: Vec<Case>,
}

/// The bytes in two halves, with the cut of the third way between them.
fn cut(len: usize) -> [Step; 3] {
    [Send(len / 2), Mark, Send(len - len / 2)]
}

fn size(len: usize) -> String {
    match len {
        0..K => len.to_string(),
        K..M => format!("{}k", len / K),
        _ => format!("{}M", len / M),
    }
}

/// Sizes of both directions; the largest only alone.
fn sizes() -> impl Iterator<Item = (usize, usize)> {
    let small = [0, 1, 64 * K, M];
    let pairs = small.into_iter().flat_map(move |a| small.map(|b| (a, b)));
    pairs.chain([(8 * M, 0), (0, 8 * M)])
}

impl Matrix {
    fn add(
        &mut self,
        name: impl Into<String>,
        client: impl Into<Vec<Step>>,
        server: impl Into<Vec<Step>>,
    ) {
        self.cases.push(Case {
            name: name.into(),
            client: client.into(),
            server: Some(server.into()),
        });
    }

    /// The case and its mirror image.
    fn both(&mut self, name: &str, one: impl Into<Vec<Step>>, other: impl Into<Vec<Step>>) {
        let (one, other) = (one.into(), other.into());
        self.add(format!("client {name}"), one.clone(), other.clone());
        self.add(format!("server {name}"), other, one);
    }

    fn exchanges(&mut self) {
        for (a, b) in sizes() {
            let (up, down) = (size(a), size(b));
            let [first, mark, rest] = cut(a);
            self.add(
                format!("request {up}, half-close, reply {down}"),
                [first, mark, rest, Fin, ReadEnd, Close],
                [ReadEnd, Send(b), Close],
            );
            let [first, mark, rest] = cut(b);
            self.add(
                format!("server speaks {down} and half-closes, then client {up}"),
                [ReadEnd, Send(a), Close],
                [first, mark, rest, Fin, ReadEnd, Close],
            );
            self.add(
                format!("{up} and {down} at once"),
                [Duplex(a), Close],
                [Duplex(b), Close],
            );
        }
        for a in [1, 64 * K, M] {
            for b in [1, 64 * K, M] {
                let (up, down) = (size(a), size(b));
                self.add(
                    format!("request {up}, reply {down}, client closes"),
                    [Send(a), Read(b), Mark, Close],
                    [Read(a), Send(b), ReadEnd, Close],
                );
                let [first, mark, rest] = cut(a);
                self.add(
                    format!("request {up}, reply {down}, server closes"),
                    [first, mark, rest, Read(b), ReadEnd, Close],
                    [Read(a), Send(b), Close],
                );
            }
        }
        self.both(
            "sends byte by byte",
            [Trickle(100), Mark, Trickle(100), Fin, ReadEnd],
            [ReadEnd, Fin],
        );
        self.both(
            "sets its options",
            [Options, Send(1000), Mark, Fin, ReadEnd, Close],
            [ReadEnd, Send(1000), Close],
        );
    }

    fn half_closes(&mut self) {
        for a in [1, 1000, 64 * K] {
            for b in [1, 1000, 64 * K] {
                let name = format!("FIN in the segment of the last bytes, {a} and {b}");
                self.add(
                    name,
                    [Mark, SendFin(a), ReadEnd],
                    [ReadEnd, SendFin(b), Close],
                );
            }
        }
        for a in [0, 1, 64 * K] {
            for b in [0, 1, 64 * K] {
                self.add(
                    format!("both half-close at once behind {} and {}", size(a), size(b)),
                    [Send(a), Read(b), Mark, Tell, Hear, Fin, ReadEnd],
                    [Send(b), Read(a), Tell, Hear, Fin, ReadEnd],
                );
            }
        }
        self.both(
            "half-closes and waits for a late reply",
            [Send(1), Mark, Fin, ReadEnd],
            [ReadEnd, Pause, Send(M), Close],
        );
        self.both(
            "half-closes, idles, and goes on reading",
            [Fin, Read(1), Mark, Pause, Read(M), ReadEnd],
            [ReadEnd, Send(1), Pause, Send(M), Fin],
        );
    }

    fn closes(&mut self) {
        self.both("closes at once", [Close], [Mark, ReadEnd, Close]);
        self.both(
            "closes at its mark",
            [Hear, Mark, Close],
            [Tell, ReadEnd, Close],
        );
        self.add("both close at once", [Mark, Close], [Close]);
        self.both(
            "half-closes an empty connection",
            [Mark, Fin, ReadEnd],
            [ReadEnd, Close],
        );
        for len in [1, 64 * K, 8 * M] {
            let [first, mark, rest] = cut(len);
            self.both(
                &format!("closes at once behind {}", size(len)),
                [first, mark, rest, Close],
                [ReadEnd, Close],
            );
        }
    }

    fn resets(&mut self) {
        for len in [0, 1, 1000, 64 * K, M, 8 * M] {
            let [first, mark, rest] = cut(len);
            self.both(
                &format!("resets when {} were read", size(len)),
                [first, mark, rest, Hear, Reset],
                [Read(len), Tell, ReadEnd],
            );
        }
        for len in [1, 1000, 16 * K, 32 * K] {
            self.both(
                &format!("resets right behind {}", size(len)),
                [Hear, Mark, Send(len), Reset],
                [Tell, ReadEnd],
            );
        }
        for len in [M, 8 * M] {
            let [first, mark, rest] = cut(len);
            self.both(
                &format!("resets in the middle of {}", size(len)),
                [Hear, first, mark, rest, Reset],
                [Tell, Read(1000), ReadCut],
            );
        }
        for len in [0, 1, 64 * K] {
            self.both(
                &format!("resets instead of a reply to {}", size(len)),
                [ReadEnd, Mark, Reset],
                [Send(len), Fin, ReadEnd],
            );
        }
        for len in [1, 1000, M] {
            self.both(
                &format!("resets in its reply, behind {}", size(len)),
                [ReadEnd, Send(len), Mark, Hear, Reset],
                [Send(1), Fin, Read(len), Tell, ReadEnd],
            );
        }
    }

    fn resets_behind_ends(&mut self) {
        for len in [0, 1, 64 * K, M] {
            let [first, mark, rest] = cut(len);
            self.both(
                &format!("resets when {} and its end were read", size(len)),
                [first, mark, rest, Fin, Hear, Reset],
                [ReadEnd, Tell, Push],
            );
        }
        for len in [0, 1, 16 * K] {
            self.both(
                &format!("resets right behind {} and its end", size(len)),
                [Hear, Mark, Send(len), Fin, Reset],
                [Tell, ReadEnd, Push],
            );
        }
    }

    fn unread(&mut self) {
        for len in [1, 1000, 64 * K] {
            let name = size(len);
            self.both(
                &format!("closes with {name} unread"),
                [Unread, Mark, Close],
                [Send(len), ReadEnd],
            );
            if len > 1 {
                self.both(
                    &format!("reads half of {name} and closes"),
                    [Read(len / 2), Unread, Mark, Close],
                    [Send(len), ReadEnd],
                );
            }
        }
        for len in [1, 64 * K, M] {
            self.both(
                &format!("reads {} of an endless stream and closes", size(len)),
                [Read(len), Mark, Close],
                [Push],
            );
        }
        for len in [1, 1000, 16 * K] {
            // The writer's own failed write takes the reset; a plain read finds the reply and then an end.
            self.both(
                &format!("refuses an upload early with {} and closes", size(len)),
                [Read(1000), Send(len), Unread, Mark, Close],
                [Push, ReadEnd],
            );
        }
        for len in [1000, M] {
            self.both(
                &format!("refuses an upload early with {} and drains", size(len)),
                [Read(1000), Send(len), Fin, Mark, ReadEnd, Close],
                [Duplex(8 * M), Close],
            );
        }
    }

    fn slow(&mut self) {
        for len in [64 * K, M, 8 * M] {
            let [first, mark, rest] = cut(len);
            self.both(
                &format!("closes at once behind {} for a slow reader", size(len)),
                [first, mark, rest, Close],
                [ReadSlowly, Close],
            );
        }
    }

    fn urgent(&mut self) {
        self.both(
            "sends an urgent byte first",
            [Urgent, Mark, Send(2), Fin, ReadEnd],
            [ReadEnd, Fin],
        );
        self.both(
            "sends an urgent byte in the middle",
            [Send(3), Mark, Urgent, Send(2), Fin, ReadEnd],
            [ReadEnd, Fin],
        );
        self.both(
            "sends an urgent byte last",
            [Send(3), Mark, Urgent, Fin, ReadEnd],
            [ReadEnd, Fin],
        );
        self.both(
            "sends two urgent bytes",
            [
                Send(3),
                Urgent,
                Mark,
                Send(3),
                Urgent,
                Send(1),
                Fin,
                ReadEnd,
            ],
            [ReadEnd, Fin],
        );
        self.both(
            "sends an urgent byte behind 64k",
            [Send(64 * K), Urgent, Mark, Send(64 * K), Fin, ReadEnd],
            [ReadEnd, Fin],
        );
    }

    fn timed(&mut self) {
        for (rounds, len) in [(1000, 1), (100, 1000), (20, 64 * K)] {
            self.both(
                &format!("plays ping-pong, {rounds} times {}", size(len)),
                [Options, Ping(rounds, len), Fin, ReadEnd],
                [Options, Pong(rounds, len), ReadEnd, Close],
            );
        }
        for len in [1, 1000, 64 * K] {
            self.add(
                format!("banner of {}", size(len)),
                [Banner(len), Mark, Close],
                [Send(len), ReadEnd, Close],
            );
        }
    }

    fn refused(&mut self) {
        let scripts: [(&str, &[Step]); 4] = [
            ("silent", &[Mark, ReadEnd]),
            ("with a byte", &[Send(1), Mark, ReadEnd]),
            ("with 32k", &[Send(32 * K), Mark, ReadEnd]),
            ("half-closed", &[SendFin(1000), Mark, ReadEnd]),
        ];
        for (name, client) in scripts {
            self.cases.push(Case {
                name: format!("refused, {name}"),
                client: client.into(),
                server: None,
            });
        }
    }
}
