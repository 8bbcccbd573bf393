//! Wrong usage: each ends at once with status 2 (or 1 if only the machine is in the way), names what was wrong and says
//! what to do.

use keel_tests::lab::Lab;
use keel_tests::need::{Need, lacking};
use keel_tests::process::{Finished, Program};
use keel_tests::site::{COMMAND, Node, Sidecar};
use keel_tests::wait::SOON;

fn sidecar(flags: &[&str]) -> anyhow::Result<Finished> {
    let state = tempfile::tempdir()?;
    let program = Program::ours("keel-sidecar")?
        .args(["--metrics-addr", "127.0.0.1:0", "--state-dir"])
        .arg(state.path());
    program.args(flags).output(COMMAND)
}

#[test]
fn flags_of_a_sidecar() -> anyhow::Result<()> {
    let many = |count: usize| {
        (1..=count)
            .map(|n| format!("s{n}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let (over, full) = (many(101), many(20));
    for (flags, words) in [
        (
            ["--mapped-services", "mysql", "--ip-range", "127.0.66.0/33"].as_slice(),
            ["127.0.66.0/33", "127.0.66.0/24"].as_slice(),
        ),
        (
            &["--mapped-services", "mysql", "--ip-range", "everything"],
            &["everything", "127.0.66.0/24"],
        ),
        (
            &["--mapped-services", &full, "--ip-range", "127.0.66.0/28"],
            &["127.0.66.0/28", "20"],
        ),
        (&["--mapped-services", &over], &["101", "100"]),
        (&["--mapped-services", "mysql,mysql"], &["mysql", "twice"]),
        (
            &["--mapped-services", "my_sql"],
            &["my_sql", "name[.namespace[.cluster]]"],
        ),
        (
            &["--mapped-services", "mysql:99999"],
            &["mysql:99999", "port"],
        ),
        (&["--mapped-services", "a.b.c.d"], &["a.b.c.d"]),
        (&["--published-services", "mysql"], &["mysql", "=host:port"]),
        (
            &["--published-services", "mysql=127.0.0.1"],
            &["mysql=127.0.0.1", "=host:port"],
        ),
        (
            &["--mapped-servces", "mysql"],
            &["--mapped-servces", "--mapped-services"],
        ),
        (
            &["--mapped-services", "mysql", "--dns-addr", "localhost"],
            &["localhost", "dns-addr"],
        ),
        (
            &["--mapped-services", "mysql", "--apiserver", "ftp://x"],
            &["ftp://x", "https://"],
        ),
        (
            &["--mapped-services", "mysql", "--join", "keel1.garbage"],
            &["token"],
        ),
    ] {
        sidecar(flags)?
            .complains(2, words)
            .map_err(|error| error.context(format!("{flags:?}")))?;
    }
    Ok(())
}

#[test]
fn flags_of_a_node() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("keel.yaml");
    std::fs::write(&file, "nodeName: a\nrouterListne: ':7000'\n")?;
    let file = file.to_string_lossy();
    for (flags, words) in [
        (
            ["up", "--node-name", "UPPER_case"].as_slice(),
            ["UPPER_case"].as_slice(),
        ),
        (&["up", "--router-listen", "nowhere"], &["nowhere"]),
        (
            &["up", "--advertise", "198.51.100.1"],
            &["198.51.100.1", "HOST:PORT"],
        ),
        (&["up", "--peer", "b"], &["NAME=HOST:PORT"]),
        (&["up", "--join", "keel1.garbage"], &["token"]),
        (&["up", "--join", "@/nowhere/token"], &["/nowhere/token"]),
        (&["up", "--config", &file], &["routerListne", "keel.yaml:2"]),
        (&["up", "--config", "/nowhere.yaml"], &["/nowhere.yaml"]),
        (&["token", "create", "--ttl", "soon"], &["soon"]),
        (&["upp"], &["up"]),
    ] {
        let data = folder.path().join("data");
        let finished = Program::ours("keel")?
            .args(flags)
            .env("KEEL_DATA_DIR", &data)
            .output(COMMAND)?;
        finished
            .complains(2, words)
            .map_err(|error| error.context(format!("{flags:?}")))?;
    }
    Ok(())
}

#[test]
fn help_is_complete() -> anyhow::Result<()> {
    for name in [
        "keel",
        "keel-apiserver",
        "keel-router",
        "keel-syncer",
        "keel-sidecar",
    ] {
        let help = Program::ours(name)?.arg("--help").ok(COMMAND)?;
        assert!(
            help.contains("Example"),
            "{name} --help has an example: {help}"
        );
        assert!(
            Program::ours(name)?
                .arg("--version")
                .ok(COMMAND)?
                .contains(env!("CARGO_PKG_VERSION")),
            "{name}"
        );
    }
    for command in ["quickstart", "up", "token", "kubeconfig", "get", "status"] {
        let help = Program::ours("keel")?
            .args([command, "--help"])
            .ok(COMMAND)?;
        assert!(
            help.contains("Example"),
            "keel {command} --help has an example: {help}"
        );
    }
    Ok(())
}

#[test]
fn ports_that_cannot_be_had() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let node = Node::public(&host, "a")?;

    // One directory, one port: the second says who or what is in the way.
    let second = Node::command(&host, "a", node.data(), &[])?.output(COMMAND)?;
    second.complains(
        1,
        &[
            &node.process.pid().to_string(),
            &node.data().to_string_lossy(),
        ],
    )?;
    let other = tempfile::tempdir()?;
    Node::command(&host, "b", other.path(), &[])?
        .output(COMMAND)?
        .complains(1, &["7443"])?;
    let flags = [
        "--apiserver-listen",
        "127.0.0.1:7444",
        "--metrics-listen",
        "127.0.0.1:9091",
    ];
    let other = tempfile::tempdir()?;
    Node::command(&host, "b", other.path(), &flags)?
        .output(COMMAND)?
        .complains(1, &["7000", "taken"])?;

    // A DNS address that the user gave is an error, a default one gives way.
    let occupied = host.run(|| std::net::UdpSocket::bind("127.0.0.2:53"))??;
    let ask = |flags: &[&str]| -> anyhow::Result<Finished> {
        let state = tempfile::tempdir()?;
        let program = Program::ours("keel-sidecar")?
            .env("KEEL_DATA_DIR", node.data())
            .arg("--state-dir")
            .arg(state.path());
        program
            .args(["--mapped-services", "mysql"])
            .args(flags)
            .on(&host)
            .output(COMMAND)
    };
    ask(&["--dns-addr", "127.0.0.2:53"])?.complains(1, &["127.0.0.2:53"])?;
    let mut default = Sidecar::beside(&node, "default", &["--mapped-services", "mysql"])?;
    default.process.says("mysql", SOON)?;
    default.process.says("127.0.0.2:53", SOON)?;
    drop((occupied, default));

    // A port of an address that is taken: the next address serves, and is kept.
    let taken = host.run(|| std::net::TcpListener::bind("127.0.66.1:3306"))??;
    let mut sidecar = Sidecar::beside(&node, "mapping", &["--mapped-services", "mysql:3306"])?;
    let address = sidecar.listens("mysql", 3306)?;
    assert_eq!(
        address.to_string(),
        "127.0.66.2:3306",
        "127.0.66.1:3306 is somebody else's"
    );
    drop(taken);
    sidecar.process.stop(SOON)?;
    sidecar.again()?;
    assert_eq!(
        sidecar.listens("mysql", 3306)?,
        address,
        "the address is kept"
    );
    Ok(())
}

#[test]
fn an_ordinary_user_may_not_have_port_53() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let home = super::quickstart::home_of_nobody()?;
    let program = |flags: &[&str]| -> anyhow::Result<Program> {
        let program = Program::new(home.path().join("keel-sidecar"))
            .env("HOME", home.path())
            .env("XDG_DATA_HOME", home.path().join("data"));
        Ok(program
            .args(["--mapped-services", "mysql:3306"])
            .args(flags)
            .unprivileged()
            .on(&host))
    };
    let refused = program(&["--dns-addr", "127.0.0.2:53"])?.output(COMMAND)?;
    refused.complains(1, &["127.0.0.2:53", "permi", "--dns-addr"])?;

    let mut sidecar = program(&[])?.start()?;
    sidecar.says("127.0.0.2:53 is not to be had", SOON)?;
    sidecar.says("ip_unprivileged_port_start", SOON)
}
