//! The lab's bad link does what it says: the same seed the same losses, and every condition the effect that it names.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use keel_tests::lab::{Conditions, Direction, Host, Lab, Link, Profile};
use keel_tests::need::{Need, lacking};
use keel_tests::wait;

const NONE: Conditions = Conditions {
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    loss: 0.0,
    burst: 0.0,
    reorder: 0.0,
    duplicate: 0.0,
    corrupt: 0.0,
    mtu: 0,
    rate: 0,
    queue: 0,
    flap: None,
    cut: false,
};
/// What the machine itself may add.
const BUSY: Duration = Duration::from_millis(400);

/// Two hosts, one of them behind a link.
struct Pair {
    link: Link,
    inside: UdpSocket,
    outside: UdpSocket,
    to_inside: (Ipv4Addr, u16),
    to_outside: (Ipv4Addr, u16),
    _lab: Lab,
}

impl Pair {
    fn new(seed: u64) -> anyhow::Result<Self> {
        let mut lab = Lab::new()?;
        let (near, link) = lab.host_over("near", NONE, seed)?;
        let far = lab.host("far")?;
        let socket = |host: &Host| -> anyhow::Result<UdpSocket> {
            let socket = host.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5000)))??;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBuf, &(8 << 20))?;
            socket.set_read_timeout(Some(BUSY))?;
            Ok(socket)
        };
        let pair = Self {
            link,
            inside: socket(&near)?,
            outside: socket(&far)?,
            to_inside: (near.address, 5000),
            to_outside: (far.address, 5000),
            _lab: lab,
        };
        // The first one resolves addresses.
        pair.down(&[0; 8])?;
        pair.inside.send_to(&[0; 8], pair.to_outside)?;
        anyhow::ensure!(pair.outside.recv(&mut [0; 8]).is_ok(), "nothing arrived");
        Ok(pair)
    }

    /// From outside to inside.
    fn down(&self, datagram: &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
        self.outside.send_to(datagram, self.to_inside)?;
        let mut buffer = [0; 2048];
        let read = self.inside.recv(&mut buffer).ok();
        Ok(read.map(|length| buffer[..length].to_vec()))
    }

    /// Sends numbered datagrams of `length` bytes from the inside; the numbers that arrive, in their order.
    fn burst(&self, count: u32, length: usize, pause: Duration) -> anyhow::Result<Vec<u32>> {
        let mut datagram = vec![0; length];
        for number in 0..count {
            datagram[..4].copy_from_slice(&number.to_be_bytes());
            self.inside.send_to(&datagram, self.to_outside)?;
            if !pause.is_zero() {
                wait::pause(pause);
            }
        }
        let mut arrived = Vec::new();
        while self.outside.recv(&mut datagram).is_ok() {
            arrived.push(u32::from_be_bytes([
                datagram[0],
                datagram[1],
                datagram[2],
                datagram[3],
            ]));
        }
        Ok(arrived)
    }
}

#[test]
fn a_seed_loses_the_same_packets() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let lossy = Conditions {
        loss: 0.1,
        burst: 4.0,
        ..NONE
    };
    let lose = |seed| -> anyhow::Result<BTreeSet<u32>> {
        let pair = Pair::new(seed)?;
        pair.link.set_one(Direction::Up, lossy);
        let before = pair.link.tally(Direction::Up);
        let arrived: BTreeSet<_> = pair
            .burst(2000, 100, Duration::from_micros(50))?
            .into_iter()
            .collect();
        let after = pair.link.tally(Direction::Up);
        assert_eq!(
            after.passed - before.passed,
            arrived.len() as u64,
            "{after:?}"
        );
        assert_eq!(after.lost, 2000 - arrived.len() as u64, "{after:?}");
        assert!((100..320).contains(&after.lost), "{after:?}");
        assert_eq!(pair.link.tally(Direction::Down).lost, 0);
        Ok((0..2000)
            .filter(|number| !arrived.contains(number))
            .collect())
    };
    let first = lose(7)?;
    assert_eq!(first, lose(7)?, "the same seed loses the same");
    assert_ne!(first, lose(8)?, "another one others");
    Ok(())
}

