//! What a node tells about itself on its sockets, kept up as its parts come and move.

use std::net::SocketAddr;
use std::sync::Arc;

use keel_control::enroll::NodeInfo;
use keel_control::routes::ReportContext;
use keel_control::syncer::PeerStates;
use keel_fabric::quic::{HostPort, ListenAddr};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Writes what the node tells. Clones write the same.
#[derive(Clone)]
pub(super) struct About {
    /// What is told.
    pub(super) info: watch::Sender<Arc<NodeInfo>>,
    /// Where the APIServer listens, as asked for.
    pub(super) listen: ListenAddr,
    /// The Router as other nodes reach it, as given.
    pub(super) hosts: Vec<HostPort>,
    /// Where the APIServer is reached from this machine.
    pub(super) addr: SocketAddr,
}

impl About {
    /// Tells where the APIServer is, and the Router if it is known.
    pub(super) fn tell(&self, router: Option<&ReportContext>) {
        let (token_endpoint, unreachable) = self.endpoint(router);
        let routers = router.map(|router| &router.node_addresses);
        self.change(|info| NodeInfo {
            apiserver: format!("https://{}", self.addr),
            routers: routers
                .into_iter()
                .flatten()
                .map(ToString::to_string)
                .collect(),
            token_endpoint,
            unreachable,
            ..info.clone()
        });
    }

    /// Tells where the Router is whenever it moves.
    pub(super) async fn follow_router(
        self,
        router: watch::Receiver<Arc<ReportContext>>,
        stop: CancellationToken,
    ) {
        follow(router, stop, |router| self.tell(Some(router))).await;
    }

    /// Tells how it goes with each peer.
    pub(super) async fn follow_peers(
        self,
        peers: watch::Receiver<PeerStates>,
        stop: CancellationToken,
    ) {
        follow(peers, stop, |states| {
            let peers = states.iter().map(Into::into).collect();
            self.change(|info| NodeInfo {
                peers: Some(peers),
                ..info.clone()
            });
        })
        .await;
    }

    fn change(&self, change: impl FnOnce(&NodeInfo) -> NodeInfo) {
        self.info.send_modify(|info| *info = Arc::new(change(info)));
    }

    /// The first advertised host with the APIServer's port, or why there is none.
    fn endpoint(&self, router: Option<&ReportContext>) -> (Option<String>, Option<String>) {
        if self.listen.ip().is_some_and(|ip| ip.is_loopback()) {
            let why = format!(
                "the APIServer listens on {} only, so nobody can join from another machine: start the node with --apiserver-listen 0.0.0.0:7443",
                self.listen
            );
            return (None, Some(why));
        }
        let spoken = router.and_then(|router| router.plan.addresses.first());
        if let Some(host) = self.hosts.first().or(spoken) {
            let host = host.host();
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.to_owned()
            };
            return (Some(format!("{host}:{}", self.addr.port())), None);
        }
        match self.listen.ip().filter(|ip| !ip.is_unspecified()) {
            Some(ip) => (
                Some(SocketAddr::new(ip, self.addr.port()).to_string()),
                None,
            ),
            None => {
                let why = "this node does not know how others reach it: start it with --advertise HOST:7000".to_owned();
                (None, Some(why))
            }
        }
    }
}

/// Calls `tell` now and at every change, until `stop`.
async fn follow<T: Clone>(
    mut from: watch::Receiver<T>,
    stop: CancellationToken,
    mut tell: impl FnMut(&T),
) {
    loop {
        let now = from.borrow_and_update().clone();
        tell(&now);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = from.changed() => if changed.is_err() {
                // The other part ended first: what it said stays.
                return stop.cancelled().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(listen: &str, hosts: &[&str]) -> (Option<String>, Option<String>) {
        let first = NodeInfo {
            node: "a".parse().unwrap(),
            cluster: "c".parse().unwrap(),
            trust_domain: "t".parse().unwrap(),
            apiserver: String::new(),
            routers: Vec::new(),
            token_endpoint: None,
            unreachable: None,
            peers: None,
        };
        let about = About {
            info: watch::Sender::new(Arc::new(first)),
            listen: listen.parse().unwrap(),
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            addr: "127.0.0.1:7443".parse().unwrap(),
        };
        about.endpoint(None)
    }

    #[test]
    fn a_token_points_at_the_first_advertised_host_with_the_port_of_the_apiserver() {
        assert_eq!(
            endpoint("0.0.0.0:7443", &["a.example.net:7000", "b:1"])
                .0
                .unwrap(),
            "a.example.net:7443"
        );
        assert_eq!(
            endpoint(":7443", &["[2001:db8::1]:7000"]).0.unwrap(),
            "[2001:db8::1]:7443"
        );
        assert_eq!(endpoint("192.0.2.1:7443", &[]).0.unwrap(), "192.0.2.1:7443");
    }

    #[test]
    fn a_node_that_nobody_reaches_says_why_and_what_to_do() {
        let (none, why) = endpoint("127.0.0.1:7443", &["a.example.net:7000"]);
        assert!(none.is_none() && why.unwrap().contains("--apiserver-listen"));
        let (none, why) = endpoint("0.0.0.0:7443", &[]);
        assert!(none.is_none() && why.unwrap().contains("--advertise"));
    }
}
