//! Keeps the table of names in step with the addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use keel_certs::Namespace;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::handler::DnsView;
use super::names::{NameTable, NamedMapping};
use crate::discovery::Known;
use crate::listener::MappingState;
use crate::spec::{MappedService, ServiceRef};

/// What the names are made of and does not change.
#[derive(Debug, Clone)]
pub struct NameSources {
    /// The mappings.
    pub mapped: Vec<MappedService>,
    /// The own namespace.
    pub namespace: Namespace,
    /// Own zones besides the usual one.
    pub zones: Vec<String>,
    /// Search domains of the resolv.conf.
    pub search: Vec<String>,
}

impl NameSources {
    /// The names of the mappings at their `addresses`; the second value lists the names that none owns.
    pub fn table(&self, addresses: &BTreeMap<ServiceRef, IpAddr>) -> (NameTable, Vec<String>) {
        let mut aliases: BTreeMap<&ServiceRef, BTreeSet<_>> = BTreeMap::new();
        for one in &self.mapped {
            aliases
                .entry(&one.target)
                .or_default()
                .extend(one.alias.clone());
        }
        let named: Vec<NamedMapping> = aliases
            .into_iter()
            .filter_map(|(target, aliases)| {
                Some(NamedMapping {
                    target: target.clone(),
                    aliases,
                    address: *addresses.get(target)?,
                })
            })
            .collect();
        NameTable::build(&named, &self.namespace, &self.zones, &self.search)
    }

    /// Rebuilds the table at every change of an address until `stop`.
    pub async fn follow(
        self,
        mut states: watch::Receiver<Arc<Vec<MappingState>>>,
        mut known: watch::Receiver<Known>,
        view: watch::Sender<DnsView>,
        stop: CancellationToken,
    ) {
        let mut said = Vec::new();
        loop {
            let addresses = states
                .borrow_and_update()
                .iter()
                .map(|state| (state.target.clone(), state.address))
                .collect();
            let synced = known.borrow_and_update().synced;
            let (names, ambiguous) = self.table(&addresses);
            if ambiguous != said {
                for name in &ambiguous {
                    tracing::warn!(
                        "several mappings have the name {name}, so it leads to none; use a longer name or an alias"
                    );
                }
                said = ambiguous;
            }
            view.send_if_modified(|old| {
                let changed = *old.names != names || old.synced != synced;
                if changed {
                    *old = DnsView {
                        names: Arc::new(names),
                        synced,
                    };
                }
                changed
            });
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Ok(()) = states.changed() => {}
                Ok(()) = known.changed() => {}
                else => return,
            }
        }
    }
}
