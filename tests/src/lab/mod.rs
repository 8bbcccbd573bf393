//! Hosts, NATs and networks out of network namespaces, all on this machine, all gone when the test ends.
//!
//! ```text
//!   host a ──┐                        ┌── nat ── edge b        198.51.100.0/24: the public internet, one bridge
//!            ├──[ the internet, core ]┤                        192.168.7.0/24:  behind every NAT
//!   host c ──┘                        └── nat ── edge d
//! ```
//!
//! A lab's namespaces carry its process id and a counter, so labs run beside each other and use the same addresses.

mod group;
mod link;
mod nat;
mod tools;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

pub use group::MemoryGroup;
pub use link::{Conditions, Direction, Link, Profile, Tally};
pub use nat::{Nat, NatKind};
use tools::{ip, nft, sysctl};

/// The address of a NAT inside the network behind it; the one host there is `.2`.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
/// The one host behind a NAT.
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 2);
/// Where every lab's namespaces begin: `kt<process id>-<lab>-<host>`.
const PREFIX: &str = "kt";

static SWEPT: Once = Once::new();
static LABS: AtomicU32 = AtomicU32::new(0);

/// One set of namespaces around one bridge, "the internet". Dropping it deletes them; drop what runs in them first.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    core: String,
    owned: Vec<String>,
    public: u8,
}

/// One machine of a lab: a network namespace with an address, its own loopback and its own `resolv.conf`.
#[derive(Debug, Clone)]
pub struct Host {
    netns: String,
    /// The address that others on its network reach it by.
    pub address: Ipv4Addr,
}

