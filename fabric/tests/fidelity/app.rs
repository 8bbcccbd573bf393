//! Plays a script on one end of a connection.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::long;
use crate::script::{Record, Step, Tally, pattern};
use crate::ways::Mark;

/// Bytes moved at once.
const PIECE: usize = 64 << 10;
/// More than everything on the way can hold: a write that never fails is stopped here.
const ENDLESS: usize = 64 << 20;
/// A stall by Nagle's algorithm and a delayed acknowledgement is 40 ms; all else is far below on a busy machine.
const QUICK: Duration = Duration::from_millis(30);
/// As the first byte goes through an open and a dial.
const QUICK_OPEN: Duration = Duration::from_millis(1500);
/// Linux: more bytes follow.
const MSG_MORE: i32 = 0x8000;

/// What the two applications tell each other beside the connection. Each word is heard once, however early it was said.
#[derive(Debug)]
pub(crate) struct Words([Semaphore; 2]);

impl Default for Words {
    fn default() -> Self {
        Self([0, 0].map(Semaphore::new))
    }
}

/// How late an application is with its answer.
fn late() -> Duration {
    if long() {
        Duration::from_secs(2)
    } else {
        Duration::from_millis(100)
    }
}

/// How long a slow reader sleeps before it reads at all.
fn asleep() -> Duration {
    if long() {
        Duration::from_secs(5)
    } else {
        Duration::from_millis(100)
    }
}

/// One application.
pub(crate) struct App {
    side: usize,
    socket: Option<TcpStream>,
    began: Instant,
    sent: usize,
    received: usize,
    words: Arc<Words>,
    mark: Mark,
    pub(crate) record: Record,
    pub(crate) paused: Duration,
    /// Of round trips, or to the banner.
    pub(crate) times: Vec<Duration>,
}

impl App {
    pub(crate) fn new(side: usize, socket: TcpStream, words: Arc<Words>, mark: Mark) -> Self {
        let options = SockRef::from(&socket);
        options.set_out_of_band_inline(true).unwrap();
        Self {
            side,
            socket: Some(socket),
            began: Instant::now(),
            sent: 0,
            received: 0,
            words,
            mark,
            record: Record::default(),
            paused: Duration::ZERO,
            times: Vec::new(),
        }
    }

