//! What a resolv.conf says: name servers and search domains. Pure.

use std::net::{IpAddr, SocketAddr};

/// The parts of a resolv.conf that are used here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// `nameserver` lines, at port 53; at most three, as in the C library.
    pub nameservers: Vec<IpAddr>,
    /// The last `search` or `domain` line, lower case, without trailing dots.
    pub search: Vec<String>,
}

/// Name servers beyond this are ignored by every C library (`MAXNS` in resolv.h), so nobody relies on them.
const MAX_NAMESERVERS: usize = 3;

impl ResolvConf {
    /// Reads the text; lines that make no sense are skipped, as the C library does.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A zone (`fe80::1%eth0`) cannot be connected to without an interface index; it is skipped.
                    if let Some(Ok(address)) = words.next().map(str::parse)
                        && conf.nameservers.len() < MAX_NAMESERVERS
                    {
                        conf.nameservers.push(address);
                    }
                }
                Some("search" | "domain") => {
                    conf.search = words
                        .map(|d| d.trim_matches('.').to_ascii_lowercase())
                        .filter(|d| !d.is_empty())
                        .collect();
                }
                _ => {}
            }
        }
        conf
    }

    /// The name servers that are not ourselves: `own` is where our DNS listens.
    pub fn upstreams(&self, own: Option<SocketAddr>) -> Vec<SocketAddr> {
        let at_53 = self.nameservers.iter().map(|ip| SocketAddr::new(*ip, 53));
        at_53
            .filter(|upstream| !own.is_some_and(|own| is_self(own, *upstream)))
            .collect()
    }
}

/// True if a packet to `upstream` would reach our own socket at `own`.
pub fn is_self(own: SocketAddr, upstream: SocketAddr) -> bool {
    if own.port() != upstream.port() {
        return false;
    }
    let (own_ip, ip) = (own.ip().to_canonical(), upstream.ip().to_canonical());
    own_ip == ip
        || ip.is_unspecified()
        || (own_ip.is_unspecified() && (ip.is_loopback() || is_local(ip)))
}

/// True for an address of this host: only those can be bound.
fn is_local(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_name_servers_and_the_last_search_line() {
        let conf = ResolvConf::parse(
            "# made by hand\nnameserver 10.0.0.2 ; first\nnameserver  fd00::1\nnameserver x\nsearch a.b\ndomain Corp.Example. lan\noptions ndots:5\n",
        );
        assert_eq!(
            conf.nameservers,
            [
                "10.0.0.2".parse::<IpAddr>().unwrap(),
                "fd00::1".parse().unwrap()
            ]
        );
        assert_eq!(conf.search, ["corp.example", "lan"]);
    }

    #[test]
    fn we_are_no_upstream_of_ourselves() {
        let conf = ResolvConf::parse("nameserver 127.0.0.2\nnameserver 10.0.0.2\n");
        let own = |text: &str| Some(text.parse().unwrap());
        assert_eq!(
            conf.upstreams(own("127.0.0.2:53")),
            ["10.0.0.2:53".parse().unwrap()]
        );
        assert_eq!(conf.upstreams(own("127.0.0.2:5353")).len(), 2);
        assert_eq!(conf.upstreams(own("0.0.0.0:53")).len(), 1);
        assert_eq!(conf.upstreams(None).len(), 2);
        assert!(is_self(
            "[::ffff:127.0.0.2]:53".parse().unwrap(),
            "127.0.0.2:53".parse().unwrap()
        ));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(?s).{0,200}") { ResolvConf::parse(&text); }
    }
}
