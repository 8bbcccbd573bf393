//! Settings of a node: `keel up` and the parts of it that run as processes of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use keel_certs::{ClusterName, Namespace, NodeName, TrustDomain};
use keel_fabric::Grace;
use keel_fabric::limits::Limits;
use keel_fabric::quic::{HostPort, ListenAddr};
use keel_fabric::router::DRAIN_TIMEOUT;
use keel_fabric::units::Rate;
use serde::Deserialize;

use super::limits::{self, LimitSetting};
use super::room::{self, Room};
use super::store::StoreUrl;
use super::values::{self, ObjectName, PeerArg, Span, TokenSource};
use super::{FileError, Wanted, or_list, read_file};
use crate::errors::Usage;

/// Flags, environment and file of a node, as they were given.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeFlags {
    /// Name of this node [default: the host's name]
    #[arg(long, env = "NODE_NAME", value_name = "N")]
    #[serde(deserialize_with = "values::text")]
    pub node_name: Option<NodeName>,
    /// Name of the site that this node belongs to [default: default]
    #[arg(long, env = "KEEL_CLUSTER", value_name = "C")]
    #[serde(deserialize_with = "values::text")]
    pub cluster: Option<ClusterName>,
    /// Where keys, certificates and the store are [default: /var/lib/keel for root, else ~/.local/share/keel]
    #[arg(long, env = "KEEL_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// YAML file with these settings, keys as the flags in camelCase
    #[arg(long, env = "KEEL_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Join the trust domain that made this token: the token, @FILE, or - for standard input
    #[arg(long, env = "KEEL_JOIN", value_name = "TOKEN", hide_env_values = true)]
    #[serde(deserialize_with = "values::text")]
    pub join: Option<TokenSource>,
    /// Where the APIServer listens, UDP and TCP [default: 127.0.0.1:7443]
    #[arg(long, env = "KEEL_APISERVER_LISTEN", value_name = "ADDR:PORT")]
    #[serde(deserialize_with = "values::text")]
    pub apiserver_listen: Option<ListenAddr>,
    /// Where the Router listens, UDP [default: :7000, every IPv4 and IPv6 address]
    #[arg(long, env = "KEEL_ROUTER_LISTEN", value_name = "ADDR:PORT")]
    #[serde(deserialize_with = "values::text")]
    pub router_listen: Option<ListenAddr>,
    /// Name of a trust domain made here [default: keel-<8 hex of the root key's hash>]
    #[arg(long, env = "KEEL_TRUST_DOMAIN", value_name = "T")]
    #[serde(deserialize_with = "values::text")]
    pub trust_domain: Option<TrustDomain>,
    /// The Router as other nodes reach it; none: this node is behind NAT
    #[arg(
        long,
        env = "KEEL_ADVERTISE",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "values::texts")]
    pub advertise: Vec<HostPort>,
    /// Another node's APIServer to exchange Routers with; those of the --config file are taken up anew when it changes
    #[arg(
        long,
        env = "KEEL_PEER",
        value_name = "NAME=HOST:PORT",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "values::texts")]
    pub peer: Vec<PeerArg>,
    /// The file that `peer` came from, if it came from one.
    #[arg(skip)]
    #[serde(skip)]
    pub peer_from: Option<PathBuf>,
    /// The FRPServer whose listener settings the Router takes instead of its own spec's, and into which it reports
    #[arg(long, env = "KEEL_FOLLOW", value_name = "FRPSERVER")]
    #[serde(deserialize_with = "values::text")]
    pub follow: Option<ObjectName>,
    /// Where resources are kept: sqlite:PATH, or postgres://USER@HOST/DATABASE for several APIServers on one database (its
    /// password from PGPASSFILE or ~/.pgpass) [default: sqlite:<data directory>/store.db]
    #[arg(long, env = "KEEL_STORE", value_name = "URL", hide_env_values = true)]
    #[serde(deserialize_with = "values::text")]
    pub store: Option<StoreUrl>,
    /// Where the dashboard listens: nothing is served there yet
    #[arg(long, env = "KEEL_DASHBOARD_LISTEN", value_name = "ADDR:PORT")]
    #[serde(deserialize_with = "values::text")]
    pub dashboard_listen: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz are served [default: 127.0.0.1:9090]
    #[arg(long, env = "KEEL_METRICS_LISTEN", value_name = "ADDR:PORT")]
    #[serde(deserialize_with = "values::text")]
    pub metrics_listen: Option<SocketAddr>,
    /// Namespaces that any local user may have identities of, besides `default`
    #[arg(
        long,
        env = "KEEL_LOCAL_NAMESPACES",
        value_name = "NS",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "values::texts")]
    pub local_namespaces: Vec<Namespace>,
    /// How old counters and heartbeats in Router.status may become; they are written about once in that time, at most 30s [default: 30s]
    #[arg(long, env = "KEEL_STATUS_INTERVAL", value_name = "TIME")]
    #[serde(deserialize_with = "values::text")]
    pub status_interval: Option<Span>,
    /// How long a Router that stops waits at most for its flows to go elsewhere [default: 30s]
    #[arg(long, env = "KEEL_DRAIN_TIMEOUT", value_name = "TIME")]
    #[serde(deserialize_with = "values::text")]
    pub drain_timeout: Option<Span>,
    /// Another value for a limit, e.g. newFlowsPerSecond=5000; README has the table. In the file: `limits: {NAME: VALUE}`
    #[arg(
        long = "set-limit",
        env = "KEEL_LIMITS",
        value_name = "NAME=VALUE",
        value_delimiter = ','
    )]
    #[serde(rename = "limits", deserialize_with = "limits::settings")]
    pub set_limit: Vec<LimitSetting>,
    /// Most bytes per second that one identity may carry over this Router, each direction for itself, e.g. 10MB/s
    /// [default: the Router's spec.identityLimit, or no limit]
    #[arg(long, env = "KEEL_IDENTITY_LIMIT", value_name = "RATE")]
    #[serde(deserialize_with = "values::text")]
    pub identity_limit: Option<Rate>,
    /// Connections that the APIServer takes at once, over QUIC and over TCP each; a node, a sidecar or a command has one
    /// [default: 1024]
    #[arg(long, env = "KEEL_APISERVER_CONNECTIONS", value_name = "N", value_parser = values::from_one)]
    pub apiserver_connections: Option<NonZero<u32>>,
    /// How long events are kept that are not told again [default: 1h]
    #[arg(long, env = "KEEL_EVENT_TTL", value_name = "TIME")]
    #[serde(deserialize_with = "values::text")]
    pub event_ttl: Option<Span>,
    /// Life of the leaf certificates issued here, 60s to 7d [default: 24h]
    #[arg(long, env = "KEEL_LEAF_LIFE", value_name = "TIME")]
    #[serde(deserialize_with = "values::text")]
    pub leaf_life: Option<Span>,
}

