//! A piece of network between two ends that can be made to lose everything, one way or both, while it runs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keel_fabric::link::RouterPeer;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::world::RunningRouter;

pub(crate) struct Relay {
    /// The router as it is reached through here.
    pub(crate) peer: RouterPeer,
    passes: Arc<Passes>,
    _tasks: JoinSet<()>,
}

struct Passes {
    up: AtomicBool,
    down: AtomicBool,
}

impl Relay {
    pub(crate) async fn to(router: &RunningRouter) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let peer = RouterPeer {
            node: router.peer.node.clone(),
            addresses: vec![socket.local_addr().unwrap().into()],
        };
        let passes = Arc::new(Passes {
            up: true.into(),
            down: true.into(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(carry(socket, router.addr, Arc::clone(&passes)));
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
}

async fn carry(near: Arc<UdpSocket>, router: SocketAddr, passes: Arc<Passes>) {
    let mut far: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut packet = vec![0; 65_536];
    loop {
        let Ok((len, client)) = near.recv_from(&mut packet).await else {
            continue;
        };
        let socket = match far.entry(client) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                socket.connect(router).await.unwrap();
                let (far, near) = (Arc::clone(&socket), Arc::clone(&near));
                tasks.spawn(back(far, near, client, Arc::clone(&passes)));
                new.insert(socket)
            }
        };
        if passes.up.load(Ordering::Relaxed) {
            // A lost packet is what a network does.
            let _ = socket.send(&packet[..len]).await;
        }
    }
}

async fn back(far: Arc<UdpSocket>, near: Arc<UdpSocket>, client: SocketAddr, passes: Arc<Passes>) {
    let mut packet = vec![0; 65_536];
    loop {
        // An error is that of a packet before: nobody listened there.
        if let Ok(len) = far.recv(&mut packet).await
            && passes.down.load(Ordering::Relaxed)
        {
            let _ = near.send_to(&packet[..len], client).await;
        }
    }
}
