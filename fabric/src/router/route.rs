//! Who is published here, and where a request goes. Pure: no IO, no clock.

use std::collections::BTreeMap;
use std::time::SystemTime;

use keel_certs::{ServiceId, Subject};

use crate::provider::Backend;
use crate::wire::{Health, Offer, Protocol, RefuseCode};

/// What a publication is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ServiceKey {
    pub(super) service: ServiceId,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

/// One provider of a service.
#[derive(Debug, Clone)]
pub(super) struct Provider<C> {
    /// Where its flows go.
    pub(super) connection: C,
    /// Tells connections of the same identity apart; a newer one has a higher number.
    pub(super) connection_id: u64,
    /// Tells processes of the same identity apart, if they say so.
    pub(super) instance: Option<u64>,
    /// Since when it is published without a break.
    pub(super) since: SystemTime,
    /// How it wants to be chosen.
    pub(super) offer: Offer,
    /// It owes answers and gives none.
    pub(super) silent: bool,
}

/// A backend that the router dials itself.
#[derive(Debug, Clone)]
struct Own {
    backend: Backend,
    since: SystemTime,
    offer: Offer,
}

/// All publications at this router, and the backends that it dials itself.
#[derive(Debug)]
pub(super) struct Table<C> {
    node: Subject,
    /// Of the processes that call themselves alike, in the order of their connections: the last one gets the flows, and the others
    /// are there when it goes.
    published: BTreeMap<ServiceKey, BTreeMap<Subject, Vec<Provider<C>>>>,
    /// The newest connection over which each identity has published something, also if it has withdrawn all since.
    connected: BTreeMap<Subject, (u64, C)>,
    own: BTreeMap<ServiceKey, Own>,
}

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<C> {
    /// To the end of flows that this router is itself, with the backend that it dials for the service; without one only a
    /// flow that runs goes on.
    Own(Option<Backend>),
    /// To a provider's connection.
    Provider(C),
}

/// A request, as far as its way depends on it.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) service: &'a ServiceId,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) provider: &'a Subject,
    /// The provider may have the flow already. Then it gets the leg also if it does not publish the service any more:
    /// what was withdrawn takes no new flows, but those that run go on.
    pub(super) known: bool,
}

impl<C: Clone> Table<C> {
    pub(super) const fn new(node: Subject) -> Self {
        Self {
            node,
            published: BTreeMap::new(),
            connected: BTreeMap::new(),
            own: BTreeMap::new(),
        }
    }

    /// Publishes; a publication of the same process for the same key is replaced, keeping its age. That of a newer
    /// connection stays: what an older one says came late, and its process has left it. Whether another process that calls itself
    /// alike publishes it, too.
    pub(super) fn publish(
        &mut self,
        key: ServiceKey,
        identity: Subject,
        mut provider: Provider<C>,
    ) -> bool {
        let (id, instance) = (provider.connection_id, provider.instance);
        let newest = self.connected.get(&identity);
        if newest.is_none_or(|(newest, _)| *newest <= id) {
            self.connected
                .insert(identity.clone(), (id, provider.connection.clone()));
        }
        let alike = self
            .published
            .entry(key)
            .or_default()
            .entry(identity)
            .or_default();
        if let Some(at) = alike.iter().position(|other| other.instance == instance) {
            if alike[at].connection_id > id {
                return false;
            }
            let old = alike.remove(at);
            provider.since = old.since;
            provider.silent |= old.silent && old.connection_id == id;
        }
        let at = alike.partition_point(|other| other.connection_id < id);
        alike.insert(at, provider);
        alike.len() > 1
    }

    /// The connections over which processes with this identity publish `key`, and do not get its flows.
    pub(super) fn alike(&self, key: &ServiceKey, identity: &Subject) -> impl Iterator<Item = &C> {
        let all = self.published.get(key).and_then(|all| all.get(identity));
        let all = all.map_or(&[][..], |all| &all[..all.len().saturating_sub(1)]);
        all.iter().map(|provider| &provider.connection)
    }

    /// A provider of `key` that is vouched for by another node than `identity`.
    pub(super) fn on_another_node(&self, key: &ServiceKey, identity: &Subject) -> Option<&Subject> {
        let elsewhere = |other: &&Subject| other.node() != identity.node();
        let own = self
            .own
            .contains_key(key)
            .then_some(&self.node)
            .filter(elsewhere);
        own.or_else(|| self.published.get(key)?.keys().find(elsewhere))
    }