/// Which process the settings are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `keel up`: all of them.
    Node,
    /// `keel-apiserver`.
    ApiServer,
    /// `keel-router`.
    Router,
    /// `keel-syncer`.
    Syncer,
}

impl Part {
    /// The flags (by their clap ids) that mean nothing to this part.
    pub fn foreign_flags(self) -> &'static [&'static str] {
        match self {
            Self::Node => &[],
            Self::ApiServer => &[
                "router_listen",
                "follow",
                "peer",
                "dashboard_listen",
                "status_interval",
                "drain_timeout",
                "set_limit",
                "identity_limit",
            ],
            Self::Router => &[
                "node_name",
                "join",
                "apiserver_listen",
                "trust_domain",
                "peer",
                "store",
                "local_namespaces",
                "apiserver_connections",
                "event_ttl",
                "leaf_life",
            ],
            Self::Syncer => &[
                "node_name",
                "cluster",
                "join",
                "apiserver_listen",
                "router_listen",
                "trust_domain",
                "advertise",
                "follow",
                "store",
                "dashboard_listen",
                "local_namespaces",
                "status_interval",
                "drain_timeout",
                "set_limit",
                "identity_limit",
                "apiserver_connections",
                "event_ttl",
                "leaf_life",
            ],
        }
    }
}

