//! Two versions beside each other, as in the middle of an upgrade: this one and an earlier one, whose binaries
//! `tests/previous REVISION` builds and names.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use keel_tests::lab::{Host, Lab};
use keel_tests::load::{Load, Server};
use keel_tests::need::{self, Need, lacking, long};
use keel_tests::process::{Process, Program};
use keel_tests::site::{COMMAND, DNS, Sidecar};
use keel_tests::wait::{self, SOON};

/// A router that is told to stop leaves its flows some time.
const STOP: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    This,
    Previous,
}

use Version::{Previous, This};

impl Version {
    fn program(self, name: &str) -> anyhow::Result<Program> {
        match self {
            This => Program::ours(name),
            Previous => {
                let folder = need::previous().context("KEEL_PREVIOUS names no directory")?;
                Ok(Program::new(folder.join(name)))
            }
        }
    }
}

/// Where a node's parts run, in whatever version, one after the other.
struct Place {
    host: Host,
    data: tempfile::TempDir,
}

impl Place {
    fn part(&self, name: &str, version: Version, flags: &[&str]) -> anyhow::Result<Program> {
        Ok(version
            .program(name)?
            .arg("--data-dir")
            .arg(self.data.path())
            .args(flags)
            .on(&self.host))
    }

    fn apiserver(&self, version: Version) -> anyhow::Result<Program> {
        let advertise = format!("{}:7000", self.host.address);
        let flags = [
            "--node-name",
            "a",
            "--apiserver-listen",
            "0.0.0.0:7443",
            "--advertise",
            &advertise,
        ];
        self.part("keel-apiserver", version, &flags)
    }

    fn router(&self, version: Version) -> anyhow::Result<Process> {
        let advertise = format!("{}:7000", self.host.address);
        let flags = ["--advertise", &advertise, "--metrics-listen", "127.0.0.1:0"];
        started(&self.part("keel-router", version, &flags)?)
    }

    fn keel(&self, version: Version, words: &[&str]) -> anyhow::Result<Program> {
        let keel = version.program("keel")?.args(words);
        Ok(keel.arg("--data-dir").arg(self.data.path()).on(&self.host))
    }

    /// A sidecar of that version on another host.
    fn sidecar(
        &self,
        version: Version,
        host: &Host,
        pod: &str,
        flags: &[&str],
    ) -> anyhow::Result<Sidecar> {
        let scope = format!("default/{pod}");
        let words = ["token", "create", "--sidecar", &scope];
        let token = self.keel(version, &words)?.ok(COMMAND)?;
        let program = version.program("keel-sidecar")?;
        let program = program.env("SIDECAR_JOIN_TOKEN", token.trim());
        Sidecar::start(program, host, pod, flags)
    }
}

fn started(program: &Program) -> anyhow::Result<Process> {
    let mut process = program.start()?;
    process.says("ready node=", SOON)?;
    Ok(process)
}

/// Routers of both versions in turn, killed and stopped, under connections between sidecars of both.
fn routers_in_turn(provider: Version, consumer: Version) -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    let place = Place {
        host: lab.host("a")?,
        data: tempfile::tempdir()?,
    };
    let _apiserver = started(&place.apiserver(consumer)?)?;
    let mut router = place.router(Previous)?;
    let (servers, apps) = (lab.host("p")?, lab.host("c")?.resolves_by(Some(DNS))?);
    let server = Server::on(&servers, 2003)?;
    let published = ["--published-services", "load=127.0.0.1:2003"];
    let _provider = place.sidecar(provider, &servers, "provider", &published)?;
    let consumer = place.sidecar(consumer, &apps, "consumer", &["--mapped-services", "load"])?;
    let address = consumer.listens("load", 2003)?;
    let load = Load::steady(8, 0x0E45_1045).start(&apps, address, &server)?;
    load.moves(200_000, SOON)?;
    let rounds = if long() { 10 } else { 1 };
    for (version, stops) in [
        (This, false),
        (Previous, true),
        (This, true),
        (Previous, false),
    ]
    .into_iter()
    .cycle()
    .take(4 * rounds)
    {
        if stops {
            router.stop(STOP)?;
        } else {
            router.kill()?;
        }
        router = place.router(version)?;
        let took = load
            .all_move(SOON)
            .with_context(|| consumer.process.log())?;
        println!("stopped {stops}, then {version:?}: all went on {took:.1?} after it was ready");
        load.moves(200_000, SOON)?;
    }
    let report = load.finish()?;
    println!("{report}");
    report.exact().with_context(|| consumer.process.log())?;
    wait::until("every connection ends at the server", SOON, || {
        server.open() == 0
    })
}

