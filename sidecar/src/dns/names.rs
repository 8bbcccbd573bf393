//! Which names are ours. Pure: names are lower case and without the trailing dot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use keel_certs::{Namespace, ServiceName};

use crate::spec::ServiceRef;

/// The zone that is ours alone: what is not mapped in it does not exist.
pub const OWN_ZONE: &str = "clusterset.local";

/// One mapping as DNS sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedMapping {
    /// The service, in one cluster or in all.
    pub target: ServiceRef,
    /// Its local names.
    pub aliases: BTreeSet<ServiceName>,
    /// What its names resolve to.
    pub address: IpAddr,
}

/// What to do with a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A mapped service: this address, and no data of any other type.
    Address(IpAddr),
    /// A name of our own zone with something mapped below it: it exists and has no data.
    Empty,
    /// A name of our own zone that is not mapped.
    Absent,
    /// Somebody else's name.
    Foreign,
}

/// All names of all mappings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameTable {
    names: BTreeMap<String, IpAddr>,
    empty: BTreeSet<String>,
    zones: Arc<[String]>,
    search: Arc<[String]>,
}

impl NameTable {
    /// Names of `mappings` as a pod in `namespace` sees them, with the own zones and the search domains of its resolv.conf.
    ///
    /// The second value lists the names that more than one mapping has and so none owns.
    pub fn build(
        mappings: &[NamedMapping],
        namespace: &Namespace,
        extra_zones: &[String],
        search: &[String],
    ) -> (Self, Vec<String>) {
        let zones: Arc<[String]> = std::iter::once(OWN_ZONE.to_owned())
            .chain(extra_zones.iter().cloned())
            .collect();
        let mut table = Self {
            zones,
            search: search.into(),
            ..Self::default()
        };
        let mut ambiguous = Vec::new();
        for mapping in mappings {
            if let Some(cluster) = &mapping.target.cluster {
                table.names.insert(
                    format!("{}.{cluster}", mapping.target.service),
                    mapping.address,
                );
            }
        }
        let by_service = group(mappings, |m| m.target.service.to_string());
        for (name, owners) in &by_service {
            // The unqualified mapping means the service wherever it is; one for a single cluster stands in only if it is alone.
            match only(owners, |m| m.target.cluster.is_none()) {
                Some(owner) => table.add_service(name, owner.address),
                None => ambiguous.push(name.clone()),
            }
        }
        for (name, owners) in group(mappings, |m| m.target.service.name.to_string()) {
            let mut services: Vec<&NamedMapping> =
                owners.iter().copied().filter(|m| table.owns(m)).collect();
            services.dedup_by(|a, b| a.target.service == b.target.service);
            match only(&services, |m| m.target.service.namespace == *namespace) {
                Some(owner) => _ = table.names.insert(name, owner.address),
                None => ambiguous.push(name),
            }
        }
        for mapping in mappings {
            for alias in &mapping.aliases {
                table.names.insert(alias.to_string(), mapping.address);
            }
        }
        table.find_empty();
        (table, ambiguous)
    }

    /// Decides about `name` (lower case, no trailing dot).
    pub fn verdict(&self, name: &str) -> Verdict {
        if let Some(address) = self.names.get(name) {
            return Verdict::Address(*address);
        }
        for domain in self.search.iter() {
            if let Some(address) = below(name, domain).and_then(|rest| self.names.get(rest)) {
                return Verdict::Address(*address);
            }
        }
        match self.zone_of(name) {
            Some(_) if self.empty.contains(name) => Verdict::Empty,
            Some(_) => Verdict::Absent,
            None => Verdict::Foreign,
        }
    }

    /// The own zone that `name` lies in, apex included.
    pub fn zone_of(&self, name: &str) -> Option<&str> {
        self.zones
            .iter()
            .map(String::as_str)
            .find(|zone| name == *zone || below(name, zone).is_some())
    }

    /// The names of `address`, shortest first.
    pub fn names_of(&self, address: IpAddr) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .names
            .iter()
            .filter(|(_, a)| **a == address)
            .map(|(n, _)| n.as_str())
            .collect();
        names.sort_by_key(|name| name.len());
        names
    }

    fn add_service(&mut self, name: &str, address: IpAddr) {
        for suffix in ["", ".svc", ".svc.cluster.local"] {
            self.names.insert(format!("{name}{suffix}"), address);
        }
        for zone in self.zones.iter() {
            self.names.insert(format!("{name}.svc.{zone}"), address);
        }
    }

    /// True if `mapping` is the one that `name.namespace` leads to.
    fn owns(&self, mapping: &NamedMapping) -> bool {
        self.names.get(&mapping.target.service.to_string()) == Some(&mapping.address)
    }

    /// Names between a zone and a mapped name exist without data (RFC 8020: NXDOMAIN there would deny all below).
    fn find_empty(&mut self) {
        for zone in self.zones.iter() {
            self.empty.insert(zone.clone());
            for name in self.names.keys().filter(|name| below(name, zone).is_some()) {
                let mut rest = name.as_str();
                while let Some((_, parent)) = rest.split_once('.') {
                    if parent.len() <= zone.len() {
                        break;
                    }
                    self.empty.insert(parent.to_owned());
                    rest = parent;
                }
            }
        }
    }
}

/// What stands before `.domain` in `name`.
fn below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    name.strip_suffix(domain)?
        .strip_suffix('.')
        .filter(|rest| !rest.is_empty())
}

fn group(
    mappings: &[NamedMapping],
    key: impl Fn(&NamedMapping) -> String,
) -> BTreeMap<String, Vec<&NamedMapping>> {
    let mut groups: BTreeMap<String, Vec<&NamedMapping>> = BTreeMap::new();
    for mapping in mappings {
        groups.entry(key(mapping)).or_default().push(mapping);
    }
    groups
}

