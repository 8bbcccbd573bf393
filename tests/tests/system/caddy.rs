//! Our HTTP/3 client against a server that is not ours: caddy (quic-go), which passes what it is asked on to a real APIServer.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use keel_certs::NodeName;
use keel_certs::fixture::Fabric;
use keel_control::api::Router;
use keel_control::client::{Class, Client, ClientConfig, WatchEvent, WatchFrom, WatchStream};
use keel_tests::credentials::Credentials;
use keel_tests::lab::Lab;
use keel_tests::need::{Need, lacking};
use keel_tests::process::{Process, Program};
use keel_tests::site::Node;
use keel_tests::wait::{self, SOON};
use nix::sys::signal::Signal;
use serde_json::json;

/// Where caddy listens, on the loopback address of its host.
const PORT: u16 = 8443;
/// Bookmarks come every 10 s.
const BOOKMARK: Duration = Duration::from_secs(25);
/// caddy 2.6 ends without closing its connections. Ours is lost after 15 s of silence, which count from the first keep-alive that is
/// not answered, up to 5 s after the last one that was: 15.5 to 20.1 s were seen.
const LOST: Duration = Duration::from_secs(30);

/// A caddy in front of a node's APIServer, and the trust domain that it and our client are of.
struct Caddy {
    process: Process,
    program: Program,
    fabric: Fabric,
    _folder: tempfile::TempDir,
}

impl Caddy {
    /// It shows the certificate of a node `front`, asks for one of the same trust domain, and is the administrator behind.
    fn before(node: &Node, admin: &Credentials) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let fabric = Fabric::named("front.keel");
        fabric.node("front").save(folder.path())?;
        let own = |name: &str| folder.path().join(name).display().to_string();
        let (cert, key, ca) = (own("tls.crt"), own("tls.key"), own("ca.crt"));
        let (behind_cert, behind_key) = (admin.cert.display(), admin.key.display());
        let behind_ca = admin.ca.display();
        // HTTP/3 alone: there is no way back to TCP. Who comes to an address sends no name in the handshake, which caddy allows
        // only if told. It passes answers without a length on as they come.
        let config = format!(
            "{{
                admin off
                auto_https off
                grace_period 1s
                storage file_system {folder}
                servers {{
                    protocols h3
                    strict_sni_host insecure_off
                }}
            }}
            https://127.0.0.1:{PORT} {{
                bind 127.0.0.1
                tls {cert} {key} {{
                    client_auth {{
                        mode require_and_verify
                        trusted_ca_cert_file {ca}
                    }}
                }}
                reverse_proxy https://127.0.0.1:7443 {{
                    transport http {{
                        tls_client_auth {behind_cert} {behind_key}
                        tls_trusted_ca_certs {behind_ca}
                    }}
                }}
            }}\n",
            folder = folder.path().display(),
        );
        std::fs::write(own("Caddyfile"), config)?;
        let program = Program::new("caddy")
            .env("HOME", folder.path())
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(own("Caddyfile"))
            .on(&node.host);
        Ok(Self {
            process: Self::start(&program)?,
            program,
            fabric,
            _folder: folder,
        })
    }

    fn start(program: &Program) -> anyhow::Result<Process> {
        let mut process = program.start()?;
        process.says("serving initial configuration", SOON)?;
        Ok(process)
    }

    /// As its operator would: SIGTERM, and another one.
    fn restart(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.end(SOON)?;
        self.process = Self::start(&self.program)?;
        Ok(())
    }

    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(ClientConfig {
            server: format!("127.0.0.1:{PORT}").parse()?,
            expect: NodeName::new("front")?,
            live: self.fabric.node("b"),
        })?)
    }
}

async fn soon<F: Future>(what: &str, work: F) -> anyhow::Result<F::Output> {
    tokio::time::timeout(SOON, work)
        .await
        .with_context(|| format!("{what}: not within {SOON:?}"))
}

