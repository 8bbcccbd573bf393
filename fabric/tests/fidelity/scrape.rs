//! What a scraper of the fabric's metrics sees.

use std::collections::BTreeSet;
use std::sync::Arc;

use keel_fabric::metrics::FabricMetrics;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::world::World;

pub(crate) struct Scraper(Registry);

impl Scraper {
    /// Takes the metrics of everything that is made in `world` from now on.
    pub(crate) fn new(world: &mut World) -> Self {
        let mut registry = Registry::default();
        let metrics: Arc<FabricMetrics> = FabricMetrics::register(&mut registry);
        world.metrics = metrics;
        Self(registry)
    }

    /// The lines of this family.
    pub(crate) fn lines(&self, family: &str) -> BTreeSet<String> {
        let mut text = String::new();
        encode(&mut text, &self.0).unwrap();
        let of = |line: &&str| {
            let name = line.split([' ', '{']).next();
            name == Some(family)
        };
        text.lines().filter(of).map(str::to_owned).collect()
    }

    /// The sum of the family's values whose labels contain this.
    pub(crate) fn sum(&self, family: &str, label: &str) -> i64 {
        let lines = self.lines(family);
        let values = lines.iter().filter(|line| line.contains(label));
        values
            .map(|line| {
                let (_, value) = line.rsplit_once(' ').unwrap();
                value.parse::<i64>().unwrap()
            })
            .sum()
    }
}