/// The only one, else the only one that is preferred.
fn only<'a>(
    all: &[&'a NamedMapping],
    preferred: impl Fn(&NamedMapping) -> bool,
) -> Option<&'a NamedMapping> {
    if let [one] = all {
        return Some(one);
    }
    let mut matching = all.iter().filter(|m| preferred(m));
    match (matching.next(), matching.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mapping(target: &str, last: u8) -> NamedMapping {
        let parts: Vec<&str> = target.split('.').collect();
        NamedMapping {
            target: ServiceRef {
                service: format!("{}.{}", parts[0], parts[1]).parse().unwrap(),
                cluster: parts.get(2).map(|c| c.parse().unwrap()),
            },
            aliases: BTreeSet::new(),
            address: address(last),
        }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 66, last])
    }

    fn table(mappings: &[NamedMapping]) -> NameTable {
        build(mappings).0
    }

    fn build(mappings: &[NamedMapping]) -> (NameTable, Vec<String>) {
        let search = [
            "default.svc.cluster.local".to_owned(),
            "corp.example".to_owned(),
        ];
        NameTable::build(
            mappings,
            &"default".parse().unwrap(),
            &["keel.test".to_owned()],
            &search,
        )
    }

    #[test]
    fn a_mapping_has_all_its_names() {
        let mut one = mapping("mysql.default", 1);
        one.aliases.insert("db".parse().unwrap());
        let table = table(&[one]);
        for name in [
            "mysql",
            "mysql.default",
            "mysql.default.svc",
            "mysql.default.svc.cluster.local",
            "mysql.default.svc.clusterset.local",
            "mysql.default.svc.keel.test",
            "db",
        ] {
            assert_eq!(table.verdict(name), Verdict::Address(address(1)), "{name}");
        }
        assert_eq!(table.names_of(address(1))[0], "db");
    }

    #[test]
    fn one_search_domain_behind_a_name_is_that_name_too() {
        let table = table(&[mapping("mysql.default", 1)]);
        for name in [
            "mysql.default.svc.default.svc.cluster.local",
            "mysql.corp.example",
            "mysql.default.svc.clusterset.local.corp.example",
        ] {
            assert_eq!(table.verdict(name), Verdict::Address(address(1)), "{name}");
        }
        for name in [
            "mysql.corp.example.corp.example",
            "corp.example",
            "xmysql.corp.example",
            "redis.default.svc.cluster.local",
        ] {
            assert_eq!(table.verdict(name), Verdict::Foreign, "{name}");
        }
    }

    #[test]
    fn only_the_own_zones_have_absent_names() {
        let table = table(&[mapping("mysql.default", 1)]);
        for name in [
            "redis.default.svc.clusterset.local",
            "x.clusterset.local",
            "mysql.default.keel.test",
        ] {
            assert_eq!(table.verdict(name), Verdict::Absent, "{name}");
        }
        for name in [
            "clusterset.local",
            "svc.clusterset.local",
            "default.svc.clusterset.local",
            "keel.test",
        ] {
            assert_eq!(table.verdict(name), Verdict::Empty, "{name}");
        }
        for name in [
            "kubernetes.default.svc.cluster.local",
            "xclusterset.local",
            "",
            "local",
            "mysql.other",
        ] {
            assert_eq!(table.verdict(name), Verdict::Foreign, "{name}");
        }
    }

    #[test]
    fn the_bare_name_belongs_to_the_only_mapping_or_to_the_own_namespace() {
        let both = table(&[mapping("mysql.prod", 1), mapping("mysql.default", 2)]);
        assert_eq!(both.verdict("mysql"), Verdict::Address(address(2)));
        assert_eq!(both.verdict("mysql.prod"), Verdict::Address(address(1)));
        let alone = table(&[mapping("mysql.prod", 1)]);
        assert_eq!(alone.verdict("mysql"), Verdict::Address(address(1)));
        let (neither, ambiguous) = build(&[mapping("mysql.prod", 1), mapping("mysql.test", 2)]);
        assert_eq!(neither.verdict("mysql"), Verdict::Foreign);
        assert_eq!(ambiguous, ["mysql"]);
    }

    #[test]
    fn a_mapping_of_one_cluster_has_its_own_name_and_stands_in_if_alone() {
        let alone = table(&[mapping("mysql.default.east", 1)]);
        assert_eq!(
            alone.verdict("mysql.default.east"),
            Verdict::Address(address(1))
        );
        assert_eq!(alone.verdict("mysql"), Verdict::Address(address(1)));
        let both = table(&[
            mapping("mysql.default.east", 1),
            mapping("mysql.default", 2),
        ]);
        assert_eq!(
            both.verdict("mysql.default.svc"),
            Verdict::Address(address(2))
        );
        assert_eq!(both.verdict("mysql"), Verdict::Address(address(2)));
        assert_eq!(
            both.verdict("mysql.default.east"),
            Verdict::Address(address(1))
        );
        let (two, ambiguous) = build(&[
            mapping("mysql.default.east", 1),
            mapping("mysql.default.west", 2),
        ]);
        assert_eq!(two.verdict("mysql.default"), Verdict::Foreign);
        assert!(ambiguous.contains(&"mysql.default".to_owned()));
    }

    proptest! {
        #[test]
        fn any_name_has_a_verdict(name in "[a-z.]{0,60}") {
            let table = table(&[mapping("mysql.default", 1)]);
            if table.verdict(&name) == Verdict::Absent { prop_assert!(table.zone_of(&name).is_some()); }
        }
    }
}
