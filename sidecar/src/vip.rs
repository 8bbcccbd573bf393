//! Stable local addresses: one per mapped service, for all its ports, out of the range that was given. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

use crate::spec::ServiceRef;

/// The range of `--ip-range`, IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpRange(IpNet);

/// Why a range was refused, or does not do.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RangeError {
    /// Not an address with a prefix length.
    #[error("`{0}` is not a range of addresses; write it like 127.0.66.0/24 or fd00:66::/120")]
    Syntax(String),
    /// Addresses that nothing can listen on.
    #[error(
        "`{0}` holds no addresses to listen on; choose a part of 127.0.0.0/8, like 127.0.66.0/24"
    )]
    Unusable(String),
    /// More services than addresses.
    #[error(
        "the range {range} has room for {fits} services and {wanted} are mapped; choose a larger one, like {suggestion}"
    )]
    TooSmall {
        /// The range.
        range: IpRange,
        /// How many services have an address in it.
        fits: u128,
        /// How many there are.
        wanted: usize,
        /// A range at the same place that is large enough.
        suggestion: String,
    },
}

impl FromStr for IpRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let net: IpNet = text
            .trim()
            .parse()
            .map_err(|_| RangeError::Syntax(text.to_owned()))?;
        let net = net.trunc();
        let address = net.network();
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.octets()[0] >= 240);
        if address.is_unspecified() || address.is_multicast() || broadcast {
            return Err(RangeError::Unusable(text.to_owned()));
        }
        Ok(Self(net))
    }
}

impl Default for IpRange {
    /// `127.0.66.0/24`.
    fn default() -> Self {
        let net = ipnet::Ipv4Net::new(std::net::Ipv4Addr::new(127, 0, 66, 0), 24);
        Self(net.map_or_else(|_| IpNet::from(IpAddr::from([127, 0, 66, 1])), IpNet::V4))
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl IpRange {
    /// Whether `address` is one of the range, also where it is written as IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }

    /// True for IPv4, which makes the answers A records.
    pub fn is_ipv4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// How many services have an address here: `.1` upwards, without an IPv4 broadcast address.
    pub fn capacity(&self) -> u128 {
        let bits = u32::from(self.0.max_prefix_len() - self.0.prefix_len());
        match bits {
            0 => 1, // a single address is itself
            1 => 1,
            128 => u128::MAX,
            _ if self.is_ipv4() => (1 << bits) - 2,
            _ => (1 << bits) - 1,
        }
    }

    /// The `index`-th address, counted from 0 for `.1`.
    fn nth(&self, index: u128) -> Option<IpAddr> {
        if index >= self.capacity() {
            return None;
        }
        let step = if self.0.prefix_len() == self.0.max_prefix_len() {
            0
        } else {
            index + 1
        };
        Some(match self.0.network() {
            IpAddr::V4(base) => IpAddr::V4(
                base.to_bits()
                    .checked_add(u32::try_from(step).ok()?)?
                    .into(),
            ),
            IpAddr::V6(base) => IpAddr::V6(base.to_bits().checked_add(step)?.into()),
        })
    }

    /// The place of `address`, if it is one that [`IpRange::nth`] gives.
    fn index(&self, address: IpAddr) -> Option<u128> {
        let offset = match (address, self.0.network()) {
            (IpAddr::V4(a), IpAddr::V4(base)) => {
                u128::from(a.to_bits().checked_sub(base.to_bits())?)
            }
            (IpAddr::V6(a), IpAddr::V6(base)) => a.to_bits().checked_sub(base.to_bits())?,
            _ => return None,
        };
        let index = if self.0.prefix_len() == self.0.max_prefix_len() {
            offset
        } else {
            offset.checked_sub(1)?
        };
        (index < self.capacity()).then_some(index)
    }

    fn too_small(&self, wanted: usize) -> RangeError {
        let mut wider = self.0;
        while let Some(next) = wider.supernet() {
            wider = next;
            if Self(wider).capacity() >= wanted as u128 {
                break;
            }
        }
        RangeError::TooSmall {
            range: *self,
            fits: self.capacity(),
            wanted,
            suggestion: wider.to_string(),
        }
    }
}

/// Which service has which address. An address stays with its service for as long as the mapping exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VipTable {
    range: IpRange,
    addresses: BTreeMap<ServiceRef, IpAddr>,
}

impl VipTable {
    /// Gives every service an address: the one it had (`kept`), else the lowest that is free, in the order given.
    ///
    /// # Errors
    /// [`RangeError::TooSmall`].
    pub fn assign(
        range: IpRange,
        services: &[ServiceRef],
        kept: &BTreeMap<ServiceRef, IpAddr>,
    ) -> Result<Self, RangeError> {
        let distinct: BTreeSet<&ServiceRef> = services.iter().collect();
        if distinct.len() as u128 > range.capacity() {
            return Err(range.too_small(distinct.len()));
        }
        let mut table = Self {
            range,
            addresses: BTreeMap::new(),
        };
        let mut used = BTreeSet::new();
        for &service in &distinct {
            // Two services with one kept address: a file that somebody edited. The first keeps it.
            if let Some(&address) = kept.get(service)
                && range.index(address).is_some()
                && used.insert(address)
            {
                table.addresses.insert(service.clone(), address);
            }
        }
        let mut next = 0;
        for service in services {
            if table.addresses.contains_key(service) {
                continue;
            }
            let address = loop {
                let address = range
                    .nth(next)
                    .ok_or_else(|| range.too_small(distinct.len()))?;
                next += 1;
                if used.insert(address) {
                    break address;
                }
            };
            table.addresses.insert(service.clone(), address);
        }
        Ok(table)
    }

