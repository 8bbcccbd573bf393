//! `keel quickstart`: two nodes in one process, real services across them, proved step by step.

mod found;
mod proof;
mod web;

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use keel_certs::Namespace;
use keel_fabric::quic::{HostPort, ListenAddr};
use keel_sidecar::config::{ListenOn, SidecarConfig};
use keel_sidecar::spec::{parse_mapped, parse_published};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::access::Admin;
use crate::run::{Node, RunningNode, RunningSidecar};
use crate::settings::{NodeFlags, NodeSettings, PeerArg, SidecarSettings, TokenSource};
use found::Found;
use web::Web;

/// Flags of `keel quickstart`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  keel quickstart\n  keel quickstart --once        ends after the proof, with status 0 if every step held"
)]
pub struct Flags {
    /// End after the proof
    #[arg(long)]
    once: bool,
    /// Where the two nodes keep their data [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Longest wait for any one step. All of them together take a second or two.
const STEP: Duration = Duration::from_secs(10);

/// Runs the demonstration until the proof is done (`--once`) or `stop` is asked for.
///
/// # Errors
/// A step did not hold; the error says which and what was seen instead. `stop` came before the proof was done.
pub async fn run(flags: Flags, stop: CancellationToken) -> anyhow::Result<()> {
    let started = Instant::now();
    let temporary = match &flags.data_dir {
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("keel-quickstart-")
                .tempdir()
                .context("cannot make a temporary directory")?,
        ),
    };
    // Invariant: one of the two is there.
    let base = flags
        .data_dir
        .clone()
        .or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned()))
        .unwrap_or_default();
    let mut show = Show { steps: 0 };
    let mut stage = Stage::default();
    if let Err(error) = stage.play(&base, &mut show, &stop).await {
        stage.tear_down().await;
        return Err(error);
    }
    let steps = show.steps;
    show.line(format_args!(
        "\nIt works: {steps} steps in {:.1} s.",
        started.elapsed().as_secs_f32()
    ));
    if !flags.once {
        stage.invite(&base, &mut show);
        stop.cancelled().await;
        show.line("\nstopping");
    }
    stage.tear_down().await;
    Ok(())
}

/// Everything that runs; what is not there has not been started.
#[derive(Default)]
struct Stage {
    consumer: Option<RunningSidecar>,
    provider: Option<RunningSidecar>,
    edge_a: Option<RunningNode>,
    edge_b: Option<RunningNode>,
    web: JoinSet<()>,
    web_stop: CancellationToken,
    found: Vec<Found>,
}

/// The name under which the built-in service is published.
const WEB: &str = "hello";
/// The port of the built-in service.
const PORT: u16 = 8080;

impl Stage {
    async fn play(
        &mut self,
        base: &Path,
        show: &mut Show,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let admin = self.start_nodes(base, show, stop).await?;
        let rest = async {
            self.start_sidecars(base, show).await?;
            self.prove(&admin, show).await
        };
        stop.run_until_cancelled(rest)
            .await
            .unwrap_or_else(|| Err(stopped()))
    }

    /// Gives an admin of edge-a.
    async fn start_nodes(
        &mut self,
        base: &Path,
        show: &mut Show,
        stop: &CancellationToken,
    ) -> anyhow::Result<Admin> {
        let settings = node_settings("edge-a", &base.join("edge-a"))?;
        let edge_a = Node::start_unless(settings, stop)
            .await
            .context("edge-a does not start")?
            .ok_or_else(stopped)?;
        let edge_a = self.edge_a.insert(edge_a);
        show.step(format_args!(
            "edge-a is up: APIServer {}, Router {}",
            edge_a.apiserver_url(),
            first(edge_a.router_addrs())
        ));

        let admin = Admin::get(&base.join("edge-a"), None, None)
            .await
            .context("edge-a gives no admin identity")?;
        let endpoint = edge_a.apiserver_addr();
        let token = admin
            .node_token(&"edge-b".parse()?, &endpoint.to_string())
            .await
            .context("edge-a makes no token")?;
        let token_file = base.join("token");
        keel_certs::write_atomic(&token_file, token.to_string().as_bytes(), 0o600)?;
        let mut settings = node_settings("edge-b", &base.join("edge-b"))?;
        settings.join = Some(TokenSource::File(token_file));
        // Ports are new at every start, and the one that edge-b joined through is not: it is told again.
        settings.peers = vec![PeerArg {
            node: edge_a.node().clone(),
            server: HostPort::from(endpoint),
        }];
        let edge_b = Node::start_unless(settings, stop)
            .await
            .context("edge-b does not start")?
            .ok_or_else(stopped)?;
        let edge_b = self.edge_b.insert(edge_b);
        show.step(format_args!(
            "edge-b joined trust domain {} with a token: APIServer {}, Router {}",
            edge_b.trust_domain(),
            edge_b.apiserver_url(),
            first(edge_b.router_addrs()),
        ));
        Ok(admin)
    }

