//! Backends that behave as asked.

use std::net::SocketAddr;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A backend; it ends with the value.
pub(crate) struct Backend {
    pub(crate) addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Backend {
    /// Runs `serve` for every connection.
    pub(crate) async fn new<F, R>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(serve(socket));
            }
        });
        Self {
            addr,
            _tasks: tasks,
        }
    }

    /// Gives every byte back, and the end behind the last one.
    pub(crate) async fn echo() -> Self {
        Self::new(|mut socket| async move {
            let (mut read, mut write) = socket.split();
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                write.shutdown().await.ok();
            }
        })
        .await
    }
}

/// A backend that never reads.
pub(crate) async fn stuck() -> Backend {
    Backend::new(|socket| async move {
        std::future::pending::<()>().await;
        drop(socket);
    })
    .await
}

/// A backend whose kernel takes no connection before [`hear`](Self::hear).
pub(crate) struct Deaf {
    pub(crate) addr: SocketAddr,
    listener: std::net::TcpListener,
    fill: TcpStream,
}

impl Deaf {
    pub(crate) async fn new() -> Self {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        // One connection fits the queue; the SYNs of others are dropped.
        socket.listen(0).unwrap();
        let listener = std::net::TcpListener::from(socket);
        let addr = listener.local_addr().unwrap();
        let fill = TcpStream::connect(addr).await.unwrap();
        Self {
            addr,
            listener,
            fill,
        }
    }

    /// Takes connections from now on; connections that wait come with the next SYN.
    pub(crate) fn hear(self) -> TcpListener {
        drop(self.fill);
        let (filled, _) = self.listener.accept().unwrap();
        drop(filled);
        self.listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(self.listener).unwrap()
    }
}

/// An address where nobody listens, and whose port no test is given while another one counts on that.
pub(crate) fn nobody() -> SocketAddr {
    SocketAddr::from(([127, 77, 0, 1], 9))
}

/// Bytes that look random and can be made again.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn sha256(bytes: &[u8]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    context.finish().as_ref().to_vec()
}

/// Sends `bytes`, half-closes, and reads until the end.
pub(crate) async fn exchange(socket: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut read, mut write) = socket.split();
    let mut answer = Vec::new();
    let send = async {
        write.write_all(bytes).await?;
        write.shutdown().await
    };
    tokio::try_join!(send, read.read_to_end(&mut answer))?;
    Ok(answer)
}
