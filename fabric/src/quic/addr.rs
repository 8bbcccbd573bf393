//! Addresses as users write them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// Why an address could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    /// Not the address of a listener.
    #[error("`{0}` is no listen address: write IP:PORT, [IPV6]:PORT or :PORT")]
    Listen(String),
    /// Not a host with a port.
    #[error("`{0}` is no HOST:PORT: {1}")]
    HostPort(String, &'static str),
}

/// Where to listen: one address, or `:PORT` for all addresses of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ListenAddr {
    ip: Option<IpAddr>,
    port: u16,
}

impl ListenAddr {
    /// All addresses of both families on `port`.
    #[must_use]
    pub const fn any(port: u16) -> Self {
        Self { ip: None, port }
    }

    /// The port; 0 lets the kernel choose.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address, if one was given.
    #[must_use]
    pub const fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// The same address with another port.
    #[must_use]
    pub const fn with_port(self, port: u16) -> Self {
        Self { ip: self.ip, port }
    }

    /// The sockets to bind, the IPv4 one first. IPv6 sockets are meant to be bound with `IPV6_V6ONLY`.
    #[must_use]
    pub fn sockets(&self) -> Vec<SocketAddr> {
        match self.ip {
            Some(ip) => vec![SocketAddr::new(ip, self.port)],
            None => vec![
                SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.port),
                SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), self.port),
            ],
        }
    }
}

impl From<SocketAddr> for ListenAddr {
    fn from(addr: SocketAddr) -> Self {
        Self {
            ip: Some(addr.ip()),
            port: addr.port(),
        }
    }
}

impl FromStr for ListenAddr {
    type Err = AddrError;

    fn from_str(s: &str) -> Result<Self, AddrError> {
        let bad = || AddrError::Listen(s.to_owned());
        if let Some(port) = s.strip_prefix(':') {
            return Ok(Self::any(port.parse().map_err(|_| bad())?));
        }
        let addr: SocketAddr = s.parse().map_err(|_| bad())?;
        Ok(addr.into())
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

/// A host name or IP address with a port, resolved when it is used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: Arc<str>,
    port: u16,
}

impl HostPort {
    /// The host: a name, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address, if the host is an IP address.
    #[must_use]
    pub fn addr(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port))
    }

    /// Looks the host up; an IP address resolves to itself without a query.
    ///
    /// # Errors
    /// The resolver's error; a name without addresses is `NotFound`.
    pub async fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        if let Some(addr) = self.addr() {
            return Ok(vec![addr]);
        }
        let found: Vec<_> = tokio::net::lookup_host((&*self.host, self.port))
            .await?
            .collect();
        if found.is_empty() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::NotFound,
                format!("the name {} has no address", self.host),
            ));
        }
        Ok(found)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(addr: SocketAddr) -> Self {
        Self {
            host: addr.ip().to_string().into(),
            port: addr.port(),
        }
    }
}

impl FromStr for HostPort {
    type Err = AddrError;

    fn from_str(s: &str) -> Result<Self, AddrError> {
        let bad = |why| AddrError::HostPort(s.to_owned(), why);
        if s.contains("://") {
            return Err(bad("it is an URL: leave the scheme out"));
        }
        let (host, port) = s
            .rsplit_once(':')
            .ok_or_else(|| bad("the port is missing"))?;
        let port: u16 = port
            .parse()
            .map_err(|_| bad("the port is not a number from 1 to 65535"))?;
        if port == 0 {
            return Err(bad("the port is not a number from 1 to 65535"));
        }
        let host = if let Some(inner) = host.strip_prefix('[') {
            let inner = inner
                .strip_suffix(']')
                .ok_or_else(|| bad("a bracket is not closed"))?;
            let _: Ipv6Addr = inner
                .parse()
                .map_err(|_| bad("no IPv6 address between the brackets"))?;
            inner
        } else {
            if host.contains(':') {
                return Err(bad("an IPv6 address needs brackets"));
            }
            host
        };
        if host.is_empty() || host.len() > 253 {
            return Err(bad("the host is missing or too long"));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':');
        if !host.bytes().all(plain) {
            return Err(bad("the host has a character that host names do not have"));
        }
        Ok(Self {
            host: host.to_ascii_lowercase().into(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
