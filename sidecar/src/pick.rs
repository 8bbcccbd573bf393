//! Which of several ways to a service is tried next. Pure: state and randomness come from the caller.
//!
//! First a provider, then a router that lists it, so that a provider gets its share whatever number of routers list it.

use std::net::IpAddr;
use std::time::Duration;

use keel_certs::{ClusterName, NodeName, Subject};
use keel_fabric::wire::Health;
use rand::{Rng, RngExt};

use crate::directory::Candidate;

/// Where the choice is made.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// The own node.
    pub node: Option<&'a NodeName>,
    /// The own cluster.
    pub cluster: Option<&'a ClusterName>,
}

/// What this sidecar was told about the service. It wins over what providers say of themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// The weight of every provider.
    pub weight: Option<u16>,
    /// The priority of every provider.
    pub priority: Option<u16>,
    /// The client whose connections go to one provider as long as that is among the best.
    pub sticky: Option<IpAddr>,
}

/// What one connection has tried in vain.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    ways: Vec<(NodeName, Subject)>,
    routers: Vec<NodeName>,
    providers: Vec<Subject>,
}

impl Tried {
    /// This way did not work; another one to the same provider may.
    pub fn way(&mut self, way: &Candidate) {
        self.ways
            .push((way.router.node.clone(), way.provider.clone()));
    }

    /// This router did not work: whoever is behind it is not reached through it either.
    pub fn router(&mut self, router: &NodeName) {
        self.routers.push(router.clone());
    }

    /// This provider did not work, over whatever router.
    pub fn provider(&mut self, provider: &Subject) {
        self.providers.push(provider.clone());
    }

    /// Whether nothing was tried.
    pub fn is_empty(&self) -> bool {
        self.ways.is_empty() && self.routers.is_empty() && self.providers.is_empty()
    }

    /// Whether `way` need not be tried again.
    pub fn contains(&self, way: &Candidate) -> bool {
        let (router, provider) = (&way.router.node, &way.provider);
        self.routers.contains(router)
            || self.providers.contains(provider)
            || self.ways.iter().any(|(r, p)| r == router && p == provider)
    }
}

/// What was seen of the ways lately.
pub trait Seen {
    /// Whether the way did not work: its router was not reached, or the provider is ejected.
    fn avoided(&self, way: &Candidate) -> bool;
    /// The time that an answer over it takes, as far as known; `None` if nothing was asked yet.
    fn latency(&self, way: &Candidate) -> Option<Duration>;
}

/// What is compared first to last; lower is better. Ways of one class share the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    unusable: bool,
    doubted: bool,
    weightless: bool,
    priority: u16,
    other_node: bool,
    other_cluster: bool,
}

/// The next way to try, with its class, or `None` if all were `tried`.
///
/// Ways that should work come first: healthy, not avoided, not over a router that drains. Then providers that every router
/// calls healthy, a lower priority, the own node, the own cluster. Among the providers of that class a sticky client has its own; for others two are drawn by
/// weight, and the clearly faster one wins. One that was not measured yet wins too, so that it gets measured. Of the
/// routers that list the provider, the own node's comes first, and of the others the faster of two.
pub fn pick<'a>(
    candidates: impl IntoIterator<Item = &'a Candidate>,
    tried: &Tried,
    here: Here<'_>,
    rules: Rules,
    seen: &impl Seen,
    rng: &mut impl Rng,
) -> Option<(&'a Candidate, Class)> {
    let mut ways: Vec<&Candidate> = Vec::new();
    let mut best = None;
    for way in candidates {
        if tried.contains(way) {
            continue;
        }
        let class = class(way, seen.avoided(way), here, rules);
        if best.is_none_or(|best| class < best) {
            best = Some(class);
            ways.clear();
        }
        if best == Some(class) {
            ways.push(way);
        }
    }
    let providers = providers(&ways, rules, seen);
    let chosen = match rules.sticky {
        Some(client) => own_of(client, &providers),
        None => two_choices(&providers, rng),
    }?
    .what;
    ways.retain(|way| way.provider == *chosen);
    let through_node = |way: &&Candidate| here.node == Some(&way.router.node);
    if ways.iter().any(through_node) {
        ways.retain(through_node);
    }
    let routers: Vec<Choice<'_, _>> = ways
        .iter()
        .map(|way| Choice {
            what: *way,
            weight: 1,
            latency: seen.latency(way),
        })
        .collect();
    Some((two_choices(&routers, rng)?.what, best?))
}