    async fn start_sidecars(&mut self, base: &Path, show: &mut Show) -> anyhow::Result<()> {
        let web = Web::bind("hello from edge-b".to_owned()).await?;
        // Listening below 1024 takes root, and this must work without.
        let mut published = vec![format!("{WEB}:{PORT}={}", web.addr())];
        self.found = found::look().await;
        published.extend(
            self.found
                .iter()
                .map(|found| format!("{}={}", found.name, found.addr)),
        );
        self.web.spawn(web.run(self.web_stop.clone()));

        let namespace = Namespace::default_namespace();
        let mut config = sidecar_config(base, "edge-b");
        config.published = parse_published(&published.join(","), &namespace)?;
        let provider = start_sidecar(config)
            .await
            .context("the sidecar on edge-b does not start")?;
        self.provider = Some(provider);
        show.step(format_args!(
            "a sidecar on edge-b publishes {}",
            published.join(", ")
        ));

        let mut mapped = vec![format!("{WEB}:{PORT}")];
        mapped.extend(
            self.found
                .iter()
                .map(|found| format!("{}:{}", found.name, found.addr.port())),
        );
        let mut config = sidecar_config(base, "edge-a");
        config.mapped = parse_mapped(&mapped.join(","), &namespace)?;
        let consumer = start_sidecar(config)
            .await
            .context("the sidecar on edge-a does not start")?;
        show.step(format_args!(
            "a sidecar on edge-a maps {}; DNS answers at {}",
            mapped.join(", "),
            dns(&consumer)?
        ));
        self.consumer = Some(consumer);
        Ok(())
    }

    /// Looks at what an application would see, and at nothing behind it.
    async fn prove(&self, admin: &Admin, show: &mut Show) -> anyhow::Result<()> {
        let client = admin.client()?;
        let edge_b = "edge-b".parse()?;
        let seen = until(|| async {
            let router = client
                .get_router(&edge_b)
                .await
                .context("edge-a does not know Router edge-b")?;
            let status = router
                .status
                .context("Router edge-b has no status on edge-a")?;
            let service = status
                .active_services
                .iter()
                .find(|service| service.name.as_deref() == Some(WEB));
            let service = service.with_context(|| {
                format!("{WEB} is not in the status of Router edge-b on edge-a")
            })?;
            let provider = service
                .providers
                .first()
                .with_context(|| format!("{WEB} has no provider"))?;
            Ok(format!(
                "{WEB}.default:{} provided by {}",
                service.service_port().unwrap_or_default(),
                provider.identity
            ))
        })
        .await?;
        show.step(format_args!("Router edge-b, as synced to edge-a: {seen}"));

        let consumer = self.consumer.as_ref().context("no consumer")?;
        let (server, name) = (dns(consumer)?, format!("{WEB}.default.svc"));
        let address = until(|| proof::resolve(server, &name)).await?;
        if !matches!(address, IpAddr::V4(v4) if v4.is_loopback()) {
            bail!("DNS answered {address} for {name}, which is no loopback address");
        }
        show.step(format_args!("DNS at {server}: {name} is {address}"));

        let target = SocketAddr::new(address, PORT);
        let body = until(|| proof::fetch(target, &name)).await?;
        if body != "hello from edge-b" {
            bail!("http://{name}:{PORT} answered {body:?}");
        }
        show.step(format_args!(
            "GET http://{name}:{PORT}/ at {target} answered: {body}"
        ));

        for found in &self.found {
            let name = format!("{}.default.svc", found.name);
            let held = async {
                let target = SocketAddr::new(
                    until(|| proof::resolve(server, &name)).await?,
                    found.addr.port(),
                );
                found::greet(found, target).await
            };
            // A server found by chance is a bonus: what it does is shown, and nothing depends on it.
            match held.await {
                Ok(said) => show.line(format_args!(
                    "      also: {name}:{} {said}",
                    found.addr.port()
                )),
                Err(error) => show.line(format_args!(
                    "      (not: {name}:{}: {error:#})",
                    found.addr.port()
                )),
            }
        }
        Ok(())
    }

