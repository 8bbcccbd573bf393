//! What the sidecar's DNS answers, asked with `dig` as an application's resolver would.

use std::net::Ipv4Addr;

use keel_tests::backends::FakeUpstream;
use keel_tests::lab::{Host, Lab};
use keel_tests::need::{Need, lacking};
use keel_tests::site::{DNS, Node, Sidecar, dig};
use keel_tests::wait::{self, SOON};

/// What the fake upstream says to everything.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// Status, number of answers and number of authority records of one reply.
fn head(host: &Host, words: &[&str]) -> anyhow::Result<(String, u32, u32)> {
    let text = dig(host, words)?;
    let after = |mark: &str| {
        text.split(mark)
            .nth(1)
            .and_then(|rest| rest.split([',', '\n', ';']).next())
            .unwrap_or("?")
            .trim()
            .to_owned()
    };
    Ok((
        after("status: "),
        after("ANSWER: ").parse()?,
        after("AUTHORITY: ").parse()?,
    ))
}

fn is(host: &Host, words: &[&str], status: &str, answers: u32) -> anyhow::Result<()> {
    let (said, found, _) = head(host, words)?;
    anyhow::ensure!(
        (said.as_str(), found) == (status, answers),
        "{words:?}: {said} with {found} answers instead of {status} with {answers}"
    );
    Ok(())
}

#[test]
fn every_rule_for_names() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let upstream = FakeUpstream::on(&host, "127.0.0.9:53", ELSEWHERE)?;
    let host = host.resolves_by(Some(
        "127.0.0.9\nsearch default.svc.cluster.local corp.example",
    ))?;
    let node = Node::public(&host, "a")?;
    let mut consumer = Sidecar::beside(
        &node,
        "consumer",
        &[
            "--mapped-services",
            "mysql,cache=redis.stage,api.stage.north:8080",
        ],
    )?;
    let mysql = consumer.resolves("mysql.default.svc")?;
    assert!(
        mysql.octets().starts_with(&[127, 0, 66]),
        "out of the default range: {mysql}"
    );

    let forms = [
        "mysql",
        "mysql.default",
        "mysql.default.svc",
        "mysql.default.svc.cluster.local",
        "mysql.default.svc.clusterset.local",
    ];
    for form in forms {
        for name in [
            form.to_owned(),
            form.to_uppercase(),
            format!("{form}."),
            format!("{form}.default.svc.cluster.local"),
        ] {
            let tcp = dig(&host, &[&name, "A", "+short", "+tcp"])?;
            assert_eq!(
                (consumer.resolves(&name)?, tcp.trim()),
                (mysql, mysql.to_string().as_str()),
                "{name}"
            );
        }
    }
    let redis = consumer.resolves("redis.stage.svc")?;
    assert_eq!(consumer.resolves("cache")?, redis, "the alias");
    assert_eq!(
        consumer.resolves("redis")?,
        redis,
        "the only mapping with that name has the bare name"
    );
    assert_eq!(
        consumer.resolves("api")?,
        consumer.resolves("api.stage.svc.clusterset.local")?
    );
    assert!(redis != mysql, "one address per service");

    for kind in ["AAAA", "TXT", "SRV", "MX"] {
        assert_eq!(
            head(&host, &["mysql.default.svc", kind])?,
            ("NOERROR".to_owned(), 0, 1),
            "{kind} of a known name is NODATA with SOA"
        );
    }
    wait::until("the table is synced", SOON, || {
        is(
            &host,
            &["other.default.svc.clusterset.local", "A"],
            "NXDOMAIN",
            0,
        )
        .is_ok()
    })?;
    for name in [
        "kubernetes.default.svc.cluster.local",
        "example.com",
        "mysqlx.default.svc.cluster.local",
    ] {
        assert_eq!(
            consumer.resolves(name)?,
            ELSEWHERE,
            "{name} is the upstream's"
        );
    }
    is(&host, &["example.com", "AAAA"], "NOERROR", 0)?;

    drop(upstream);
    is(&host, &["unseen.example.com", "A"], "SERVFAIL", 0)?;
    assert_eq!(
        consumer.resolves("mysql")?,
        mysql,
        "without an upstream our names are answered"
    );
    consumer.process.stop(SOON)?;
    consumer.again()?;
    assert_eq!(
        (
            consumer.resolves("mysql")?,
            consumer.resolves("redis.stage")?
        ),
        (mysql, redis),
        "addresses outlive a restart"
    );
    Ok(())
}

#[test]
fn without_an_upstream() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    // A pod whose resolv.conf names only the sidecar, and one that wants the plain rule.
    let (pod, plain) = (
        lab.host("pod")?.resolves_by(Some(DNS))?,
        lab.host("plain")?.resolves_by(Some(DNS))?,
    );
    let (pod_node, plain_node) = (Node::public(&pod, "pod")?, Node::public(&plain, "plain")?);
    let mut lonely = Sidecar::beside(&pod_node, "pod", &["--mapped-services", "mysql"])?;
    let flags = [
        "--mapped-services",
        "mysql",
        "--dns-upstream",
        "none",
        "--ip-range",
        "127.0.77.0/24",
    ];
    let without = Sidecar::beside(&plain_node, "plain", &flags)?;
    lonely.resolves("mysql")?;
    lonely.process.says("SIDECAR_DNS_UPSTREAM", SOON)?;
    is(&pod, &["example.com", "A"], "SERVFAIL", 0)?;
    assert_eq!(
        without.resolves("mysql")?,
        Ipv4Addr::new(127, 0, 77, 1),
        "the first of the range that was given"
    );
    is(&plain, &["example.com", "A"], "NXDOMAIN", 0)
}