    /// The address of `service`.
    pub fn get(&self, service: &ServiceRef) -> Option<IpAddr> {
        self.addresses.get(service).copied()
    }

    /// All of them.
    pub fn addresses(&self) -> &BTreeMap<ServiceRef, IpAddr> {
        &self.addresses
    }

    /// The range.
    pub fn range(&self) -> IpRange {
        self.range
    }

    /// The next address above the one of `service` that no service has, turning round at the end; `None` if there is no other.
    pub fn next_after(&self, current: IpAddr) -> Option<IpAddr> {
        let used: BTreeSet<IpAddr> = self.addresses.values().copied().collect();
        let start = self.range.index(current)?;
        // At most one more step than there are used addresses is needed to find a free one.
        (1..=used.len() as u128 + 1)
            .map(|step| (start + step) % self.range.capacity())
            .filter_map(|index| self.range.nth(index))
            .find(|address| *address != current && !used.contains(address))
    }

    /// Gives `service` another address, because its own was taken.
    pub fn relocate(&mut self, service: &ServiceRef, address: IpAddr) {
        self.addresses.insert(service.clone(), address);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> IpRange {
        text.parse().unwrap()
    }

    fn services(n: usize) -> Vec<ServiceRef> {
        (0..n).map(|i| service(&format!("s{i}"))).collect()
    }

    fn service(name: &str) -> ServiceRef {
        ServiceRef {
            service: format!("{name}.default").parse().unwrap(),
            cluster: None,
        }
    }

    fn table(text: &str, n: usize) -> VipTable {
        VipTable::assign(range(text), &services(n), &BTreeMap::new()).unwrap()
    }

    #[test]
    fn addresses_start_at_one_in_the_order_given() {
        let four = table("127.0.66.0/24", 3);
        assert_eq!(
            four.get(&service("s0")),
            Some("127.0.66.1".parse().unwrap())
        );
        assert_eq!(
            four.get(&service("s2")),
            Some("127.0.66.3".parse().unwrap())
        );
        let six = table("fd00:66::/120", 2);
        assert_eq!(six.get(&service("s1")), Some("fd00:66::2".parse().unwrap()));
        assert_eq!(
            table("127.0.66.7/32", 1).get(&service("s0")),
            Some("127.0.66.7".parse().unwrap())
        );
    }

    #[test]
    fn a_range_that_is_too_small_says_how_many_fit_and_what_would_do() {
        let error =
            VipTable::assign(range("127.0.66.0/30"), &services(3), &BTreeMap::new()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("room for 2 services and 3 are mapped") && text.contains("127.0.66.0/29"),
            "{text}"
        );
        assert_eq!(table("127.0.66.0/24", 254).addresses().len(), 254);
    }

    #[test]
    fn wrong_ranges_are_refused() {
        for text in [
            "127.0.66.0",
            "127.0.66.0/33",
            "banana",
            "",
            "127.0.66/24",
            "fd00::/129",
            "1.2.3.4/-1",
        ] {
            assert!(
                matches!(text.parse::<IpRange>(), Err(RangeError::Syntax(_))),
                "{text}"
            );
        }
        for text in [
            "0.0.0.0/8",
            "224.0.0.0/24",
            "ff02::/64",
            "::/120",
            "255.255.255.0/24",
        ] {
            assert!(
                matches!(text.parse::<IpRange>(), Err(RangeError::Unusable(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn an_address_stays_when_services_come_and_go() {
        let before = table("127.0.66.0/24", 3);
        let now = [service("new"), service("s2"), service("s1")];
        let after = VipTable::assign(range("127.0.66.0/24"), &now, before.addresses()).unwrap();
        assert_eq!(after.get(&service("s2")), before.get(&service("s2")));
        assert_eq!(after.get(&service("s1")), before.get(&service("s1")));
        assert_eq!(
            after.get(&service("new")),
            Some("127.0.66.1".parse().unwrap())
        );
    }

    #[test]
    fn a_taken_address_gives_way_to_the_next_free_one() {
        let mut roomy = table("127.0.66.0/29", 2);
        let s0 = service("s0");
        let next = roomy.next_after(roomy.get(&s0).unwrap()).unwrap();
        assert_eq!(next, "127.0.66.3".parse::<IpAddr>().unwrap());
        roomy.relocate(&s0, next);
        assert_eq!(roomy.get(&s0), Some(next));
        let full = table("127.0.66.0/30", 2);
        assert_eq!(full.next_after("127.0.66.1".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn addresses_are_distinct_inside_and_kept(
            prefix in 22u8..=30, first in 0usize..40, second in 0usize..40, seed in any::<[u8; 2]>(),
        ) {
            let range = range(&format!("127.{}.{}.0/{prefix}", seed[0], seed[1]));
            let (old, new) = (services(first), services(second));
            let Ok(before) = VipTable::assign(range, &old, &BTreeMap::new()) else {
                prop_assert!(old.len() as u128 > range.capacity());
                return Ok(());
            };
            let Ok(after) = VipTable::assign(range, &new, before.addresses()) else {
                prop_assert!(new.len() as u128 > range.capacity());
                return Ok(());
            };
            let distinct: BTreeSet<_> = after.addresses().values().collect();
            prop_assert_eq!(distinct.len(), new.len());
            for (service, address) in after.addresses() {
                prop_assert!(range.0.contains(address) && *address != range.0.network());
                if let Some(had) = before.get(service) { prop_assert_eq!(had, *address); }
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            if let Ok(range) = text.parse::<IpRange>() { range.capacity(); }
        }
    }
}