    /// Withdraws, unless another connection of the same process has taken over. Returns whether something changed for new flows, which
    /// go to the process before, if there is one that is alive.
    pub(super) fn withdraw(
        &mut self,
        key: &ServiceKey,
        identity: &Subject,
        connection_id: u64,
        is_alive: impl Fn(&C) -> bool,
    ) -> bool {
        let Some(providers) = self.published.get_mut(key) else {
            return false;
        };
        let Some(alike) = providers.get_mut(identity) else {
            return false;
        };
        let Some(at) = alike
            .iter()
            .position(|provider| provider.connection_id == connection_id)
        else {
            return false;
        };
        alike.remove(at);
        let had_the_flows = at == alike.len();
        while had_the_flows && alike.last().is_some_and(|next| !is_alive(&next.connection)) {
            alike.pop();
        }
        if alike.is_empty() {
            providers.remove(identity);
        }
        if providers.is_empty() {
            self.published.remove(key);
        }
        had_the_flows
    }

    /// Notes whether a connection of `identity` answers. What another one of it publishes is left alone.
    pub(super) fn set_silent(&mut self, identity: &Subject, connection_id: u64, silent: bool) {
        for providers in self.published.values_mut() {
            let alike = providers.get_mut(identity).into_iter().flatten();
            for provider in alike.filter(|provider| provider.connection_id == connection_id) {
                provider.silent = silent;
            }
        }
    }

    /// The connection of `identity` has ended, and everything that it published is withdrawn.
    pub(super) fn gone(&mut self, identity: &Subject, connection_id: u64) {
        let newest = self.connected.get(identity);
        if newest.is_some_and(|(id, _)| *id == connection_id) {
            self.connected.remove(identity);
        }
    }

    /// Replaces the backends that this router dials itself.
    pub(super) fn set_own(
        &mut self,
        backends: impl Iterator<Item = (ServiceKey, Backend, Offer)>,
        now: SystemTime,
    ) {
        let mut old = std::mem::take(&mut self.own);
        self.own = backends
            .map(|(key, backend, offer)| {
                let own = Own {
                    backend,
                    since: old.remove(&key).map_or(now, |own| own.since),
                    offer,
                };
                (key, own)
            })
            .collect();
    }

    /// Every provider of every service, own backends as provided by the node. One that is silent is no healthy one.
    pub(super) fn providers(&self) -> BTreeMap<&ServiceKey, Vec<(&Subject, SystemTime, Offer)>> {
        let mut all: BTreeMap<&ServiceKey, Vec<(&Subject, SystemTime, Offer)>> = BTreeMap::new();
        for (key, own) in &self.own {
            let list = all.entry(key).or_default();
            list.push((&self.node, own.since, own.offer));
        }
        for (key, providers) in &self.published {
            let list = all.entry(key).or_default();
            list.extend(providers.iter().filter_map(|(identity, alike)| {
                let provider = alike.last()?;
                let mut offer = provider.offer;
                if provider.silent {
                    offer.health = Health::Unhealthy;
                }
                Some((identity, provider.since, offer))
            }));
        }
        all
    }

    /// Decides where a request goes. A provider that is silent gets nothing new: what is refused may go to another one, or
    /// come again, and what was handed over may have been delivered.
    ///
    /// # Errors
    /// The refusal that the initiator gets.
    pub(super) fn route(&self, request: &Request<'_>) -> Result<Next<C>, (RefuseCode, String)> {
        let mut known = false;
        let key = ServiceKey {
            service: request.service.clone(),
            port: request.port,
            protocol: request.protocol,
        };
        if let Some(own) = self.own.get(&key) {
            known = true;
            if *request.provider == self.node {
                return Ok(Next::Own(Some(own.backend.clone())));
            }
        }
        if let Some(providers) = self.published.get(&key) {
            known = true;
            if let Some(provider) = providers.get(request.provider).and_then(|all| all.last()) {
                if provider.silent && !request.known {
                    let text = format!("{} does not answer this router now", request.provider);
                    return Err((RefuseCode::NoProvider, text));
                }
                return Ok(Next::Provider(provider.connection.clone()));
            }
        }
        if request.known && *request.provider == self.node {
            return Ok(Next::Own(None));
        }
        let connected = self.connected.get(request.provider);
        if let Some((_, connection)) = connected.filter(|_| request.known) {
            return Ok(Next::Provider(connection.clone()));
        }
        let Request {
            service,
            port,
            provider,
            ..
        } = request;
        Err(if known {
            (
                RefuseCode::NoProvider,
                format!("{provider} does not publish {service}:{port} here"),
            )
        } else {
            (
                RefuseCode::UnknownService,
                format!("nobody publishes {service}:{port} here"),
            )
        })
    }
}