    pub(crate) async fn play(&mut self, script: &[Step]) {
        for step in script {
            self.step(*step).await;
        }
        // A script that does not say how it ends keeps the connection until both are through.
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Send(len) => self.send(len, PIECE).await,
            Step::Trickle(len) => self.send(len, 1).await,
            Step::SendFin(len) => self.send_fin(len).await,
            Step::Urgent => self.urgent(),
            Step::Fin => {
                if self.tcp().shutdown().await.is_err() {
                    self.record.add("broke");
                }
            }
            Step::Read(len) => self.read(len).await,
            Step::ReadEnd => self.read_end(None).await,
            Step::ReadSlowly => self.read_end(Some(Duration::from_millis(2))).await,
            Step::ReadCut => self.read_cut().await,
            Step::Duplex(len) => self.duplex(len).await,
            Step::Exchange(up, down) => self.exchange(up, down).await,
            Step::Push => self.push().await,
            Step::Unread => {
                self.tcp().peek(&mut [0]).await.ok();
            }
            Step::Lie(len) => self.lie(len).await,
            Step::NoDelay => self.tcp().set_nodelay(true).unwrap(),
            Step::Ping(rounds, size) => self.ping(rounds, size).await,
            Step::Pong(rounds, size) => self.pong(rounds, size).await,
            Step::Banner(len) => self.banner(len).await,
            Step::Options => self.options(),
            Step::Tell => self.words.0[self.side].add_permits(1),
            Step::Hear => {
                let said = self.words.0[1 - self.side].acquire().await;
                said.expect("nobody closes it").forget();
            }
            Step::Pause => self.pause(late()).await,
            Step::Rest(millis) => self.pause(Duration::from_millis(millis)).await,
            Step::Mark => self.mark.reached().await,
            Step::Close => self.socket = None,
            Step::Reset => {
                SockRef::from(&*self.tcp())
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                self.socket = None;
            }
        }
    }

    fn tcp(&mut self) -> &mut TcpStream {
        self.socket
            .as_mut()
            .expect("a script does nothing behind its close")
    }

    async fn pause(&mut self, time: Duration) {
        self.paused += time;
        tokio::time::sleep(time).await;
    }

    /// The next bytes of the pattern.
    fn next(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        pattern(self.side, self.sent, &mut bytes);
        self.sent += len;
        bytes
    }

    async fn send(&mut self, len: usize, piece: usize) {
        let mut left = len;
        while left > 0 {
            let bytes = self.next(left.min(piece));
            left -= bytes.len();
            if self.tcp().write_all(&bytes).await.is_err() {
                return self.record.add("broke");
            }
        }
        self.record.add(format!("sent {len}"));
    }

    async fn send_fin(&mut self, len: usize) {
        let bytes = self.next(len);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let tcp = self.tcp();
            tcp.writable().await.unwrap();
            let sent = tcp.try_io(tokio::io::Interest::WRITABLE, || {
                SockRef::from(&*tcp).send_with_flags(rest, MSG_MORE)
            });
            match sent {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return self.record.add("broke"),
            }
        }
        // Sends what the kernel holds back, with FIN.
        self.tcp().shutdown().await.unwrap();
        self.record.add(format!("sent {len}+fin"));
    }

    fn urgent(&mut self) {
        let sent = SockRef::from(&*self.tcp()).send_out_of_band(b"!");
        self.record.add(match sent {
            Ok(1) => "urgent",
            _ => "broke",
        });
    }

    fn options(&mut self) {
        let tcp = self.tcp();
        tcp.set_nodelay(true).unwrap();
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(1))
            .with_interval(Duration::from_secs(1));
        let options = SockRef::from(&*tcp);
        options.set_tcp_keepalive(&keepalive).unwrap();
        options.set_linger(Some(Duration::from_secs(1))).unwrap();
    }

    /// One read; nothing at the end.
    async fn some(&mut self, tally: &mut Tally, buffer: &mut [u8]) -> io::Result<usize> {
        let count = take(self.tcp(), buffer).await?;
        tally.add(&buffer[..count]);
        self.received += count;
        Ok(count)
    }

    async fn read(&mut self, len: usize) {
        let (mut tally, mut buffer) = (Tally::new(), vec![0; PIECE]);
        while tally.len < len {
            let max = PIECE.min(len - tally.len);
            match self.some(&mut tally, &mut buffer[..max]).await {
                Ok(0) => return self.record.add(format!("{} eof", tally.close())),
                Ok(_) => {}
                Err(error) => {
                    return self
                        .record
                        .add(format!("{} {}", tally.close(), name(&error)));
                }
            }
        }
        self.record.add(tally.close());
    }

    async fn read_end(&mut self, slowly: Option<Duration>) {
        let mut tally = Tally::new();
        let mut buffer = vec![0; PIECE];
        if slowly.is_some() {
            self.pause(asleep()).await;
        }
        let mut since = 0;
        let end = loop {
            match self.some(&mut tally, &mut buffer).await {
                Ok(0) => break "eof".to_owned(),
                Ok(count) => since += count,
                Err(error) => break name(&error),
            }
            if let Some(time) = slowly
                && since > 4 * PIECE
            {
                since = 0;
                self.pause(time).await;
            }
        };
        self.record.add(format!("{} {end}", tally.close()));
    }

    async fn read_cut(&mut self) {
        let mut tally = Tally::new();
        let mut buffer = vec![0; PIECE];
        let mut expected = vec![0; PIECE];
        let end = loop {
            let from = self.received;
            match self.some(&mut tally, &mut buffer).await {
                Ok(0) => break "eof".to_owned(),
                Ok(count) => {
                    pattern(1 - self.side, from, &mut expected[..count]);
                    if buffer[..count] != expected[..count] {
                        return self.record.add("other bytes");
                    }
                }
                Err(error) => break name(&error),
            }
        };
        self.record.add(format!("prefix {end}"));
    }

    async fn duplex(&mut self, len: usize) {
        let mut socket = self.socket.take().expect("open");
        let (side, start, mark) = (self.side, self.sent, self.mark.clone());
        let (read, mut write) = socket.split();
        let send = async {
            let mut bytes = vec![0; PIECE];
            let mut done = 0;
            let mut marked = false;
            loop {
                if done >= len / 2 && !std::mem::replace(&mut marked, true) {
                    mark.reached().await;
                }
                if done == len {
                    break;
                }
                let count = PIECE.min(len - done);
                pattern(side, start + done, &mut bytes[..count]);
                write.write_all(&bytes[..count]).await?;
                done += count;
            }
            write.shutdown().await
        };
        let receive = async {
            let mut tally = Tally::new();
            let mut buffer = vec![0; PIECE];
            loop {
                match take(read.as_ref(), &mut buffer).await {
                    Ok(0) => return format!("{} eof", tally.close()),
                    Ok(count) => tally.add(&buffer[..count]),
                    Err(error) => return format!("{} {}", tally.close(), name(&error)),
                }
            }
        };
        let (sent, received) = tokio::join!(send, receive);
        self.sent += len;
        self.socket = Some(socket);
        self.record.add(match sent {
            Ok(()) => format!("sent {len}+fin"),
            Err(_) => "broke".to_owned(),
        });
        self.record.add(received);
    }

    async fn exchange(&mut self, up: usize, down: usize) {
        let bytes = self.next(up);
        let (read, mut write) = self.tcp().split();
        let mut tally = Tally::new();
        let receive = async {
            let mut buffer = vec![0; PIECE];
            while tally.len < down {
                let max = PIECE.min(down - tally.len);
                match take(read.as_ref(), &mut buffer[..max]).await {
                    Ok(0) => return " eof".to_owned(),
                    Ok(count) => tally.add(&buffer[..count]),
                    Err(error) => return format!(" {}", name(&error)),
                }
            }
            String::new()
        };
        let (sent, end) = tokio::join!(write.write_all(&bytes), receive);
        self.received += tally.len;
        self.record.add(match sent {
            Ok(()) => format!("sent {up}"),
            Err(_) => "broke".to_owned(),
        });
        self.record.add(format!("{}{end}", tally.close()));
    }

    async fn lie(&mut self, len: usize) {
        let mut buffer = vec![0; len];
        // The socket is readable before all of them are there, so this looks again and again; the case has its time.
        while len > 0 && matches!(self.tcp().peek(&mut buffer).await, Ok(there) if there < len) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn push(&mut self) {
        let mut left = ENDLESS;
        let mut size = 1;
        while left > 0 {
            let bytes = self.next(size);
            left = left.saturating_sub(size);
            if self.tcp().write_all(&bytes).await.is_err() {
                return self.record.add("broke");
            }
            if size < PIECE {
                // The reset of a connection that is gone comes as the answer to a first byte.
                tokio::time::sleep(Duration::from_millis(5)).await;
                size = (size * 2).min(PIECE);
            }
        }
        self.record.add("never broke");
    }

    async fn ping(&mut self, rounds: usize, size: usize) {
        let (mut tally, mut buffer) = (Tally::new(), vec![0; size]);
        let mut times = Vec::with_capacity(rounds);
        for round in 0..rounds {
            if round == rounds / 2 {
                self.mark.reached().await;
            }
            let bytes = self.next(size);
            let began = Instant::now();
            let tcp = self.tcp();
            let answer = async {
                tcp.write_all(&bytes).await?;
                tcp.read_exact(&mut buffer).await
            };
            if let Err(error) = answer.await {
                return self.record.add(format!("round {round} {}", name(&error)));
            }
            times.push(began.elapsed());
            tally.add(&buffer);
        }
        times.sort_unstable();
        self.took(times[rounds / 2], QUICK);
        self.times = times;
        self.record.add(tally.close());
    }

    async fn pong(&mut self, rounds: usize, size: usize) {
        let mut buffer = vec![0; size];
        for round in 0..rounds {
            let tcp = self.tcp();
            let answer = async {
                tcp.read_exact(&mut buffer).await?;
                tcp.write_all(&buffer).await
            };
            if let Err(error) = answer.await {
                return self.record.add(format!("round {round} {}", name(&error)));
            }
        }
        self.record.add("answered");
    }

    async fn banner(&mut self, len: usize) {
        self.tcp().peek(&mut [0]).await.ok();
        let time = self.began.elapsed();
        self.times.push(time);
        self.took(time, QUICK_OPEN);
        self.read(len).await;
    }

    fn took(&mut self, time: Duration, bound: Duration) {
        if time < bound || self.mark.cuts() {
            self.record.add("quick");
        } else {
            self.record.add(format!("{time:?}"));
        }
    }
}

/// One read. Tokio's own takes a read that did not fill the buffer for the last one that has anything, and waits for more
/// to come; but a read stops at the mark of an urgent byte too, however much is behind it.
async fn take(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        socket.readable().await?;
        match socket.try_read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

fn name(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionReset => "reset".to_owned(),
        ErrorKind::BrokenPipe => "broke".to_owned(),
        ErrorKind::UnexpectedEof => "eof".to_owned(),
        other => other.to_string(),
    }
}