#[test]
fn routers_and_sidecars_of_two_versions_carry_for_each_other() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Previous]) {
        return Ok(());
    }
    for (provider, consumer) in [(This, Previous), (Previous, This)] {
        println!("provider {provider:?}, consumer {consumer:?}");
        routers_in_turn(provider, consumer)?;
    }
    Ok(())
}

/// Writes objects until the APIServer is killed; the names of those that were acknowledged.
fn write_until_killed(
    place: &Place,
    version: Version,
    name: &str,
    apiserver: &mut Process,
) -> anyhow::Result<Vec<String>> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> anyhow::Result<Vec<String>> {
            let mut acknowledged = Vec::new();
            for number in 0.. {
                let name = format!("{name}-{number}");
                let object = format!(
                    "{{apiVersion: edge.example.com/v1, kind: Router, metadata: {{name: {name}}}}}\n"
                );
                let apply = place.keel(version, &["apply", "-f", "-"])?.input(object);
                if apply.output(COMMAND)?.code() == Some(0) {
                    acknowledged.push(name);
                } else if over.load(Ordering::Acquire) {
                    return Ok(acknowledged);
                } else {
                    anyhow::bail!("{name} was not written");
                }
            }
            Ok(acknowledged)
        });
        wait::pause(Duration::from_secs(if long() { 10 } else { 2 }));
        over.store(true, Ordering::Release);
        apiserver.kill()?;
        writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?
    })
}

fn has(place: &Place, version: Version, names: &[String]) -> anyhow::Result<()> {
    let text = place
        .keel(version, &["get", "routers", "-o", "json"])?
        .ok(COMMAND)?;
    let missing = names
        .iter()
        .filter(|name| !text.contains(&format!("\"{name}\"")));
    let missing: Vec<_> = missing.collect();
    anyhow::ensure!(
        missing.is_empty(),
        "{missing:?} of {} are lost",
        names.len()
    );
    println!("{version:?} has all {}", names.len());
    Ok(())
}

#[test]
fn a_store_goes_from_one_version_to_the_other_and_nothing_acknowledged_is_lost()
-> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Previous]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let place = Place {
        host: lab.host("a")?,
        data: tempfile::tempdir()?,
    };
    let mut apiserver = started(&place.apiserver(Previous)?)?;
    let mut names = write_until_killed(&place, Previous, "old", &mut apiserver)?;
    anyhow::ensure!(!names.is_empty(), "nothing was written");
    let mut apiserver = started(&place.apiserver(This)?)?;
    has(&place, This, &names)?;
    names.extend(write_until_killed(&place, This, "new", &mut apiserver)?);
    back(&place, &names)?;
    let _apiserver = started(&place.apiserver(This)?)?;
    has(&place, This, &names)
}

/// The earlier version either reads what this one wrote, or says that it cannot.
fn back(place: &Place, names: &[String]) -> anyhow::Result<()> {
    let mut apiserver = place.apiserver(Previous)?.start()?;
    wait::until("it is ready or has ended", SOON, || {
        !apiserver.is_running() || apiserver.log().contains("ready node=")
    })?;
    if apiserver.is_running() {
        has(place, Previous, names)?;
        return apiserver.kill();
    }
    let log = apiserver.log();
    anyhow::ensure!(log.contains("run the version that wrote it"), "{log}");
    anyhow::ensure!(
        Path::exists(&place.data.path().join("store.db")),
        "the store is gone"
    );
    println!("the earlier version refuses the store");
    Ok(())
}
