//! Where a tunnel is measured: on loopback, or between two hosts of the lab.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use keel_tests::lab::{Host, Lab, Nat, NatKind};
use keel_tests::need::{Need, lacking};
use keel_tests::process::Program;
use keel_tests::wait;

/// What lies between the two ends of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// The loopback interface.
    Loopback,
    /// Two network namespaces, Ethernet frames of 1,500 bytes.
    Pair,
    /// The same, and one packet of a hundred is lost.
    Loss,
}

impl Link {
    pub(crate) const ALL: [Self; 3] = [Self::Loopback, Self::Pair, Self::Loss];
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Loopback => "loopback",
            Self::Pair => "pair",
            Self::Loss => "loss",
        })
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|link| link.to_string() == text);
        known.ok_or_else(|| format!("{text:?} is no link: loopback, pair or loss"))
    }
}

/// The applications' end and the servers' end.
#[derive(Debug)]
pub(crate) struct Place {
    hosts: Option<(Host, Host)>,
    nat: Option<Nat>,
    lab: Option<Lab>,
}

impl Place {
    /// Makes the network.
    ///
    /// # Errors
    /// If namespaces cannot be made here.
    pub(crate) fn new(link: Link) -> anyhow::Result<Self> {
        if link == Link::Loopback {
            return Ok(Self {
                hosts: None,
                nat: None,
                lab: None,
            });
        }
        anyhow::ensure!(!lacking(&[Need::Root]), "namespaces need root");
        let mut lab = Lab::new()?;
        let hosts = (lab.host("apps")?, lab.host("servers")?);
        if link == Link::Loss {
            lab.lose(10)?;
        }
        Ok(Self {
            hosts: Some(hosts),
            nat: None,
            lab: Some(lab),
        })
    }

    /// One end on the internet, the other behind a NAT that lets TCP and UDP out: the servers, or the applications.
    ///
    /// # Errors
    /// If namespaces cannot be made here.
    pub(crate) fn behind_nat(servers: bool) -> anyhow::Result<Self> {
        anyhow::ensure!(!lacking(&[Need::Root]), "namespaces need root");
        let mut lab = Lab::new()?;
        let (public, private) = if servers {
            ("apps", "servers")
        } else {
            ("servers", "apps")
        };
        let public = lab.host(public)?;
        let (private, nat) = lab.behind_nat(private, NatKind::HomeWithTcp)?;
        let hosts = if servers {
            (public, private)
        } else {
            (private, public)
        };
        Ok(Self {
            hosts: Some(hosts),
            nat: Some(nat),
            lab: Some(lab),
        })
    }

    /// Takes the NAT off the internet for a while.
    ///
    /// # Errors
    /// Without a NAT.
    pub(crate) fn outage(&self, time: Duration) -> anyhow::Result<()> {
        let (nat, lab) = self.nat.as_ref().zip(self.lab.as_ref()).context("no NAT")?;
        lab.unplug(nat.public)?;
        wait::pause(time);
        lab.plug(nat.public)
    }

    /// Gives every flow through the NAT another outside port.
    ///
    /// # Errors
    /// Without a NAT.
    pub(crate) fn rebind(&self) -> anyhow::Result<()> {
        self.nat.as_ref().context("no NAT")?.rebind()
    }

    fn apps_host(&self) -> Option<&Host> {
        self.hosts.as_ref().map(|(apps, _)| apps)
    }

    fn servers_host(&self) -> Option<&Host> {
        self.hosts.as_ref().map(|(_, servers)| servers)
    }

    /// The program where the applications are.
    pub(crate) fn apps(&self, program: Program) -> Program {
        on(self.apps_host(), program)
    }

    /// The program where the servers are.
    pub(crate) fn servers(&self, program: Program) -> Program {
        on(self.servers_host(), program)
    }

    /// The address of the applications' host, as the servers' host reaches it.
    pub(crate) fn apps_ip(&self) -> IpAddr {
        self.apps_host()
            .map_or(Ipv4Addr::LOCALHOST, |host| host.address)
            .into()
    }

    /// The address of the servers' host, as the applications' host reaches it.
    pub(crate) fn servers_ip(&self) -> IpAddr {
        self.servers_host()
            .map_or(Ipv4Addr::LOCALHOST, |host| host.address)
            .into()
    }

    /// Runs work with its sockets where the applications are.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub(crate) fn among_apps<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        match self.apps_host() {
            Some(host) => host.run(work),
            None => Ok(work()),
        }
    }

    /// A listener where the servers are, on every address.
    ///
    /// # Errors
    /// If there is no port.
    pub(crate) fn listen(&self) -> anyhow::Result<TcpListener> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Ok(match self.servers_host() {
            Some(host) => host.run(|| TcpListener::bind(any))??,
            None => TcpListener::bind(any)?,
        })
    }

    /// Ports that are free now where applications and servers are, all different.
    ///
    /// # Errors
    /// If there are not so many.
    pub(crate) fn free_ports<const N: usize>(&self) -> anyhow::Result<[u16; N]> {
        let take = || -> std::io::Result<[u16; N]> {
            let mut held = Vec::new();
            let mut ports = [0; N];
            for port in &mut ports {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                *port = listener.local_addr()?.port();
                held.push(listener);
            }
            Ok(ports)
        };
        Ok(self.among_apps(take)??)
    }
}

fn on(host: Option<&Host>, program: Program) -> Program {
    match host {
        Some(host) => program.on(host),
        None => program,
    }
}
