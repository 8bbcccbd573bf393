//! A piece of network between two ends that can be made to lose everything, one way or both, while it runs; or that is
//! slow, or bad, all the time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use keel_fabric::link::RouterPeer;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::world::RunningRouter;

/// How packets fare towards the router, and from there.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Line {
    /// Bytes per second, with a queue of so many packets; what finds it full is lost.
    pub(crate) rate: Option<(u32, usize)>,
    /// Of a thousand packets so many are lost, chosen by the seed.
    pub(crate) lost: u64,
    /// Of a thousand packets so many come this much later, behind others.
    pub(crate) late: (u64, Duration),
    pub(crate) seed: u64,
}

pub(crate) struct Relay {
    /// The router as it is reached through here.
    pub(crate) peer: RouterPeer,
    passes: Arc<Passes>,
    _tasks: JoinSet<()>,
}

struct Passes {
    up: AtomicBool,
    down: AtomicBool,
    /// The next packet of a handshake ends the way down.
    handshake_cuts: AtomicBool,
    /// Packets of handshakes do not pass; how many did not.
    no_handshakes: AtomicBool,
    handshakes_lost: AtomicUsize,
    /// Packets that went through, either way.
    carried: AtomicI64,
}

impl Relay {
    pub(crate) async fn to(router: &RunningRouter) -> Self {
        Self::over(router, Line::default()).await
    }

    pub(crate) async fn over(router: &RunningRouter, line: Line) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let peer = RouterPeer {
            node: router.peer.node.clone(),
            addresses: vec![socket.local_addr().unwrap().into()],
        };
        let passes = Arc::new(Passes {
            up: true.into(),
            down: true.into(),
            handshake_cuts: false.into(),
            no_handshakes: false.into(),
            handshakes_lost: 0.into(),
            carried: 0.into(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(carry(socket, router.addr, Arc::clone(&passes), line));
        Self {
            peer,
            passes,
            _tasks: tasks,
        }
    }

    /// Which directions pass from now on; `up` is towards the router.
    pub(crate) fn pass(&self, up: bool, down: bool) {
        self.passes.up.store(up, Ordering::Relaxed);
        self.passes.down.store(down, Ordering::Relaxed);
    }

    /// Lets nothing come down any more once another connection is dialled through here.
    pub(crate) fn cut_by_handshake(&self) {
        self.passes.handshake_cuts.store(true, Ordering::Relaxed);
    }

    /// Lets no other connection be made through here; those that stand are carried.
    pub(crate) fn lose_handshakes(&self) {
        self.passes.no_handshakes.store(true, Ordering::Relaxed);
    }

    /// How many packets that has cost.
    pub(crate) fn handshakes_lost(&self) -> usize {
        self.passes.handshakes_lost.load(Ordering::Relaxed)
    }

    /// How many packets have gone through. Two ends that have nothing to say send none.
    pub(crate) fn carried(&self) -> i64 {
        self.passes.carried.load(Ordering::Relaxed)
    }

    /// Whether what comes down passes.
    pub(crate) fn passes_down(&self) -> bool {
        self.passes.down.load(Ordering::Relaxed)
    }
}

/// One direction of a line towards one socket.
struct Way {
    line: Line,
    random: u64,
    queue: mpsc::Sender<Vec<u8>>,
}

impl Way {
    fn new(
        line: Line,
        to: (Arc<UdpSocket>, SocketAddr),
        passes: &Arc<Passes>,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(line.rate.map_or(1024, |(_, packets)| packets));
        tasks.spawn(drive(line, waiting, to, Arc::clone(passes)));
        Self {
            line,
            random: line.seed.wrapping_mul(2).wrapping_add(1),
            queue,
        }
    }

    /// Whether a chance of so many in a thousand comes true.
    fn chance(&mut self, of_thousand: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < of_thousand
    }

    fn take(&mut self, packet: &[u8], tasks: &mut JoinSet<()>) {
        if self.chance(self.line.lost) {
            return;
        }
        let (queue, packet) = (self.queue.clone(), packet.to_vec());
        let (late, by) = self.line.late;
        if self.chance(late) {
            tasks.spawn(async move {
                tokio::time::sleep(by).await;
                // What finds the queue full is lost.
                let _ = queue.try_send(packet);
            });
        } else {
            let _ = queue.try_send(packet);
        }
    }
}

/// Sends what waits, as fast as the line is.
async fn drive(
    line: Line,
    mut waiting: mpsc::Receiver<Vec<u8>>,
    (to, address): (Arc<UdpSocket>, SocketAddr),
    passes: Arc<Passes>,
) {
    let mut free = Instant::now();
    while let Some(packet) = waiting.recv().await {
        // A lost packet is what a network does.
        let _ = to.send_to(&packet, address).await;
        passes.carried.fetch_add(1, Ordering::Relaxed);
        if let Some((rate, _)) = line.rate {
            let takes = Duration::from_secs(1).mul_f64(packet.len() as f64 / f64::from(rate));
            free = free.max(Instant::now()) + takes;
            tokio::time::sleep_until(free).await;
        }
    }
}

async fn carry(near: Arc<UdpSocket>, router: SocketAddr, passes: Arc<Passes>, line: Line) {
    let mut far: HashMap<SocketAddr, Way> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut packet = vec![0; 65_536];
    loop {
        let Ok((len, client)) = near.recv_from(&mut packet).await else {
            continue;
        };
        let way = match far.entry(client) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                let far = (Arc::clone(&socket), router);
                let way = Way::new(line, far, &passes, &mut tasks);
                let near = (Arc::clone(&near), client);
                let down = Way::new(line, near, &passes, &mut tasks);
                tasks.spawn(back(socket, down, Arc::clone(&passes)));
                new.insert(way)
            }
        };
        while tasks.try_join_next().is_some() {}
        // A long header (RFC 9000 section 17.2).
        let handshake = packet[0] & 0x80 != 0;
        if handshake && passes.no_handshakes.load(Ordering::Relaxed) {
            passes.handshakes_lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        if handshake && passes.handshake_cuts.swap(false, Ordering::Relaxed) {
            passes.down.store(false, Ordering::Relaxed);
        }
        if passes.up.load(Ordering::Relaxed) {
            way.take(&packet[..len], &mut tasks);
        }
    }
}

async fn back(far: Arc<UdpSocket>, mut way: Way, passes: Arc<Passes>) {
    let mut tasks = JoinSet::new();
    let mut packet = vec![0; 65_536];
    loop {
        // An error is that of a packet before: nobody listened there.
        if let Ok(len) = far.recv(&mut packet).await
            && passes.down.load(Ordering::Relaxed)
        {
            while tasks.try_join_next().is_some() {}
            way.take(&packet[..len], &mut tasks);
        }
    }
}