impl Lab {
    /// A lab with the internet in it and no host.
    ///
    /// # Errors
    /// If namespaces cannot be made here (see [`crate::need::Need::Root`]).
    pub fn new() -> anyhow::Result<Self> {
        SWEPT.call_once(sweep);
        let prefix = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            LABS.fetch_add(1, Ordering::Relaxed)
        );
        let core = format!("{prefix}-core");
        let mut lab = Self {
            prefix,
            core: core.clone(),
            owned: Vec::new(),
            public: 0,
        };
        lab.netns(&core)?;
        ip(&["-n", &core, "link", "add", "inet0", "type", "bridge"])?;
        ip(&["-n", &core, "link", "set", "inet0", "up"])?;
        Ok(lab)
    }

    /// A host on the internet with a public address.
    ///
    /// # Errors
    /// If the namespace cannot be made.
    pub fn host(&mut self, name: &str) -> anyhow::Result<Host> {
        let netns = format!("{}-{name}", self.prefix);
        self.netns(&netns)?;
        let address = self.attach(&netns, "eth0")?;
        Host { netns, address }.resolves_by(None)
    }

    /// A host on the internet behind a link that can be made bad, with a public address.
    ///
    /// # Errors
    /// If the namespace or the link cannot be made.
    pub fn host_over(
        &mut self,
        name: &str,
        conditions: Conditions,
        seed: u64,
    ) -> anyhow::Result<(Host, Link)> {
        let netns = format!("{}-{name}", self.prefix);
        self.netns(&netns)?;
        let (address, link) = self.attach_over(&netns, "eth0", conditions, seed)?;
        Ok((Host { netns, address }.resolves_by(None)?, link))
    }

    /// A host behind a NAT of its own. Several of them have the same private address.
    ///
    /// # Errors
    /// If a namespace cannot be made.
    pub fn behind_nat(&mut self, name: &str, kind: NatKind) -> anyhow::Result<(Host, Nat)> {
        let (edge, nat) = self.edge(name)?;
        let public = self.attach(&nat, "wan")?;
        Self::inside(edge, nat, public, kind)
    }

    /// The same with a link between the NAT and the internet that can be made bad.
    ///
    /// # Errors
    /// If a namespace or the link cannot be made.
    pub fn behind_nat_over(
        &mut self,
        name: &str,
        kind: NatKind,
        conditions: Conditions,
        seed: u64,
    ) -> anyhow::Result<(Host, Nat, Link)> {
        let (edge, nat) = self.edge(name)?;
        let (public, link) = self.attach_over(&nat, "wan", conditions, seed)?;
        let (host, nat) = Self::inside(edge, nat, public, kind)?;
        Ok((host, nat, link))
    }

    /// The namespaces of a host and its NAT.
    fn edge(&mut self, name: &str) -> anyhow::Result<(String, String)> {
        let (edge, nat) = (
            format!("{}-{name}", self.prefix),
            format!("{}-{name}nat", self.prefix),
        );
        self.netns(&edge)?;
        self.netns(&nat)?;
        Ok((edge, nat))
    }

    /// Connects a host to its NAT, which is on the internet already.
    fn inside(
        edge: String,
        nat: String,
        public: Ipv4Addr,
        kind: NatKind,
    ) -> anyhow::Result<(Host, Nat)> {
        ip(&[
            "link", "add", "lan", "netns", &nat, "type", "veth", "peer", "name", "eth0", "netns",
            &edge,
        ])?;
        ip(&[
            "-n",
            &nat,
            "addr",
            "add",
            &format!("{GATEWAY}/24"),
            "dev",
            "lan",
        ])?;
        ip(&[
            "-n",
            &edge,
            "addr",
            "add",
            &format!("{INSIDE}/24"),
            "dev",
            "eth0",
        ])?;
        ip(&["-n", &nat, "link", "set", "lan", "up"])?;
        ip(&["-n", &edge, "link", "set", "eth0", "up"])?;
        ip(&[
            "-n",
            &edge,
            "route",
            "add",
            "default",
            "via",
            &GATEWAY.to_string(),
        ])?;
        let nat = Nat::set_up(nat, public, kind)?;
        Ok((
            Host {
                netns: edge,
                address: INSIDE,
            }
            .resolves_by(None)?,
            nat,
        ))
    }

    /// Takes a host's (or a NAT's) cable to the internet out; [`Lab::plug`] puts it back. Nobody is told: no packet
    /// says that the network is gone.
    ///
    /// # Errors
    /// If the host is not on the internet.
    pub fn unplug(&self, public: Ipv4Addr) -> anyhow::Result<()> {
        // Dropping on the bridge instead of taking the link down: the hosts keep carrier and routes, as behind a real
        // access router that lost its uplink.
        self.cable(&format!("add element bridge keel out {{ {public} }}"))
    }

    /// Puts the cable back in.
    ///
    /// # Errors
    /// If it was not out.
    pub fn plug(&self, public: Ipv4Addr) -> anyhow::Result<()> {
        self.cable(&format!("delete element bridge keel out {{ {public} }}"))
    }

    /// Takes the cable of a host (or a NAT) out at its own end, so that its kernel sees the carrier go.
    ///
    /// # Errors
    /// If the host is not on the internet.
    pub fn pull(&self, public: Ipv4Addr) -> anyhow::Result<()> {
        self.port_of(public, "down")
    }

    /// Puts back the cable that [`Lab::pull`] took out.
    ///
    /// # Errors
    /// If the host is not on the internet.
    pub fn push(&self, public: Ipv4Addr) -> anyhow::Result<()> {
        self.port_of(public, "up")
    }

    fn port_of(&self, public: Ipv4Addr, state: &str) -> anyhow::Result<()> {
        let port = format!("port{}", public.octets()[3]);
        ip(&["-n", &self.core, "link", "set", &port, state])
    }

    /// Loses this many of a thousand IPv4 packets on the internet, in both directions.
    ///
    /// # Errors
    /// If the rule cannot be set.
    pub fn lose(&self, permille: u16) -> anyhow::Result<()> {
        let rule = match permille {
            0 => String::new(),
            1..1000 => {
                format!("add rule bridge keel loss numgen random mod 1000 < {permille} drop")
            }
            1000.. => "add rule bridge keel loss drop".to_owned(),
        };
        self.cable(&format!("flush chain bridge keel loss\n{rule}"))
    }

    fn cable(&self, statement: &str) -> anyhow::Result<()> {
        nft(
            &self.core,
            &format!(
                "table bridge keel {{\n set out {{ type ipv4_addr; }}\n chain loss {{ }}\n chain cut {{ type filter hook forward priority 0\n \
                 }}\n}}\nflush chain bridge keel cut\nadd rule bridge keel cut ether type ip ip saddr @out drop\n\
                 add rule bridge keel cut ether type ip ip daddr @out drop\nadd rule bridge keel cut ether type ip jump loss\n\
                 {statement}\n"
            ),
        )
    }

    /// Connects a namespace to the bridge under the next public address.
    fn attach(&mut self, netns: &str, interface: &str) -> anyhow::Result<Ipv4Addr> {
        let port = self.port();
        ip(&[
            "link", "add", &port, "netns", &self.core, "type", "veth", "peer", "name", interface,
            "netns", netns,
        ])?;
        self.connect(&port, netns, interface)
    }

    /// The same over a link.
    fn attach_over(
        &mut self,
        netns: &str,
        interface: &str,
        conditions: Conditions,
        seed: u64,
    ) -> anyhow::Result<(Ipv4Addr, Link)> {
        let port = self.port();
        let device = |netns: &str, name: &str| {
            let host = Host {
                netns: netns.to_owned(),
                address: Ipv4Addr::UNSPECIFIED,
            };
            host.run(|| Link::device(name))?
        };
        let (near, far) = (device(netns, interface)?, device(&self.core, &port)?);
        let link = Link::start(near, far, conditions, seed)?;
        Ok((self.connect(&port, netns, interface)?, link))
    }

    fn port(&mut self) -> String {
        self.public += 1;
        format!("port{}", self.public)
    }

    fn connect(&self, port: &str, netns: &str, interface: &str) -> anyhow::Result<Ipv4Addr> {
        let address = Ipv4Addr::new(198, 51, 100, self.public);
        ip(&[
            "-n", &self.core, "link", "set", port, "master", "inet0", "up",
        ])?;
        ip(&[
            "-n",
            netns,
            "addr",
            "add",
            &format!("{address}/24"),
            "dev",
            interface,
        ])?;
        ip(&["-n", netns, "link", "set", interface, "up"])?;
        Ok(address)
    }

    fn netns(&mut self, name: &str) -> anyhow::Result<()> {
        ip(&["netns", "add", name])?;
        self.owned.push(name.to_owned());
        ip(&["-n", name, "link", "set", "lo", "up"])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for netns in &self.owned {
            delete(netns);
        }
    }
}