#[test]
fn conditions_change_while_it_runs() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let pair = Pair::new(1)?;
    let took = |datagram: &[u8]| -> anyhow::Result<Duration> {
        let began = Instant::now();
        anyhow::ensure!(pair.down(datagram)?.is_some(), "nothing arrived");
        Ok(began.elapsed())
    };

    let delay = Duration::from_millis(60);
    pair.link.set(Conditions { delay, ..NONE });
    let best = (0..5)
        .map(|_| took(b"x"))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let best = best.into_iter().min().unwrap_or_default();
    assert!(best >= delay && best < delay * 2, "{best:?} for {delay:?}");

    pair.link.set(Conditions { mtu: 1000, ..NONE });
    assert!(pair.down(&[1; 900])?.is_some(), "what fits passes");
    assert!(pair.down(&[1; 1100])?.is_none(), "what does not is gone");
    assert_eq!(pair.link.tally(Direction::Down).too_long, 1);

    pair.link.set(NONE);
    pair.link
        .set_one(Direction::Up, Conditions { cut: true, ..NONE });
    assert!(pair.down(b"down")?.is_some(), "one way is open");
    assert!(
        pair.burst(3, 100, Duration::ZERO)?.is_empty(),
        "the other is cut"
    );
    assert_eq!(pair.link.tally(Direction::Up).down, 3);

    pair.link.set(Conditions {
        duplicate: 1.0,
        ..NONE
    });
    assert_eq!(pair.burst(2, 100, Duration::ZERO)?, [0, 0, 1, 1]);

    pair.link.set(Conditions {
        reorder: 0.2,
        ..NONE
    });
    let arrived = pair.burst(500, 100, Duration::from_micros(200))?;
    assert!(
        arrived.len() == 500 && !arrived.is_sorted(),
        "{}",
        arrived.len()
    );

    // 100 packets of 1,250 bytes at 1 Mbit/s: one every 10 ms.
    pair.link.set(Conditions {
        rate: 1_000_000,
        ..NONE
    });
    let began = Instant::now();
    let arrived = pair.burst(100, 1250 - 28, Duration::ZERO)?;
    let took = began.elapsed().checked_sub(BUSY).unwrap_or_default();
    assert_eq!(arrived.len(), 100);
    assert!(
        took >= Duration::from_millis(950) && took < Duration::from_millis(1400),
        "{took:?}"
    );
    pair.link.change(|conditions| conditions.queue = 12_500);
    assert_eq!(pair.burst(100, 1250 - 28, Duration::ZERO)?.len(), 10);
    Ok(())
}

#[test]
fn damage_reaches_the_receiver() -> anyhow::Result<()> {
    if lacking(&[Need::Root]) {
        return Ok(());
    }
    let pair = Pair::new(3)?;
    pair.link.set(Conditions {
        corrupt: 1.0,
        ..NONE
    });
    let sent = [0x55; 101];
    let (mut damaged, mut dropped) = (0, 0);
    pair.inside
        .set_read_timeout(Some(Duration::from_millis(30)))?;
    for _ in 0..60 {
        match pair.down(&sent)? {
            Some(got) => {
                let turned: u32 = got
                    .iter()
                    .zip(sent)
                    .map(|(a, b)| (a ^ b).count_ones())
                    .sum();
                assert_eq!((got.len(), turned), (101, 1), "one bit is another");
                damaged += 1;
            }
            None => dropped += 1,
        }
    }
    assert!(
        damaged > 10 && dropped > 10,
        "{damaged} got past the checksum, {dropped} did not"
    );
    Ok(())
}

#[test]
fn profiles_have_names() {
    for profile in Profile::ALL {
        assert_eq!(Profile::named(profile.name()), Some(profile));
    }
    assert_eq!(Profile::named("moon"), None);
    let interop = Profile::Interop.conditions();
    assert_eq!((interop.rate, interop.queue), (10_000_000, 37_500));
}