/// Whether `identity` may publish services of the namespace of `service`.
///
/// # Errors
/// The refusal that the publisher gets.
pub(super) fn may_publish(
    identity: &Subject,
    service: &ServiceId,
) -> Result<(), (RefuseCode, String)> {
    if identity.is_node() || identity.namespace() == Some(&service.namespace) {
        return Ok(());
    }
    let text = format!(
        "{identity} may not publish {service}: only identities of namespace {} and nodes may",
        service.namespace
    );
    Err((RefuseCode::Forbidden, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::PublicationOptions;

    fn key(name: &str) -> ServiceKey {
        ServiceKey {
            service: name.parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
        }
    }

    fn subject(path: &str) -> Subject {
        path.parse().unwrap()
    }

    fn provider(connection_id: u64) -> Provider<u64> {
        Provider {
            connection: connection_id,
            connection_id,
            instance: None,
            since: SystemTime::UNIX_EPOCH,
            offer: Offer::default(),
            silent: false,
        }
    }

    fn ask(table: &Table<u64>, name: &str, provider: &str) -> Result<Next<u64>, RefuseCode> {
        let service = name.parse().unwrap();
        let provider = subject(provider);
        let request = Request {
            service: &service,
            port: 80,
            protocol: Protocol::Tcp,
            provider: &provider,
            known: false,
        };
        table.route(&request).map_err(|(code, _)| code)
    }

    const POD: &str = "/node/b/ns/default/pod/db-0";

    #[test]
    fn a_request_goes_to_the_provider_that_it_names_or_nowhere() {
        let mut table = Table::new(subject("/node/a"));
        table.publish(key("db.default"), subject(POD), provider(1));
        assert_eq!(ask(&table, "db.default", POD), Ok(Next::Provider(1)));
        assert_eq!(
            ask(&table, "db.default", "/node/b/ns/default/pod/db-1"),
            Err(RefuseCode::NoProvider)
        );
        assert_eq!(
            ask(&table, "other.default", POD),
            Err(RefuseCode::UnknownService)
        );
    }

    #[test]
    fn a_new_connection_takes_over_and_the_old_one_cannot_withdraw_it() {
        let mut table = Table::new(subject("/node/a"));
        table.publish(key("db.default"), subject(POD), provider(1));
        table.publish(key("db.default"), subject(POD), provider(2));
        assert!(!table.withdraw(&key("db.default"), &subject(POD), 1, |_| true));
        assert_eq!(ask(&table, "db.default", POD), Ok(Next::Provider(2)));
        assert!(table.withdraw(&key("db.default"), &subject(POD), 2, |_| true));
        assert_eq!(
            ask(&table, "db.default", POD),
            Err(RefuseCode::UnknownService)
        );
    }

    #[test]
    fn of_two_processes_that_call_themselves_alike_the_older_is_there_when_the_newer_goes() {
        let of = |connection, instance| Provider {
            instance: Some(instance),
            ..provider(connection)
        };
        let mut table = Table::new(subject("/node/a"));
        let (db, pod) = (key("db.default"), subject(POD));
        assert!(!table.publish(db.clone(), pod.clone(), of(1, 10)));
        assert!(table.publish(db.clone(), pod.clone(), of(2, 20)));
        assert_eq!(ask(&table, "db.default", POD), Ok(Next::Provider(2)));
        // The older one comes again, as after an outage; its connection before is over.
        table.publish(db.clone(), pod.clone(), of(3, 10));
        assert_eq!(ask(&table, "db.default", POD), Ok(Next::Provider(3)));
        assert!(
            !table.withdraw(&db, &pod, 1, |_| true),
            "that one was replaced"
        );
        assert_eq!(table.providers()[&db].len(), 1);
        assert!(table.withdraw(&db, &pod, 3, |_| true));
        assert_eq!(ask(&table, "db.default", POD), Ok(Next::Provider(2)));
        table.publish(db.clone(), pod.clone(), of(4, 40));
        assert!(table.withdraw(&db, &pod, 4, |_| false));
        assert!(
            ask(&table, "db.default", POD).is_err(),
            "the one before is dead"
        );
        assert!(table.published.is_empty());
    }

    #[test]
    fn what_an_older_connection_publishes_late_does_not_displace_the_newer_one() {
        let mut table = Table::new(subject("/node/a"));
        table.publish(key("db.default"), subject(POD), provider(2));
        table.publish(key("db.default"), subject(POD), provider(1));
        assert_eq!(ask(&table, "db.default", POD), Ok(Next::Provider(2)));
        // The older one is closed when it carries nothing.
        assert!(!table.withdraw(&key("db.default"), &subject(POD), 1, |_| true));
        table.gone(&subject(POD), 1);
        assert_eq!(ask(&table, "db.default", POD), Ok(Next::Provider(2)));
        assert!(table.withdraw(&key("db.default"), &subject(POD), 2, |_| true));
        assert_eq!(table.connected.get(&subject(POD)), Some(&(2, 2)));
    }

    #[test]
    fn a_flow_that_runs_finds_its_provider_also_after_the_withdrawal() {
        let mut table = Table::new(subject("/node/a"));
        table.publish(key("db.default"), subject(POD), provider(1));
        assert!(table.withdraw(&key("db.default"), &subject(POD), 1, |_| true));
        let (service, pod) = ("db.default".parse().unwrap(), subject(POD));
        let request = |known| Request {
            service: &service,
            port: 80,
            protocol: Protocol::Tcp,
            provider: &pod,
            known,
        };
        assert_eq!(table.route(&request(true)), Ok(Next::Provider(1)));
        assert!(table.route(&request(false)).is_err(), "no new flows");
        table.gone(&pod, 2);
        assert!(table.route(&request(true)).is_ok(), "another connection");
        table.gone(&pod, 1);
        assert!(table.route(&request(true)).is_err());
    }

    #[test]
    fn a_silent_provider_gets_no_new_flow_until_it_or_a_newer_connection_of_it_answers() {
        let mut table = Table::new(subject("/node/a"));
        let (db, pod) = (key("db.default"), subject(POD));
        table.publish(db.clone(), pod.clone(), provider(1));
        table.set_silent(&pod, 2, true);
        assert!(ask(&table, "db.default", POD).is_ok(), "another one");
        table.set_silent(&pod, 1, true);
        assert_eq!(ask(&table, "db.default", POD), Err(RefuseCode::NoProvider));
        let known = Request {
            service: &db.service,
            port: 80,
            protocol: Protocol::Tcp,
            provider: &pod,
            known: true,
        };
        assert_eq!(table.route(&known), Ok(Next::Provider(1)));
        assert_eq!(table.providers()[&db][0].2.health, Health::Unhealthy);
        // What it says of itself is no answer to what it was asked.
        table.publish(db.clone(), pod.clone(), provider(1));
        assert!(ask(&table, "db.default", POD).is_err());
        table.publish(db.clone(), pod.clone(), provider(2));
        assert_eq!(ask(&table, "db.default", POD), Ok(Next::Provider(2)));
        table.set_silent(&pod, 2, true);
        table.set_silent(&pod, 2, false);
        assert!(ask(&table, "db.default", POD).is_ok());
        assert_eq!(table.providers()[&db][0].2.health, Health::Unknown);
    }

    #[test]
    fn own_backends_are_provided_by_the_node() {
        let mut table = Table::<u64>::new(subject("/node/a"));
        let backend = Backend {
            address: "10.0.0.5:3306".parse().unwrap(),
            options: PublicationOptions::default(),
        };
        table.set_own(
            [(key("db.default"), backend.clone(), Offer::default())].into_iter(),
            SystemTime::UNIX_EPOCH,
        );
        assert_eq!(
            ask(&table, "db.default", "/node/a"),
            Ok(Next::Own(Some(backend)))
        );
        assert_eq!(ask(&table, "db.default", POD), Err(RefuseCode::NoProvider));
    }

    #[test]
    fn publishing_needs_the_namespace_or_a_node() {
        let service: ServiceId = "db.default".parse().unwrap();
        assert!(may_publish(&subject(POD), &service).is_ok());
        assert!(may_publish(&subject("/node/c"), &service).is_ok());
        assert!(may_publish(&subject("/node/b/ns/other/pod/db-0"), &service).is_err());
        assert!(may_publish(&subject("/node/b/admin/ann"), &service).is_err());
        assert!(may_publish(&subject("/admin/ann"), &service).is_err());
    }
}
