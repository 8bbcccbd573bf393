//! Redis and MariaDB behind a NAT, used by name from another network.

use std::time::Duration;

use keel_tests::backends::Digest;
use keel_tests::lab::NatKind;
use keel_tests::need::{Need, lacking};
use keel_tests::process::Program;
use keel_tests::servers::{MariaDb, Redis};
use keel_tests::site::Town;
use keel_tests::wait::{self, SOON};

/// The longest that one of the bulk commands may take here; seconds are usual.
const BULK: Duration = Duration::from_secs(180);
/// How long a subscription hears nothing.
const IDLE: Duration = Duration::from_secs(60);

#[test]
fn redis_behind_a_symmetric_nat() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Redis, Need::Dig]) {
        return Ok(());
    }
    let town = Town::new(NatKind::Symmetric, "redis=127.0.0.1:6379", "redis")?;
    let redis = Redis::on(town.servers())?;
    town.consumer.listens("redis.default.svc", 6379)?;

    let words = ["-h", "redis", "-p", "6379", "subscribe", "news"];
    let mut subscriber = Program::new("redis-cli")
        .args(words)
        .on(town.apps())
        .start()?;
    subscriber.says("subscribe", SOON)?;
    let subscribed = std::time::Instant::now();

    redis.ask(&["config", "resetstat"])?;
    {
        let _alone = super::heavy();
        let words = [
            "-h",
            "redis.default.svc",
            "-n",
            "100000",
            "-c",
            "50",
            "-P",
            "16",
            "-t",
            "set,get",
            "--csv",
        ];
        let table = Program::new("redis-benchmark")
            .args(words)
            .on(town.apps())
            .ok(BULK)?;
        println!("{table}");
        assert!(
            table.contains("\"SET\"") && table.contains("\"GET\""),
            "no result: {table}"
        );
    }
    let stats = redis.ask(&["info", "commandstats"])?;
    for command in ["set", "get"] {
        let line = stats
            .lines()
            .find(|line| line.starts_with(&format!("cmdstat_{command}:")));
        let line = line.unwrap_or_else(|| panic!("no {command} arrived: {stats}"));
        assert!(
            line.contains("calls=100000,"),
            "every command arrives once: {line}"
        );
        assert!(line.contains("failed_calls=0"), "and is understood: {line}");
    }

    wait::pause(IDLE.saturating_sub(subscribed.elapsed()));
    assert_eq!(
        redis.ask(&["publish", "news", "still here"])?.trim(),
        "1",
        "one subscriber is left after a minute of silence"
    );
    subscriber.says("still here", SOON)
}

#[test]
fn mariadb_behind_a_home_nat() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::MariaDb, Need::Dig]) {
        return Ok(());
    }
    let town = Town::new(NatKind::Home, "mysql=127.0.0.1:3306", "mysql")?;
    let server = MariaDb::on(town.servers())?;
    town.consumer.listens("mysql.default.svc", 3306)?;
    let dump = server.write_dump(60 << 20)?;

    let name = "mysql.default.svc";
    {
        let _alone = super::heavy();
        let load = format!("source {}", dump.display());
        MariaDb::client("mariadb", name)
            .args(["shop", "-e", &load])
            .on(town.apps())
            .ok(BULK)?;
        let folder = tempfile::tempdir()?;
        let (through, direct) = (folder.path().join("through"), folder.path().join("direct"));
        for (host, server, file) in [
            (town.apps(), name, &through),
            (town.servers(), "127.0.0.1", &direct),
        ] {
            let result = format!("--result-file={}", file.display());
            let options = ["--skip-comments", "--single-transaction", &result, "shop"];
            MariaDb::client("mariadb-dump", server)
                .args(options)
                .on(host)
                .ok(BULK)?;
        }
        assert!(
            std::fs::metadata(&through)?.len() >= 50 << 20,
            "the dump is as large as the load"
        );
        assert_eq!(
            Digest::of_file(&through)?,
            Digest::of_file(&direct)?,
            "the dump through the fabric is the dump on the server"
        );

        server.ask("CREATE DATABASE copy")?;
        let load = format!("source {}", through.display());
        MariaDb::client("mariadb", name)
            .args(["copy", "-e", &load])
            .on(town.apps())
            .ok(BULK)?;
        let sums = server.ask("CHECKSUM TABLE shop.orders, copy.orders")?;
        let sums: Vec<_> = sums
            .lines()
            .filter_map(|line| line.split('\t').nth(1))
            .collect();
        assert!(
            sums.len() == 2 && sums[0] == sums[1] && sums[0] != "NULL",
            "loaded again it is the same table: {sums:?}"
        );
    }

    let aborted = "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME='ABORTED_CLIENTS'";
    let before = server.ask(aborted)?;
    let slap = [
        "--concurrency=200",
        "--iterations=3",
        "--query=SELECT COUNT(*) FROM shop.orders WHERE id < 10",
        "--create-schema=shop",
    ];
    let table = MariaDb::client("mariadb-slap", name)
        .args(slap)
        .on(town.apps())
        .ok(BULK)?;
    println!("{table}");
    wait::until("no connection is left behind", SOON, || {
        server
            .ask("SHOW STATUS LIKE 'Threads_connected'")
            .is_ok_and(|line| line.trim().ends_with("\t1"))
    })?;
    assert_eq!(
        server.ask(aborted)?,
        before,
        "none of the 600 connections was cut"
    );
    Ok(())
}
