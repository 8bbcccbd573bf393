//! Processes that may have little memory, and far more connections than fit, each with a reader that is slow.

use std::time::Duration;

use keel_tests::backends::{Backend, FakeUpstream, Manner, random_file};
use keel_tests::lab::{Lab, MemoryGroup};
use keel_tests::need::{self, Need, lacking};
use keel_tests::site::{COMMAND, Node, Sidecar, dig};
use keel_tests::wait::{self, SOON};

use crate::ground::{metrics, sum};
use crate::many::{Crowd, Habit, connect, echo, recovers};

/// What each of the processes may have, in bytes.
const LITTLE: u64 = 128 << 20;
/// The ports of the two services.
const ECHO: u16 = 7;
const FILES: u16 = 80;
/// More than fits into the buffers of a connection.
const FILE: u64 = 64 << 20;

#[test]
fn who_has_little_memory_sheds_connections_and_goes_on() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig, Need::Curl, Need::MemoryGroup]) {
        return Ok(());
    }
    let groups = [
        MemoryGroup::new(LITTLE)?,
        MemoryGroup::new(LITTLE)?,
        MemoryGroup::new(LITTLE)?,
    ];
    let [of_node, of_provider, of_consumer] = &groups;
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let advertise = format!("{}:7000", host.address);
    let public = [
        "--apiserver-listen",
        "0.0.0.0:7443",
        "--advertise",
        &advertise,
    ];
    let node = Node::up_behind(of_node.front(), &host, "a", &public)?;
    let servers = lab.host("p")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    random_file(&file, FILE, 1)?;
    let _echo = Backend::on(&servers, ECHO, Manner::Echo)?;
    let _files = Backend::on(&servers, FILES, Manner::Http(file))?;
    let published = [
        "--published-services",
        "echo=127.0.0.1:7,files=127.0.0.1:80",
    ];
    let provider =
        Sidecar::joining_behind(of_provider.front(), &servers, "provider", &node, &published)?;
    let apps = lab.host("c")?.resolves_by(Some("127.0.0.9"))?;
    let _upstream = FakeUpstream::on(&apps, "127.0.0.9:53", [192, 0, 2, 53].into())?;
    let mapped = ["--mapped-services", "echo,files"];
    let consumer = Sidecar::joining_behind(of_consumer.front(), &apps, "consumer", &node, &mapped)?;
    let (echoes, files) = (
        consumer.listens("echo", ECHO)?,
        consumer.listens("files", FILES)?,
    );

    let mut early = connect(&apps, echoes, SOON)?;
    let crowd = Crowd::at(&apps, files, Habit::ReadsSlowly, &consumer.process)?;
    let all_go_on = |early: &mut std::net::TcpStream| -> anyhow::Result<()> {
        for (group, who) in groups.iter().zip(["node", "provider", "consumer"]) {
            let killed = group.killed()?;
            anyhow::ensure!(killed == 0, "the kernel killed the {who}");
        }
        wait::until_some("the connection that was there before carries", SOON, || {
            echo(early).map_err(|error| error.to_string())
        })?;
        for name in ["echo", "example.org"] {
            let said = dig(&apps, &[name, "A", "+short"])?;
            anyhow::ensure!(!said.trim().is_empty(), "nobody knows {name}");
        }
        node.keel(&["get", "routers"])?.ok(COMMAND)?;
        metrics(&provider)?;
        Ok(())
    };
    for _ in 0..if need::long() { 60 } else { 5 } {
        all_go_on(&mut early)?;
        wait::pause(Duration::from_secs(1));
    }
    for (group, who) in groups.iter().zip(["node", "provider", "consumer"]) {
        println!("{who}: at most {} MiB", group.peak() >> 20);
    }
    for (sidecar, who) in [(&consumer, "consumer"), (&provider, "provider")] {
        let text = metrics(sidecar)?;
        let of = |name: &str| sum(&text, name);
        println!(
            "{who}: {} connections held back, {} bytes buffered, {} flows cut",
            of("keel_sidecar_limit_hit_total{name=\"connections\"}"),
            of("keel_fabric_flow_buffered_bytes"),
            of("keel_fabric_flows_ended_total"),
        );
    }

    drop(crowd);
    recovers(&apps, echoes)?;
    all_go_on(&mut early)
}
