//! What an application does with its connection, and what it can see of it.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256};

/// One thing that an application does. What each leaves in the record is written behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Writes the next bytes of its pattern: `sent n`, or `broke`.
    Send(usize),
    /// As `Send`, byte by byte.
    Trickle(usize),
    /// Writes and half-closes so that FIN is in the segment of the last bytes: `sent n+fin`.
    SendFin(usize),
    /// One urgent byte.
    Urgent,
    /// Half-closes.
    Fin,
    /// Reads so many bytes: `n:hash`, or how it ended before.
    Read(usize),
    /// Reads to the end: `n:hash eof` or `n:hash reset`.
    ReadEnd,
    /// Reads to the end, later and in small pieces.
    ReadSlowly,
    /// Reads to a reset that may overtake bytes: `prefix reset`, whatever the length. Nothing else is normalised.
    ReadCut,
    /// Writes so many bytes and half-closes; reads to the end meanwhile.
    Duplex(usize),
    /// Writes so many bytes and reads so many meanwhile: `sent n; n:hash`, or how it ended before.
    Exchange(usize, usize),
    /// Writes until that fails: `broke`.
    Push,
    /// Waits until bytes lie in the kernel, and leaves them there.
    Unread,
    /// Waits until so many bytes lie in the kernel, and leaves them there.
    Lie(usize),
    /// So many round trips of so many bytes: `quick`, or the median if it is long.
    Ping(usize, usize),
    /// The other side of `Ping`.
    Pong(usize, usize),
    /// Waits for the first byte, and measures from the connect: `quick` or the time.
    Banner(usize),
    /// Sets the options that applications set.
    Options,
    /// Small writes leave at once.
    NoDelay,
    /// Tells the other application something, beside the connection.
    Tell,
    /// Waits until the other application has told.
    Hear,
    /// Does nothing for a while.
    Pause,
    /// Does nothing for so many milliseconds.
    Rest(u64),
    /// In the third way, the leg is cut here.
    Mark,
    /// Closes.
    Close,
    /// Closes with a reset.
    Reset,
}

/// One case: a script for either side; without one for the server, nobody listens.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) client: Vec<Step>,
    pub(crate) server: Option<Vec<Step>>,
}

/// What one application saw, in order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Record(Vec<String>);

impl Record {
    pub(crate) fn add(&mut self, what: impl Into<String>) {
        self.0.push(what.into());
    }

    pub(crate) fn has(&self, what: &str) -> bool {
        self.0.iter().any(|seen| seen.contains(what))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// The bytes that were read since the last word on them.
pub(crate) struct Tally {
    context: Context,
    pub(crate) len: usize,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            context: Context::new(&SHA256),
            len: 0,
        }
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.len += bytes.len();
    }

    /// Length and the start of the hash.
    pub(crate) fn close(self) -> String {
        let hash = self.context.finish();
        let start: String = hash.as_ref()[..4]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{}:{start}", self.len)
    }
}

/// The two sides write different patterns. The period is a prime, so that a shift shows.
pub(crate) fn pattern(side: usize, offset: usize, out: &mut [u8]) {
    const PERIOD: usize = 65_521;
    let mut state = (offset % PERIOD) as u32;
    for byte in out {
        let mixed = (state + 1 + 7919 * side as u32).wrapping_mul(0x9e37_79b1);
        *byte = (mixed >> 23) as u8;
        state = if state as usize + 1 == PERIOD {
            0
        } else {
            state + 1
        };
    }
}
