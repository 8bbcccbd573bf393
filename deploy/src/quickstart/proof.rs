//! What an application would do: ask DNS for a name, then talk to the address it gets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Longest wait for one answer; everything here is on loopback.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks `server` for the IPv4 address of `name`.
pub(super) async fn resolve(server: SocketAddr, name: &str) -> anyhow::Result<IpAddr> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(
        Name::from_ascii(format!("{name}."))?,
        RecordType::A,
    ));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query.to_vec()?).await?;
    let mut buffer = [0; 1500];
    let read = timeout(PATIENCE, socket.recv(&mut buffer))
        .await
        .with_context(|| format!("no answer from the DNS at {server}"))??;
    let answer = Message::from_vec(&buffer[..read])?;
    if answer.metadata.id != query.metadata.id {
        bail!("the DNS at {server} answered another question");
    }
    let address = answer
        .answers
        .iter()
        .find_map(|record| record.data.ip_addr());
    address.with_context(|| {
        format!(
            "the DNS at {server} has no address for {name}: {}",
            answer.metadata.response_code
        )
    })
}

/// Sends one HTTP request and gives the body of the answer.
pub(super) async fn fetch(server: SocketAddr, host: &str) -> anyhow::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        // The service is ours and its answer short; whatever else listens there is not read for ever.
        stream.take(64 * 1024).read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(PATIENCE * 5, exchange)
        .await
        .with_context(|| format!("no answer from {server}"))??;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("{server} does not speak HTTP"))?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200") {
        bail!("{server} answered {status}");
    }
    Ok(body.trim().to_owned())
}