/// The next event that holds an object; interruptions are passed by.
async fn applied(watch: &mut WatchStream) -> anyhow::Result<Router> {
    let next = async {
        loop {
            match watch.next().await.context("a watch never ends")? {
                WatchEvent::Applied(router) => return Ok(router),
                WatchEvent::Snapshot { .. } => bail!("listed again: events may be lost"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(LOST, next)
        .await
        .with_context(|| format!("no event within {LOST:?}"))?
}

async fn calls(client: &Client) -> anyhow::Result<()> {
    let name = NodeName::new("by-our-client")?;
    let made = client.create_router(&Router::named(name.as_str())).await?;
    let taken = client.create_router(&made).await;
    ensure!(
        taken.is_err_and(|error| error.class() == Class::Conflict),
        "one of a name"
    );
    let labels = json!({"metadata": {"labels": {"tier": "edge"}}});
    let patched = client.merge_patch_router(&name, &labels).await?;
    let late = client.replace_router(&made).await;
    ensure!(
        late.is_err_and(|error| error.class() == Class::Conflict),
        "an old revision"
    );
    ensure!(client.get_router(&name).await? == patched);
    client.delete_router(&name).await?;
    let gone = client.get_router(&name).await;
    ensure!(gone.is_err_and(|error| error.is_not_found()));
    Ok(())
}

/// Bodies of many packets both ways, and one that the server does not want to the end.
async fn large(client: &Client) -> anyhow::Result<()> {
    let name = NodeName::new("large")?;
    let mut router = Router::named(name.as_str());
    let text = "x".repeat(200_000);
    router.metadata.annotations.insert("text".to_owned(), text);
    let made = client.create_router(&router).await?;
    ensure!(client.get_router(&name).await? == made);
    client.delete_router(&name).await?;
    let text = "x".repeat(8 << 20);
    router.metadata.annotations.insert("text".to_owned(), text);
    match client.create_router(&router).await {
        Err(error) if error.class() == Class::Invalid => Ok(()),
        other => bail!("8 MiB are too much: {other:?}"),
    }
}

/// Watches that are dropped end behind caddy too, and their connection serves on.
async fn cancelled(client: &Client, node: &Node) -> anyhow::Result<()> {
    let before = watches(node)?;
    let begun = (0..20).map(|_| client.watch_routers(WatchFrom::Snapshot));
    let read = futures_util::stream::select_all(begun).for_each(|_| std::future::ready(()));
    let opened = async {
        let opened = || watches(node).map(|now| now >= before + 20);
        while !opened()? {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        () = read => bail!("a watch never ends"),
        opened = soon("20 watches more", opened) => opened??,
    }
    client.list_routers().await?;
    wait::until("no watch is left in the server", SOON, || {
        watches(node).is_ok_and(|now| now <= before)
    })
}

/// How many watches the APIServer serves.
fn watches(node: &Node) -> anyhow::Result<u64> {
    let metrics = node.metrics("/metrics")?;
    let mut lines = metrics.lines();
    let watches = lines.find_map(|line| line.strip_prefix("keel_api_watches "));
    Ok(watches.context("no count of watches")?.parse()?)
}

async fn judged(caddy: &mut Caddy, node: &Node) -> anyhow::Result<()> {
    let client = caddy.client()?;
    calls(&client).await?;
    large(&client).await?;
    cancelled(&client, node).await?;

    // Idle for longer than any timer of the connection that could end it early.
    let mut watch = client.watch_routers(WatchFrom::Snapshot);
    let first = soon("a snapshot", watch.next()).await?;
    ensure!(
        matches!(first, Some(WatchEvent::Snapshot { .. })),
        "{first:?}"
    );
    for _ in 0..2 {
        let idle = tokio::time::timeout(BOOKMARK, watch.next()).await?;
        ensure!(matches!(idle, Some(WatchEvent::Synced(_))), "{idle:?}");
    }
    client.create_router(&Router::named("first")).await?;
    ensure!(applied(&mut watch).await?.name() == "first");

    // The server goes in order and comes back: the watch goes on behind what it saw, and calls find it.
    caddy.restart()?;
    let fresh = caddy.client()?;
    fresh.create_router(&Router::named("second")).await?;
    ensure!(applied(&mut watch).await?.name() == "second");
    client.get_router(&NodeName::new("second")?).await?;
    Ok(())
}

#[test]
fn our_client_is_understood_by_caddy() -> anyhow::Result<()> {
    if lacking(&[Need::Root, Need::Caddy, Need::Curl]) {
        return Ok(());
    }
    let mut lab = Lab::new()?;
    let host = lab.host("a")?;
    // Nothing but its APIServer: no part of the node writes anything.
    let node = Node::apiserver(&host, "a", &[])?;
    let admin = Credentials::admin(&node)?;
    host.run(|| {
        let mut caddy = Caddy::before(&node, &admin)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start({
                let host = host.clone();
                move || host.enter().expect("the namespace is there")
            })
            .build()?;
        let judged = runtime.block_on(judged(&mut caddy, &node));
        judged.with_context(|| caddy.process.log())
    })?
}
