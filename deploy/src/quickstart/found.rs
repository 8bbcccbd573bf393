//! Servers that happen to listen on this machine: published too, as a bonus.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A server on its usual port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The name to publish it under.
    pub(super) name: &'static str,
    /// Where it listens.
    pub(super) addr: SocketAddr,
}

const KNOWN: [(&str, u16); 3] = [("redis", 6379), ("mysql", 3306), ("postgres", 5432)];
const PATIENCE: Duration = Duration::from_millis(500);

/// Looks at the usual ports of the loopback address.
pub(super) async fn look() -> Vec<Found> {
    let mut all = Vec::new();
    for (name, port) in KNOWN {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if matches!(timeout(PATIENCE, TcpStream::connect(addr)).await, Ok(Ok(_))) {
            all.push(Found { name, addr });
        }
    }
    all
}

/// Talks to the server through `target` and says in a few words what it answered.
pub(super) async fn greet(found: &Found, target: SocketAddr) -> anyhow::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(target).await?;
        match found.name {
            "redis" => stream.write_all(b"PING\r\n").await?,
            // SSLRequest: the server answers S or N.
            "postgres" => stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?,
            // MySQL speaks first.
            _ => {}
        }
        let mut answer = [0; 128];
        let read = stream.read(&mut answer).await?;
        anyhow::ensure!(read > 0, "closed without a word");
        Ok(read)
    };
    let read = timeout(PATIENCE * 10, exchange)
        .await
        .context("does not answer")??;
    Ok(format!("answers ({read} bytes)"))
}
