//! Which ports of which services are listened on, from what was asked for and what providers offer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admin::Ready;
use crate::directory::Directory;
use crate::listener::Listeners;
use crate::spec::{MappedService, Port, ServiceRef};

/// How often ports that could not be opened are tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The ports to listen on. A port without a number in the mapping appears with its first provider and then stays for as
/// long as the mapping, so that a provider that comes back finds its listener.
#[derive(Debug)]
pub(crate) struct Mapper {
    mapped: Vec<MappedService>,
    seen: BTreeMap<ServiceRef, BTreeSet<Port>>,
}

impl Mapper {
    /// Nothing was seen yet.
    pub(crate) fn new(mapped: &[MappedService]) -> Self {
        Self {
            mapped: mapped.to_vec(),
            seen: BTreeMap::new(),
        }
    }

    /// What is to be listened on, now that this is known.
    pub(crate) fn wanted(&mut self, directory: &Directory) -> BTreeMap<ServiceRef, BTreeSet<Port>> {
        for one in &self.mapped {
            let ports = self.seen.entry(one.target.clone()).or_default();
            let protocol = one.protocol;
            let port = |number| Port { number, protocol };
            match one.port {
                Some(number) => _ = ports.insert(port(number)),
                None => {
                    let offered = directory.ports(&one.target, protocol);
                    ports.extend(offered.into_iter().map(port));
                }
            }
        }
        self.seen.clone()
    }

    /// Keeps the listeners as they should be until `stop`, and gives them back then. Nobody is ready while none of them works.
    pub(crate) async fn run(
        mut self,
        mut listeners: Listeners,
        mut directory: watch::Receiver<Arc<Directory>>,
        ready: Ready,
        stop: CancellationToken,
    ) -> Listeners {
        let mut waiting = None;
        loop {
            let now = directory.borrow_and_update().clone();
            listeners.reconcile(&self.wanted(&now));
            waiting = match listeners.are_useless() {
                true => waiting.or_else(|| Some(ready.wait_for("listeners"))),
                false => None,
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return listeners,
                changed = directory.changed() => if changed.is_err() {
                    stop.cancelled().await;
                    return listeners;
                },
                () = tokio::time::sleep(RETRY), if listeners.has_failures() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::tests::{router, serving, target};
    use crate::spec::parse_mapped;

    #[test]
    fn a_named_port_is_there_at_once_and_others_with_their_first_provider() {
        let mapped = parse_mapped(
            "mysql,redis:6379,dns:53/udp,ntp/udp",
            &"default".parse().unwrap(),
        )
        .unwrap();
        let mut mapper = Mapper::new(&mapped);
        let none = mapper.wanted(&Directory::default());
        assert_eq!(
            none[&target("redis.default")],
            BTreeSet::from([Port::tcp(6379)])
        );
        assert!(none[&target("mysql.default")].is_empty());
        assert_eq!(
            none[&target("dns.default")],
            BTreeSet::from([Port::udp(53)])
        );
        assert!(none[&target("ntp.default")].is_empty());
        let own = "a".parse().unwrap();
        let serving = router(
            "b",
            serving("east", &["b:7000"], "mysql", 3306, &["/node/b"]),
        );
        assert_eq!(
            mapper.wanted(&Directory::build(&own, [&serving]))[&target("mysql.default")],
            BTreeSet::from([Port::tcp(3306)])
        );
        let after = mapper.wanted(&Directory::default());
        assert_eq!(
            after[&target("mysql.default")],
            BTreeSet::from([Port::tcp(3306)]),
            "it stays when the provider goes"
        );
    }
}