/// The resolved settings of a node. Made once, by [`NodeFlags::resolve`].
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// The node's name as the user gave it; the data directory knows it on every later start.
    pub node: Option<NodeName>,
    /// The name to use in a new data directory when none was given.
    pub host: String,
    /// The cluster.
    pub cluster: ClusterName,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The token to join with.
    pub join: Option<TokenSource>,
    /// Where the APIServer listens.
    pub apiserver_listen: ListenAddr,
    /// Where the Router listens, if a flag says so; else its spec decides, else `:7000`.
    pub router_listen: Option<ListenAddr>,
    /// The trust domain to make, if one is made.
    pub trust_domain: Option<TrustDomain>,
    /// The Router as other nodes reach it.
    pub advertise: Vec<HostPort>,
    /// Peers to exchange Routers with, besides the one joined through.
    pub peers: Vec<PeerArg>,
    /// The configuration file that says who they are, if no flag does.
    pub peers_file: Option<PathBuf>,
    /// The FRPServer that the Router follows.
    pub follow: Option<String>,
    /// The store; none: a file in the data directory.
    pub store: Option<StoreUrl>,
    /// Where a dashboard would listen.
    pub dashboard_listen: Option<SocketAddr>,
    /// Where metrics and health are served.
    pub metrics_listen: Wanted,
    /// Namespaces any local user may have identities of, besides `default`.
    pub local_namespaces: Vec<Namespace>,
    /// How old what only ticks may become in the Router's status.
    pub status_interval: Duration,
    /// How long a Router that stops waits at most for its flows to go elsewhere.
    pub drain: Grace,
    /// Bounds of what peers may do and of what flows may hold.
    pub limits: Limits,
    /// Bandwidth of one identity at the Router.
    pub identity_limit: Option<Rate>,
    /// Connections that the APIServer takes at once.
    pub apiserver_connections: usize,
    /// How long events are kept that are not told again.
    pub event_ttl: Duration,
    /// Life of leaves issued here.
    pub leaf_life: Duration,
}

/// A leaf that lives less cannot be renewed in time on a slow machine; more defeats short lives.
const LEAF_LIFE: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(7 * 24 * 3600));

impl NodeFlags {
    /// Reads the `--config` file, if one was given, and lays the flags over it.
    ///
    /// # Errors
    /// The file's, with file and line.
    pub fn with_file(self) -> Result<Self, FileError> {
        match &self.config {
            Some(path) => {
                let under = Self {
                    peer_from: Some(path.clone()),
                    ..read_file(path)?
                };
                Ok(self.over(under))
            }
            None => Ok(self),
        }
    }

    /// Lays these settings over `under`: what is set here wins.
    #[must_use]
    pub fn over(self, under: Self) -> Self {
        Self {
            node_name: self.node_name.or(under.node_name),
            cluster: self.cluster.or(under.cluster),
            data_dir: self.data_dir.or(under.data_dir),
            config: self.config.or(under.config),
            join: self.join.or(under.join),
            apiserver_listen: self.apiserver_listen.or(under.apiserver_listen),
            router_listen: self.router_listen.or(under.router_listen),
            trust_domain: self.trust_domain.or(under.trust_domain),
            advertise: or_list(self.advertise, under.advertise),
            peer_from: self
                .peer_from
                .or(under.peer_from.filter(|_| self.peer.is_empty())),
            peer: or_list(self.peer, under.peer),
            follow: self.follow.or(under.follow),
            store: self.store.or(under.store),
            dashboard_listen: self.dashboard_listen.or(under.dashboard_listen),
            metrics_listen: self.metrics_listen.or(under.metrics_listen),
            local_namespaces: or_list(self.local_namespaces, under.local_namespaces),
            status_interval: self.status_interval.or(under.status_interval),
            drain_timeout: self.drain_timeout.or(under.drain_timeout),
            set_limit: limits::or(self.set_limit, under.set_limit),
            identity_limit: self.identity_limit.or(under.identity_limit),
            apiserver_connections: self.apiserver_connections.or(under.apiserver_connections),
            event_ttl: self.event_ttl.or(under.event_ttl),
            leaf_life: self.leaf_life.or(under.leaf_life),
        }
    }

