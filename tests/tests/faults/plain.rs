//! The load itself: without a fault it sees none, and it sees each kind of end for what it is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};

use keel_tests::lab::Lab;
use keel_tests::load::{End, Load, Server};
use keel_tests::need::{Need, lacking};
use keel_tests::wait::SOON;

#[test]
fn an_undisturbed_load_is_exact() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    let server = Server::on(&host, 2003)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 2003));
    let bulk = Load::bulk(4, 1 << 20, 1)
        .start(&host, address, &server)?
        .complete()?;
    bulk.exact()?;
    assert_eq!((bulk.arrived, bulk.sent), (4 << 20, 4 << 20));
    let steady = Load::steady(10, 2).start(&host, address, &server)?;
    steady.moves(400_000, SOON)?;
    let report = steady.finish()?;
    report.exact()?;
    assert_eq!(server.ends(), [End::Exact; 14]);
    println!("{report}");
    Ok(())
}

/// A server that cuts every connection after it has sent something.
fn cut(host: &keel_tests::lab::Host, reset: bool) -> anyhow::Result<SocketAddr> {
    let listener = host.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> anyhow::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut [0; 24])?;
        stream.write_all(&4096_u32.to_be_bytes())?;
        if reset {
            stream.peek(&mut [0])?;
        } else {
            stream.shutdown(Shutdown::Write)?;
            std::io::copy(&mut stream, &mut std::io::sink())?;
        }
        // Closing with unread bytes is an RST.
        Ok(())
    });
    Ok(address)
}

#[test]
fn a_cut_is_called_a_cut() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    // The load's own, where nobody comes.
    let server = Server::on(&host, 2003)?;
    for (reset, end) in [(true, End::Reset), (false, End::CleanCut)] {
        let load = Load::bulk(1, 1 << 20, 3).start(&host, cut(&host, reset)?, &server)?;
        let report = load.complete()?;
        assert_eq!(report.count(end), 1, "{report}");
        assert!(report.exact().is_err());
        assert_eq!(report.honest().is_ok(), reset);
    }
    Ok(())
}