fn class(way: &Candidate, avoided: bool, here: Here<'_>, rules: Rules) -> Class {
    let unusable = way.offer.health == Health::Unhealthy || avoided || way.draining;
    Class {
        unusable,
        // One is as bad as the other among those.
        doubted: way.doubted && !unusable,
        weightless: rules.weight.unwrap_or(way.offer.weight) == 0,
        priority: rules.priority.unwrap_or(way.offer.priority),
        other_node: here.node.is_none() || way.provider.node() != here.node,
        other_cluster: here.cluster != Some(&way.cluster),
    }
}

/// One of several things to choose from.
#[derive(Debug)]
struct Choice<'a, T> {
    what: &'a T,
    weight: u16,
    latency: Option<Duration>,
}

/// Each provider once, with the weight that it says over any of its ways and the latency of its fastest.
fn providers<'a>(
    ways: &[&'a Candidate],
    rules: Rules,
    seen: &impl Seen,
) -> Vec<Choice<'a, Subject>> {
    let mut all: Vec<Choice<'a, Subject>> = Vec::new();
    for way in ways {
        let weight = rules.weight.unwrap_or(way.offer.weight);
        let latency = seen.latency(way);
        match all.iter_mut().find(|known| *known.what == way.provider) {
            Some(known) => {
                known.weight = known.weight.max(weight);
                known.latency = known.latency.into_iter().chain(latency).min();
            }
            None => all.push(Choice {
                what: &way.provider,
                weight,
                latency,
            }),
        }
    }
    all
}

/// Draws two by weight and takes the clearly faster one, else the first: so equally fast ones share by weight. With
/// different weights one may be drawn twice, or two providers would share without regard to their weights.
fn two_choices<'c, 'a, T>(
    all: &'c [Choice<'a, T>],
    rng: &mut impl Rng,
) -> Option<&'c Choice<'a, T>> {
    let first = draw(all, None, rng)?;
    let even = all.iter().all(|one| one.weight == all[0].weight);
    let second = draw(all, Some(first).filter(|_| even), rng).unwrap_or(first);
    Some(if is_better(all[second].latency, all[first].latency) {
        &all[second]
    } else {
        &all[first]
    })
}

/// The place of one that is drawn by weight, `but` left out.
fn draw<T>(all: &[Choice<'_, T>], but: Option<usize>, rng: &mut impl Rng) -> Option<usize> {
    // Those without weight are alone among themselves.
    let weight = |(at, one): (usize, &Choice<'_, T>)| match Some(at) == but {
        true => 0,
        false => u32::from(one.weight.max(1)),
    };
    let sum: u32 = all.iter().enumerate().map(weight).sum();
    if sum == 0 {
        return None;
    }
    let mut left = rng.random_range(0..sum);
    all.iter()
        .enumerate()
        .position(|one| match left.checked_sub(weight(one)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        })
}

/// Whether something was not measured yet, or is faster by more than what measuring is off by.
fn is_better(this: Option<Duration>, other: Option<Duration>) -> bool {
    match (this, other) {
        (None, other) => other.is_some(),
        (Some(_), None) => false,
        (Some(this), Some(other)) => this + this / 4 + MARGIN < other,
    }
}

/// Answers whose times differ by less are equally fast.
const MARGIN: Duration = Duration::from_millis(1);

/// The provider of a client, by rendezvous hashing with weights: a provider that comes or goes moves only the clients that
/// it gets or had.
fn own_of<'c, 'a>(
    client: IpAddr,
    all: &'c [Choice<'a, Subject>],
) -> Option<&'c Choice<'a, Subject>> {
    let score = |one: &Choice<'_, Subject>| {
        let client = match client {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let hash = hash(&client.octets(), one.what.path().as_bytes());
        // In (0, 1], from the upper 53 bits, which a double holds exactly.
        #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
        let unit = ((hash >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -unit.ln() / f64::from(one.weight.max(1))
    };
    all.iter()
        .min_by(|one, other| score(one).total_cmp(&score(other)))
}

/// FNV-1a, and the finish of MurmurHash3 so that every bit depends on every byte. The same in every build, so that a
/// client keeps its provider when the sidecar is started again.
fn hash(client: &[u8], provider: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in client.iter().chain(provider) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;
