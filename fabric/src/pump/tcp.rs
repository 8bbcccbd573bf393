//! The application's socket as the pump uses it.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes read at once.
const SCRATCH: usize = 64 << 10;
/// Reads of at least this size are handed on in the buffer that they were read into; smaller ones are copied to their
/// exact size, so that what waits for its acknowledgement pins at most twice its length.
const HAND_OVER: usize = SCRATCH / 2;
/// Chunks written at once.
pub(super) const SLICES: usize = 64;

thread_local! {
    /// One read buffer for all flows of the thread: idle flows hold none.
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

type Failed = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The application's socket; it stays open until this is dropped.
pub(crate) struct Socket {
    stream: Arc<TcpStream>,
    /// Waits for an error; made when it is first asked for, because a socket that is read shows its errors there.
    failed: Option<Failed>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream: Arc::new(stream),
            failed: None,
        }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Ready once the peer has reset the connection, or it is broken otherwise. Needs no read, which may be impossible
    /// now, and leaves the error where it is: asking the kernel for it would take it from later reads and writes.
    pub(crate) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stream = &self.stream;
        let failed = self.failed.get_or_insert_with(|| {
            let stream = Arc::clone(stream);
            Box::pin(async move {
                // An error here says that the runtime ends.
                let _ = stream.ready(Interest::ERROR).await;
            })
        });
        ready!(failed.as_mut().poll(cx));
        // Whoever asks again hears it again: the socket's state does not go away.
        self.failed = None;
        Poll::Ready(())
    }

    /// Closes after a flow that delivered everything: what the kernel still holds goes out, then the end.
    ///
    /// A socket that is dropped in any other way is reset, see [`prepare`].
    pub(crate) fn close(self) {
        // Fails only on a socket that is dead already.
        let _ = SockRef::from(&*self.stream).set_linger(None);
    }
}

/// What came of a read.
#[derive(Debug)]
pub(super) enum Read {
    Bytes(Bytes),
    End,
}

/// Sets what every proxied socket needs: no delay, keep-alive 30/10/3, urgent data in line, and a reset when it is closed
/// without more: a killed process leaves the closing to the kernel, and a cut stream must never look like a finished one.
///
/// # Errors
/// Those of the system; the socket is then already dead.
pub(crate) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_linger(Some(Duration::ZERO))?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    // Without it the kernel takes the urgent byte silently out of the stream.
    socket.set_out_of_band_inline(true)
}

/// Reads at most `max` bytes.
pub(super) fn poll_read(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    max: usize,
) -> Poll<io::Result<Read>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        match READ.with_borrow_mut(|scratch| read_now(tcp, scratch, max)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

/// Reads at most `max` bytes of a connection that is dead. What the runtime knows of its readiness may be older than that,
/// so the kernel is asked; there is nothing to wait for.
///
/// # Errors
/// `WouldBlock` at the end of what is there, or the connection's error, if nobody was told of it yet.
pub(super) fn read_rest(tcp: &TcpStream, max: usize) -> io::Result<Read> {
    let mut rest = vec![0; max.min(SCRATCH)];
    let len = (&*SockRef::from(tcp)).read(&mut rest)?;
    rest.truncate(len);
    Ok(match len {
        0 => Read::End,
        _ => Read::Bytes(Bytes::from(rest)),
    })
}

fn read_now(tcp: &TcpStream, scratch: &mut Vec<u8>, max: usize) -> io::Result<Read> {
    if scratch.capacity() < SCRATCH {
        *scratch = Vec::with_capacity(SCRATCH);
    }
    scratch.clear();
    let len = tcp.try_read_buf(&mut (&mut *scratch).limit(max.min(SCRATCH)))?;
    if len == 0 {
        return Ok(Read::End);
    }
    if len < HAND_OVER {
        return Ok(Read::Bytes(Bytes::copy_from_slice(scratch)));
    }
    Ok(Read::Bytes(Bytes::from(std::mem::take(scratch))))
}

/// Writes the front of `chunks`, at most `most` bytes; returns how many bytes were taken.
pub(super) fn poll_write<'a>(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    chunks: impl Iterator<Item = &'a Bytes>,
    mut most: usize,
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let mut count = 0;
    for (slot, chunk) in slices.iter_mut().zip(chunks) {
        if most == 0 {
            break;
        }
        *slot = IoSlice::new(&chunk[..chunk.len().min(most)]);
        most -= slot.len();
        count += 1;
    }
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_write_vectored(&slices[..count]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

/// Sends FIN.
pub(super) fn end_write(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).shutdown(std::net::Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle connection needs to notice that its other end is gone, and an application to see no difference.
    #[tokio::test]
    async fn every_proxied_socket_has_its_options() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        prepare(&tcp).unwrap();
        let socket = SockRef::from(&tcp);
        assert!(socket.keepalive().unwrap());
        let silence = socket.tcp_keepalive_time().unwrap()
            + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        assert_eq!(silence, Duration::from_secs(60));
        assert!(socket.tcp_nodelay().unwrap() && socket.out_of_band_inline().unwrap());
        assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO));
    }
}
