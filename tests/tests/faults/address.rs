//! The host moves: another address, another family, a cable that was out. Connections go on within moments.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Context;
use keel_tests::lab::Lab;
use keel_tests::load::{Load, Running, Server};
use keel_tests::need::{self, Need, lacking};
use keel_tests::site::{DNS, Node, Sidecar};
use keel_tests::wait;

/// How soon bytes come after the host can reach the router again.
const BACK: Duration = Duration::from_secs(2);
/// The same where a machine may run four scenarios at once.
fn back() -> Duration {
    let busy = Duration::from_secs(1);
    if need::long() { BACK } else { BACK + busy }
}

/// A node and a provider that stay where they are, and a consumer that moves.
struct Walk {
    consumer: Sidecar,
    load: Running,
    // Dropped from top to bottom: processes before the namespaces they run in.
    _provider: Sidecar,
    _node: Node,
    _server: Server,
    lab: Lab,
}

impl Walk {
    fn new() -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let home = lab.host("a")?;
        home.add_address("2001:db8::1/64")?;
        let node = Node::up(
            &home,
            "a",
            &[
                "--apiserver-listen",
                "0.0.0.0:7443",
                "--advertise",
                &format!("{}:7000", home.address),
                "--advertise",
                "[2001:db8::1]:7000",
            ],
        )?;
        let server = Server::on(&home, 2003)?;
        let published = ["--published-services", "load=127.0.0.1:2003"];
        let provider = Sidecar::beside(&node, "provider", &published)?;
        let host = lab.host("c")?.resolves_by(Some(DNS))?;
        let mapped = ["--mapped-services", "load"];
        let consumer = Sidecar::joining(&host, "consumer", &node, &mapped)?;
        let address = consumer.listens("load", 2003)?;
        let load = Load::steady(10, need::seed(0xADD2_E550)).start(&host, address, &server)?;
        load.moves(100_000, wait::SOON)?;
        Ok(Self {
            consumer,
            load,
            _provider: provider,
            _node: node,
            _server: server,
            lab,
        })
    }

    /// How often the consumer's sidecar has noticed a change.
    fn noticed(&self) -> usize {
        let log = self.consumer.process.log();
        log.matches("the network changed").count()
    }

    /// Waits until the consumer's sidecar has noticed another one.
    fn notices(&self, before: usize) -> anyhow::Result<()> {
        let noticed = wait::until("the sidecar notices", back(), || self.noticed() > before);
        noticed.with_context(|| self.consumer.process.log())
    }

    /// Waits for bytes on every connection, counted from when the host could reach the router again.
    fn goes_on(&self, since: Instant, what: &str) -> anyhow::Result<()> {
        let left = back().saturating_sub(since.elapsed());
        let moved = self.load.all_move(left);
        moved.with_context(|| format!("{what}\n{}", self.consumer.process.log()))?;
        let took = since.elapsed();
        println!("{what}: bytes on all connections after {took:.1?}");
        // So that the next change meets connections that have settled.
        self.load.moves(500_000, wait::SOON)?;
        Ok(())
    }

    /// Gives the host one address and takes the other.
    fn moves(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.moves_all(&[from.to_owned()], &[to.to_owned()])
    }

    /// The same with several of each.
    fn moves_all(&self, from: &[String], to: &[String]) -> anyhow::Result<()> {
        let (host, before) = (&self.consumer.host, self.noticed());
        from.iter()
            .try_for_each(|address| host.remove_address(address))?;
        to.iter()
            .try_for_each(|address| host.add_address(address))?;
        let back = Instant::now();
        self.notices(before)?;
        self.goes_on(back, &format!("from {from:?} to {to:?}"))
    }

    /// No connection stood still for much longer than the longest of its faults.
    fn end(self, out: Duration) -> anyhow::Result<()> {
        let report = self.load.finish()?;
        println!("{report}");
        report
            .exact()
            .with_context(|| self.consumer.process.log())?;
        anyhow::ensure!(report.stall(1.0) <= out + back(), "{report}");
        Ok(())
    }
}

#[test]
fn another_address_is_a_pause() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let walk = Walk::new()?;
    let first = format!("{}/24", walk.consumer.host.address);
    walk.moves(&first, "198.51.100.77/24")?;
    walk.moves("198.51.100.77/24", "2001:db8::77/64")?;
    walk.moves("2001:db8::77/64", "198.51.100.78/24")?;
    walk.moves("198.51.100.78/24", "198.51.100.79/24")?;
    // Nowhere to go for a while: that must not end the endpoint.
    let host = &walk.consumer.host;
    let out = Duration::from_secs(3);
    host.remove_address("198.51.100.79/24")?;
    wait::pause(out);
    let before = walk.noticed();
    host.add_address(&first)?;
    let back = Instant::now();
    walk.notices(before)?;
    walk.goes_on(back, "without any address for 3 s")?;
    walk.end(out)
}

/// What addresses a network gives to a host: the letters of `46` that are in the name.
fn addresses(network: &str, number: usize) -> Vec<String> {
    let four = format!("198.51.100.{}/24", 100 + number);
    let six = format!("2001:db8::1:{number}/64");
    let given = [('4', four), ('6', six)];
    let given = given
        .into_iter()
        .filter(|(family, _)| network.contains(*family));
    given.map(|(_, address)| address).collect()
}

#[test]
fn every_kind_of_network_is_left_for_every_other() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    // Each of the nine ways from one kind to another once; the short form takes those that the test above does not.
    let all = ["4", "4", "6", "6", "46", "46", "4", "46", "6", "4"];
    let networks = if need::long() { &all[..] } else { &all[3..7] };
    let walk = Walk::new()?;
    let mut now = vec![format!("{}/24", walk.consumer.host.address)];
    for (number, network) in networks.iter().enumerate() {
        let next = addresses(network, number);
        walk.moves_all(&now, &next)?;
        now = next;
    }
    walk.end(Duration::ZERO)
}

#[test]
fn a_cable_that_was_out_is_a_pause() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let out = Duration::from_secs(if need::long() { 30 } else { 5 });
    let walk = Walk::new()?;
    let at: Ipv4Addr = walk.consumer.host.address;
    walk.lab.pull(at)?;
    wait::pause(out);
    let before = walk.noticed();
    walk.lab.push(at)?;
    let back = Instant::now();
    walk.notices(before)?;
    walk.goes_on(back, &format!("the cable was out for {out:?}"))?;
    // The same without a sign that anything has changed.
    walk.lab.unplug(at)?;
    wait::pause(out);
    walk.lab.plug(at)?;
    walk.goes_on(Instant::now(), &format!("nothing came for {out:?}"))?;
    walk.end(out)
}
