//! The kinds of NAT that stand between an edge node and the world.

use std::net::Ipv4Addr;

use super::tools::{forget_flows, nft, sysctl};

/// How a NAT chooses the outside port. All drop what nobody inside asked for. The first two let nothing but UDP out: every
/// scenario behind one proves that outbound UDP is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// One outside port per inside port, whoever is called (RFC 4787: endpoint-independent mapping, address and
    /// port-dependent filtering). What most home routers do.
    Home,
    /// Another, random outside port for every destination (address and port-dependent mapping). Mobile carriers.
    Symmetric,
    /// As [`NatKind::Home`], and TCP gets out too: for other people's tunnels.
    HomeWithTcp,
}

/// One NAT of a lab.
#[derive(Debug)]
pub struct Nat {
    netns: String,
    /// Its address on the internet: where its host seems to call from.
    pub public: Ipv4Addr,
}

impl Nat {
    pub(super) fn set_up(netns: String, public: Ipv4Addr, kind: NatKind) -> anyhow::Result<Self> {
        sysctl(&netns, "net.ipv4.ip_forward=1")?;
        // Without this table an unsolicited packet makes a conntrack entry that takes the port which a mapping needs.
        let out = match kind {
            NatKind::Home | NatKind::Symmetric => "udp",
            NatKind::HomeWithTcp => "{ tcp, udp }",
        };
        nft(
            &netns,
            &format!(
                "table inet fw {{\n chain in {{ type filter hook input priority 0\n iifname \"wan\" ct state new drop\n }}\n chain over {{ \
                 type filter hook forward priority 0\n iifname \"wan\" ct state new drop\n oifname \"wan\" meta l4proto != {out} drop\n }}\n}}\n"
            ),
        )?;
        let nat = Self { netns, public };
        nat.map(&match kind {
            NatKind::Home | NatKind::HomeWithTcp => format!("oifname \"wan\" snat to {public}"),
            NatKind::Symmetric => "oifname \"wan\" masquerade fully-random".to_owned(),
        })?;
        Ok(nat)
    }

    /// Gives every flow through the NAT a new outside port, silently, as after a restart of a home router: answers to
    /// the old ports are lost until the inside sends again.
    ///
    /// # Errors
    /// If the rules cannot be changed.
    pub fn rebind(&self) -> anyhow::Result<()> {
        self.map(&format!(
            "oifname \"wan\" meta l4proto {{ tcp, udp }} snat to {}:30000-39999 random",
            self.public
        ))?;
        forget_flows(&self.netns)
    }

    fn map(&self, rule: &str) -> anyhow::Result<()> {
        nft(
            &self.netns,
            // In one step: between two, packets would leave with the address that they have inside.
            &format!(
                "table ip nat {{ }}\ndelete table ip nat\ntable ip nat {{\n chain post {{ type nat hook postrouting priority srcnat\n {rule}\n }}\n}}\n"
            ),
        )
    }
}
