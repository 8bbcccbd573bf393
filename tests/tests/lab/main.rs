//! The lab itself: a test about NAT proves nothing if the NAT is none.

mod link;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use keel_tests::backends::{Backend, Digest, Manner, pattern, random_file};
use keel_tests::client::{End, Exchange};
use keel_tests::lab::{Host, Lab, NatKind};
use keel_tests::need::{Need, lacking};
use keel_tests::process::Program;
use keel_tests::servers::{MariaDb, Redis};
use keel_tests::wait::SOON;

/// A datagram that has not arrived by then was dropped: everything is on one machine.
const LOST: Duration = Duration::from_millis(300);

fn socket(host: &Host) -> anyhow::Result<UdpSocket> {
    let socket = host.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5000)))??;
    socket.set_read_timeout(Some(LOST))?;
    Ok(socket)
}

/// Where a datagram from `from` seems to come from, if it arrives.
fn seen_from(
    from: &UdpSocket,
    to: &UdpSocket,
    address: Ipv4Addr,
) -> anyhow::Result<Option<SocketAddr>> {
    from.send_to(b"x", (address, 5000))?;
    Ok(to.recv_from(&mut [0; 16]).ok().map(|(_, peer)| peer))
}

#[test]
fn nats_differ_in_the_ports_they_choose() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let (one, two) = (lab.host("one")?, lab.host("two")?);
    let (one_socket, two_socket, stranger) = (
        socket(&one)?,
        socket(&two)?,
        socket(&lab.host("stranger")?)?,
    );
    for kind in [NatKind::Home, NatKind::Symmetric] {
        let (edge, nat) = lab.behind_nat(&format!("{kind:?}").to_lowercase(), kind)?;
        let inside = socket(&edge)?;
        let first = seen_from(&inside, &one_socket, one.address)?
            .ok_or_else(|| anyhow::anyhow!("{kind:?}: nothing arrived"))?;
        let second = seen_from(&inside, &two_socket, two.address)?
            .ok_or_else(|| anyhow::anyhow!("{kind:?}: nothing arrived"))?;
        assert_eq!(
            (first.ip(), second.ip()),
            (nat.public.into(), nat.public.into()),
            "{kind:?} hides the inside"
        );
        assert_eq!(
            first.port() == second.port(),
            kind == NatKind::Home,
            "{kind:?}: {first} and {second}"
        );

        one_socket.send_to(b"answer", first)?;
        assert!(
            inside.recv(&mut [0; 16]).is_ok(),
            "{kind:?}: an answer comes in"
        );
        stranger.send_to(b"unasked", first)?;
        let unasked = inside.recv(&mut [0; 16]).is_ok();
        assert!(!unasked, "{kind:?}: what nobody asked for does not");

        nat.rebind()?;
        one_socket.send_to(b"late", first)?;
        assert!(
            inside.recv(&mut [0; 16]).is_err(),
            "{kind:?}: the old port leads nowhere after a rebinding"
        );
        let moved = seen_from(&inside, &one_socket, one.address)?
            .ok_or_else(|| anyhow::anyhow!("{kind:?}: nothing arrived"))?;
        assert_ne!(moved.port(), first.port(), "{kind:?} has a new port");
    }
    Ok(())
}

#[test]
fn cables_can_be_unplugged() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let (one, two) = (lab.host("one")?, lab.host("two")?);
    let (from, to) = (socket(&one)?, socket(&two)?);
    assert!(seen_from(&from, &to, two.address)?.is_some());
    lab.unplug(two.address)?;
    assert!(
        seen_from(&from, &to, two.address)?.is_none(),
        "nothing passes an unplugged cable"
    );
    lab.plug(two.address)?;
    assert!(
        seen_from(&from, &to, two.address)?.is_some(),
        "plugged in again"
    );
    lab.lose(1000)?;
    assert!(seen_from(&from, &to, two.address)?.is_none(), "all is lost");
    lab.lose(0)?;
    two.block(5000)?;
    assert!(seen_from(&from, &to, two.address)?.is_some());
    assert!(
        to.send_to(b"x", (one.address, 5000)).is_err(),
        "a blocked port is not reached"
    );
    two.unblock()?;
    assert!(seen_from(&to, &from, one.address)?.is_some());
    Ok(())
}

#[test]
fn backends_do_what_they_say() -> anyhow::Result<()> {
    let ask = Exchange {
        send: b"hello",
        finish: true,
        bound: SOON,
    };
    let see = |manner: Manner, ask: &Exchange<'_>| -> anyhow::Result<_> {
        let backend = Backend::here(manner)?;
        let seen = ask.here(backend.address());
        Ok((seen.bytes, seen.end))
    };
    assert_eq!(see(Manner::Echo, &ask)?, (b"hello".to_vec(), End::Closed));
    assert_eq!(
        see(Manner::Banner(b"220 "), &ask)?,
        (b"220 hello".to_vec(), End::Closed)
    );
    assert_eq!(
        see(Manner::AnswerAfterEnd(100_000), &ask)?,
        (pattern(100_000), End::Closed)
    );
    let open = Exchange {
        finish: false,
        ..ask.clone()
    };
    assert_eq!(
        see(Manner::SendThenReset(50_000), &open)?,
        (pattern(50_000), End::Reset)
    );
    assert_eq!(see(Manner::Reset, &open)?, (Vec::new(), End::Reset));
    assert_eq!(
        see(
            Manner::Mute,
            &Exchange {
                bound: LOST,
                ..open
            }
        )?,
        (Vec::new(), End::Silent)
    );
    Ok(())
}

#[test]
fn bulk_backend_moves_files_both_ways() -> anyhow::Result<()> {
    if lacking(&[Need::Curl]) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let (file, got) = (folder.path().join("file"), folder.path().join("got"));
    let sum = random_file(&file, 3_000_001, 7)?;
    let backend = Backend::here(Manner::Http(file.clone()))?;
    let url = format!("http://{}/", backend.address());
    Program::new("curl")
        .args(["-sSf", "-o"])
        .arg(&got)
        .arg(&url)
        .ok(SOON)?;
    assert_eq!(Digest::of_file(&got)?, sum);
    assert_eq!(
        Program::new("curl")
            .args(["-sSf", "-T"])
            .arg(&file)
            .arg(&url)
            .ok(SOON)?,
        sum.to_string()
    );
    Ok(())
}

#[test]
fn servers_come_up() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Redis, Need::MariaDb]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("server")?;
    assert_eq!(Redis::on(&host)?.ask(&["ping"])?.trim(), "PONG");
    let server = MariaDb::on(&host)?;
    let dump = server.write_dump(1 << 20)?;
    let load = format!("source {}", dump.display());
    MariaDb::client("mariadb", "127.0.0.1")
        .args(["shop", "-e", &load])
        .on(&host)
        .ok(SOON)?;
    assert!(
        server
            .ask("SELECT COUNT(*) FROM shop.orders")?
            .trim()
            .parse::<u32>()?
            > 1000
    );
    Ok(())
}