    /// Fills in the defaults and checks what one value alone cannot show.
    ///
    /// `default_dir` is the data directory when none is given, `host` the host's name.
    ///
    /// # Errors
    /// A value is out of its range.
    pub fn resolve(self, default_dir: PathBuf, host: String) -> Result<NodeSettings, Usage> {
        let leaf_life = self
            .leaf_life
            .map_or(Duration::from_secs(24 * 3600), |span| span.0);
        if !(LEAF_LIFE.0..=LEAF_LIFE.1).contains(&leaf_life) {
            return Err(Usage(format!(
                "--leaf-life {} is out of range: 60s to 7d",
                Span(leaf_life)
            )));
        }
        let status_interval = self
            .status_interval
            .map_or(Duration::from_secs(30), |span| span.0);
        if status_interval.is_zero() || status_interval > keel_control::syncer::STALE_AFTER / 3 {
            return Err(Usage(format!(
                "--status-interval {} is out of range: 1ms to 30s",
                Span(status_interval)
            )));
        }
        let event_ttl = self
            .event_ttl
            .map_or(Duration::from_secs(3600), |span| span.0);
        if event_ttl.is_zero() {
            return Err(Usage(
                "--event-ttl 0s is out of range: write at least 1ms".into(),
            ));
        }
        let room = Room::of_process();
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(NodeSettings {
            node: self.node_name,
            host,
            cluster: self.cluster.unwrap_or_else(ClusterName::default_cluster),
            data_dir: self.data_dir.unwrap_or(default_dir),
            join: self.join,
            apiserver_listen: self.apiserver_listen.unwrap_or(local(7443).into()),
            router_listen: self.router_listen,
            trust_domain: self.trust_domain,
            advertise: values::reachable(self.advertise)?,
            peers: values::each_once(self.peer)?,
            peers_file: self.peer_from,
            follow: self.follow.map(|name| name.0),
            store: self.store,
            dashboard_listen: self.dashboard_listen,
            metrics_listen: Wanted::new(self.metrics_listen, local(9090)),
            local_namespaces: self.local_namespaces,
            status_interval,
            drain: self
                .drain_timeout
                .map_or(DRAIN_TIMEOUT, |span| span.0)
                .into(),
            limits: limits::set(room.fit(Limits::default(), room::OF_NODE), self.set_limit)?,
            identity_limit: self.identity_limit,
            apiserver_connections: room.api_connections(self.apiserver_connections),
            event_ttl,
            leaf_life,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        flags: NodeFlags,
    }

    fn flags(args: &[&str]) -> NodeFlags {
        Command::try_parse_from(std::iter::once("keel").chain(args.iter().copied()))
            .unwrap()
            .flags
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keel.yaml");
        std::fs::write(
            &file,
            "nodeName: from-file\ncluster: site-1\nadvertise: ['f.example.net:1']\n",
        )
        .unwrap();
        let given = flags(&[
            "--node-name",
            "from-flag",
            "--config",
            file.to_str().unwrap(),
        ]);
        let settings = given
            .with_file()
            .unwrap()
            .resolve("/d".into(), "host".into())
            .unwrap();
        assert_eq!(settings.node.unwrap().as_ref(), "from-flag");
        assert_eq!(settings.cluster.as_ref(), "site-1");
        assert_eq!(settings.advertise.len(), 1);
        assert_eq!(settings.data_dir, PathBuf::from("/d"));
        assert_eq!(settings.peers_file, Some(file.clone()));
        let named = flags(&["--peer", "x=h:3", "--config", file.to_str().unwrap()]);
        let named = named.with_file().unwrap();
        assert_eq!(named.peer_from, None, "a flag wins over the file for good");
        assert_eq!(settings.metrics_listen.addr.port(), 9090);
        assert!(!settings.metrics_listen.given);
    }

    #[test]
    fn every_flag_of_the_contract_parses() {
        let all = [
            "--node-name",
            "n",
            "--cluster",
            "c",
            "--data-dir",
            "/d",
            "--join",
            "@token",
            "--apiserver-listen",
            "0.0.0.0:7443",
            "--router-listen",
            ":7000",
            "--trust-domain",
            "t",
            "--advertise",
            "a:1",
            "--advertise",
            "b:2",
            "--peer",
            "x=h:3",
            "--follow",
            "frpserver-sample",
            "--store",
            "sqlite:/s.db",
            "--dashboard-listen",
            "127.0.0.1:7500",
            "--metrics-listen",
            "127.0.0.1:9090",
            "--apiserver-connections",
            "20000",
        ];
        let settings = flags(&all).resolve("/x".into(), "h".into()).unwrap();
        assert_eq!((settings.advertise.len(), settings.peers.len()), (2, 1));
        assert_eq!(settings.store, Some(StoreUrl::Sqlite("/s.db".into())));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for args in [
            ["--leaf-life", "1s"],
            ["--status-interval", "0s"],
            ["--status-interval", "31s"],
            ["--event-ttl", "0s"],
            ["--advertise", "0.0.0.0:7000"],
            ["--advertise", "[::]:7000"],
            ["--advertise", "[::ffff:0.0.0.0]:7000"],
            ["--advertise", "224.0.0.1:7000"],
        ] {
            let flags = flags(&args);
            assert!(
                flags
                    .resolve("/x".into(), "h".into())
                    .unwrap_err()
                    .to_string()
                    .contains(args[0])
            );
        }
        for text in ["", "a/b", "A", ".", "a..b", "-a"] {
            assert!(text.parse::<ObjectName>().is_err(), "{text}");
        }
        for text in ["mysql://db", "postgres:db", "sqlite:", "store.db"] {
            assert!(text.parse::<StoreUrl>().is_err(), "{text}");
        }
        let store: StoreUrl = "postgres://keel:secret@db/keel".parse().unwrap();
        assert!(matches!(store, StoreUrl::Postgres(_)));
        assert_eq!(format!("{store:?}"), "postgres:…");
    }
}