impl Host {
    /// The name of its namespace, as `ip netns` has it.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Sets the name server that programs on this host ask; `None` is nobody.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn resolves_by(self, server: Option<&str>) -> anyhow::Result<Self> {
        let folder = PathBuf::from("/etc/netns").join(&self.netns);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let lines = server.map_or_else(String::new, |server| {
            format!("nameserver {server}\noptions timeout:2 attempts:2\n")
        });
        std::fs::write(folder.join("resolv.conf"), lines)?;
        Ok(self)
    }

    /// Gives this host another address on the internet (`198.51.100.77/24`, `2001:db8::1/64`).
    ///
    /// # Errors
    /// If it has it already.
    pub fn add_address(&self, address: &str) -> anyhow::Result<()> {
        // Usable at once, without asking the others whether it is theirs.
        let nodad: &[&str] = if address.contains(':') {
            &["nodad"]
        } else {
            &[]
        };
        let add = ["-n", &self.netns, "addr", "add", address, "dev", "eth0"];
        ip(&[&add, nodad].concat())
    }

    /// Takes an address from this host. Others on the same network stay.
    ///
    /// # Errors
    /// If it does not have it.
    pub fn remove_address(&self, address: &str) -> anyhow::Result<()> {
        sysctl(&self.netns, "net.ipv4.conf.eth0.promote_secondaries=1")?;
        ip(&["-n", &self.netns, "addr", "del", address, "dev", "eth0"])
    }

    /// Makes this host swallow what comes in for a TCP port: whoever connects hears nothing, not even a refusal.
    ///
    /// # Errors
    /// If the rule cannot be set.
    pub fn swallow(&self, port: u16) -> anyhow::Result<()> {
        let rules = format!(
            "table inet deaf {{\n chain in {{ type filter hook input priority 0\n tcp dport {port} drop\n }}\n}}\n"
        );
        nft(&self.netns, &rules)
    }

    /// Keeps this host from reaching a port anywhere, over TCP and UDP, until [`Host::unblock`].
    ///
    /// # Errors
    /// If the rule cannot be set.
    pub fn block(&self, port: u16) -> anyhow::Result<()> {
        let rule = format!("meta l4proto {{ tcp, udp }} th dport {port} drop");
        nft(
            &self.netns,
            &format!(
                "table inet block {{\n chain out {{ type filter hook output priority 0\n {rule}\n }}\n}}\n"
            ),
        )
    }

    /// Ends what [`Host::block`] did.
    ///
    /// # Errors
    /// If nothing was blocked.
    pub fn unblock(&self) -> anyhow::Result<()> {
        nft(&self.netns, "delete table inet block\n")
    }

    /// Runs `work` on a thread whose sockets live on this host, and gives back what it returns.
    ///
    /// # Errors
    /// If the namespace is gone or the work panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name(self.netns.clone())
                .spawn_scoped(scope, || -> anyhow::Result<T> {
                    self.enter()?;
                    Ok(work())
                })?;
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("the work on {} panicked", self.netns))?
        })
    }

    /// Moves the calling thread to this host for good.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn enter(&self) -> anyhow::Result<()> {
        let file = std::fs::File::open(Path::new("/run/netns").join(&self.netns))?;
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter {}", self.netns))
    }
}

fn delete(netns: &str) {
    if let Err(error) = ip(&["netns", "del", netns]) {
        eprintln!("{netns} stays behind: {error:#}");
    }
    // Made for most namespaces, not for all.
    let _absent = std::fs::remove_dir_all(Path::new("/etc/netns").join(netns));
}

/// Deletes what the labs of killed test runs left behind: their process is gone, and so is whoever would miss them.
fn sweep() {
    let Ok(namespaces) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for netns in namespaces
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        let owner = netns
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            delete(&netns);
        }
    }
}