    fn invite(&self, base: &Path, show: &mut Show) {
        let dir = base.join("edge-a");
        let server = self
            .consumer
            .as_ref()
            .and_then(|consumer| consumer.addresses().dns)
            .unwrap_or_else(|| loopback(0));
        let metrics = self
            .edge_a
            .as_ref()
            .map_or_else(|| loopback(0), RunningNode::metrics_addr);
        show.line(format_args!(
            "\nTry it yourself, in another terminal:
  dig @{} -p {} {WEB}.default.svc +short
  curl http://$(dig @{} -p {} {WEB}.default.svc +short):{PORT}/
  cargo run --release --bin keel -- get routers --data-dir {dir}
  cargo run --release --bin keel -- kubeconfig --data-dir {dir} > kubeconfig && kubectl --kubeconfig kubeconfig get routers
  curl http://{metrics}/metrics
Ctrl-C ends it.",
            server.ip(),
            server.port(),
            server.ip(),
            server.port(),
            dir = dir.display(),
        ));
    }

    /// Consumers first, so that nothing is reset that could end well.
    async fn tear_down(mut self) {
        for sidecar in [self.consumer.take(), self.provider.take()]
            .into_iter()
            .flatten()
        {
            warn_of(sidecar.stop().await);
        }
        for node in [self.edge_b.take(), self.edge_a.take()]
            .into_iter()
            .flatten()
        {
            warn_of(node.stop().await);
        }
        self.web_stop.cancel();
        while self.web.join_next().await.is_some() {}
    }
}

fn stopped() -> anyhow::Error {
    anyhow!("stopped before everything was proved")
}

fn warn_of(outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!("while stopping: {error:#}");
    }
}

fn node_settings(name: &str, dir: &Path) -> anyhow::Result<NodeSettings> {
    let flags = NodeFlags {
        node_name: Some(name.parse()?),
        data_dir: Some(dir.to_owned()),
        apiserver_listen: Some(ListenAddr::from(loopback(0))),
        router_listen: Some(ListenAddr::from(loopback(0))),
        // Port 0: the one really bound. Both are reachable from each other, as they share the loopback.
        advertise: vec![HostPort::from(loopback(0))],
        metrics_listen: Some(loopback(0)),
        ..NodeFlags::default()
    };
    Ok(flags.resolve(dir.to_owned(), name.to_owned())?)
}

fn sidecar_config(base: &Path, node: &str) -> SidecarConfig {
    let dir = base.join(node);
    let mut config = SidecarConfig::new(Namespace::default_namespace(), dir.join("sidecar"));
    config.workload_sockets = vec![dir.join("workload.sock")];
    config.pod_base = "quickstart".to_owned();
    config.metrics = ListenOn::given(loopback(0));
    config
}

async fn start_sidecar(config: SidecarConfig) -> anyhow::Result<RunningSidecar> {
    RunningSidecar::start(SidecarSettings { config }, CancellationToken::new()).await
}

fn dns(sidecar: &RunningSidecar) -> anyhow::Result<SocketAddr> {
    sidecar
        .addresses()
        .dns
        .context("the sidecar answers no DNS")
}

fn first(addrs: Vec<SocketAddr>) -> String {
    addrs
        .first()
        .map_or_else(|| "nowhere".to_owned(), ToString::to_string)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Asks again until it holds, at most for [`STEP`]; then the last answer is the error.
async fn until<T, F: Future<Output = anyhow::Result<T>>>(
    mut ask: impl FnMut() -> F,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + STEP;
    loop {
        match ask().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {STEP:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// What the person in front of it reads.
struct Show {
    steps: usize,
}

impl Show {
    fn step(&mut self, what: impl Display) {
        self.steps += 1;
        let number = self.steps;
        self.line(format_args!("  {number}.  {what}"));
    }

    #[allow(clippy::unused_self, reason = "all output goes through one place")]
    fn line(&mut self, what: impl Display) {
        use std::io::Write as _;
        // A reader that went away ends nothing: the exit code says how it went.
        let _ = writeln!(std::io::stdout().lock(), "{what}");
    }
}

#[cfg(test)]
mod tests;
