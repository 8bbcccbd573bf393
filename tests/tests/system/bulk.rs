//! Much data both ways, and the ends of connections that proxies get wrong.

use std::time::Duration;

use keel_tests::backends::{Backend, Digest, Manner, pattern, random_file};
use keel_tests::client::{End, Exchange};
use keel_tests::lab::NatKind;
use keel_tests::need::{Need, lacking};
use keel_tests::process::Program;
use keel_tests::site::Town;
use keel_tests::wait::SOON;

/// For a gibibyte each way through two NATs and a router, all on two cores.
const GIBIBYTE: Duration = Duration::from_secs(240);

#[test]
fn a_gibibyte_each_way_at_once() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Curl, Need::Dig]) {
        return Ok(());
    }
    let town = Town::new(NatKind::Home, "web=127.0.0.1:8080", "web")?;
    let folder = tempfile::tempdir()?;
    let (down, up) = (folder.path().join("down"), folder.path().join("up"));
    let _alone = super::heavy();
    let (down_sum, up_sum) = (
        random_file(&down, 1 << 30, 1)?,
        random_file(&up, 1 << 30, 2)?,
    );
    let _server = Backend::on(town.servers(), 8080, Manner::Http(down))?;
    town.consumer.listens("web", 8080)?;

    let got = folder.path().join("got");
    let url = "http://web.default.svc.cluster.local:8080/";
    let download = Program::new("curl")
        .args(["-sSf", "-o"])
        .arg(&got)
        .arg(url)
        .on(town.apps());
    let upload = Program::new("curl")
        .args(["-sSf", "-T"])
        .arg(&up)
        .arg(url)
        .on(town.apps());
    let began = std::time::Instant::now();
    let (uploaded, downloaded) = std::thread::scope(|scope| {
        let download = scope.spawn(|| download.ok(GIBIBYTE));
        (upload.ok(GIBIBYTE), download.join())
    });
    println!("2 GiB in {:.1?}", began.elapsed());
    assert_eq!(uploaded?, up_sum.to_string(), "what was sent up arrived");
    downloaded.map_err(|_| anyhow::anyhow!("the download panicked"))??;
    assert_eq!(
        Digest::of_file(&got)?,
        down_sum,
        "what was sent down arrived"
    );
    Ok(())
}

#[test]
fn ends_of_connections_are_kept() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Dig]) {
        return Ok(());
    }
    let published =
        "banner=127.0.0.1:2001,long=127.0.0.1:2002,echo=127.0.0.1:2003,cut=127.0.0.1:2004";
    let town = Town::new(NatKind::Symmetric, published, "banner,long,echo,cut")?;
    let host = town.servers();
    let long = 8 << 20;
    let _backends = [
        Backend::on(host, 2001, Manner::Banner(b"220 ready\r\n"))?,
        Backend::on(host, 2002, Manner::AnswerAfterEnd(long))?,
        Backend::on(host, 2003, Manner::Echo)?,
        Backend::on(host, 2004, Manner::SendThenReset(50_000))?,
    ];
    let silent = Exchange {
        send: b"",
        finish: true,
        bound: SOON,
    };

    let banner = silent.run(town.apps(), town.consumer.listens("banner", 2001)?)?;
    assert_eq!(
        (banner.bytes.as_slice(), banner.end),
        (b"220 ready\r\n".as_slice(), End::Closed),
        "the server speaks first"
    );

    let asking = Exchange {
        send: b"all of it",
        ..silent.clone()
    };
    let answer = asking.run(town.apps(), town.consumer.listens("long", 2002)?)?;
    assert_eq!(
        (answer.bytes.len(), answer.end),
        (long, End::Closed),
        "the answer outlives the end of the question"
    );
    assert!(
        answer.bytes == pattern(long),
        "and is the answer, byte for byte"
    );

    let sent = pattern(300_000);
    let echo = Exchange {
        send: &sent,
        ..silent.clone()
    }
    .run(town.apps(), town.consumer.listens("echo", 2003)?)?;
    assert!(
        echo.bytes == sent && echo.end == End::Closed,
        "{} bytes came back, then {:?}",
        echo.bytes.len(),
        echo.end
    );

    let cut = Exchange {
        finish: false,
        ..silent
    }
    .run(town.apps(), town.consumer.listens("cut", 2004)?)?;
    assert_eq!(
        (cut.bytes.len(), cut.end),
        (50_000, End::Reset),
        "all that was sent before the RST, then the RST"
    );
    Ok(())
}
