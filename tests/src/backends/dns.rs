//! A name server that knows one answer: the upstream that a sidecar forwards foreign names to.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lab::Host;

/// How often the server looks whether it should stop.
const LOOK: Duration = Duration::from_millis(100);
/// The header of a DNS message (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// Answers every question with one A record.
#[derive(Debug)]
pub struct FakeUpstream {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeUpstream {
    /// Starts one on that address of a host. Every A question is answered with `answer`.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn on(host: &Host, listen: &str, answer: Ipv4Addr) -> anyhow::Result<Self> {
        let socket = host.run(|| UdpSocket::bind(listen))??;
        socket.set_read_timeout(Some(LOOK))?;
        let (address, stop) = (socket.local_addr()?, Arc::new(AtomicBool::new(false)));
        let thread = std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn({
                let stop = Arc::clone(&stop);
                move || {
                    let mut packet = [0; 1232];
                    while !stop.load(Ordering::Acquire) {
                        let Ok((length, peer)) = socket.recv_from(&mut packet) else {
                            continue;
                        };
                        if let Some(reply) = reply(&packet[..length], answer) {
                            let _peer_gone = socket.send_to(&reply, peer);
                        }
                    }
                }
            })?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// The question again, with one answer of type A behind it (none if another type is asked).
fn reply(query: &[u8], answer: Ipv4Addr) -> Option<Vec<u8>> {
    let name = query.get(HEADER..)?.iter().position(|&byte| byte == 0)?;
    let question = query.get(HEADER..HEADER + name + 5)?;
    let is_a = question[name + 1..name + 3] == [0, 1];
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    reply.extend(question);
    if is_a {
        // A pointer to the question's name, type A, class IN, a minute to live, four bytes.
        reply.extend([0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer.octets());
    }
    Some(reply)
}
