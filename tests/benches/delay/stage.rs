//! Three nodes, their sidecars, and who moves. The router of `a` is the only one that others reach.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use keel::run::{RunningNode, RunningSidecar};
use keel::settings::{SidecarFlags, Span};
use keel_tests::backends::{Backend, Manner};
use keel_tests::nodes;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::courier;

/// Nothing takes this long unless it hangs.
const SOON: Duration = Duration::from_secs(60);

/// What becomes of the providers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Churn {
    /// The only provider goes, and comes at another node.
    OnlyOneMoves,
    /// One of two does.
    OneOfTwoMoves,
}

impl Churn {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OnlyOneMoves => "the only one moves to another node",
            Self::OneOfTwoMoves => "one of two moves to another node",
        }
    }
}

/// Everything that runs.
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    echo: Backend,
    /// `a`, the first, `b`, where the consumer is, and `c`.
    nodes: [RunningNode; 3],
    consumer: RunningSidecar,
    /// The provider that moves, and the node where it is.
    moving: Option<(RunningSidecar, usize)>,
    staying: Option<RunningSidecar>,
    moves: u32,
    couriers: JoinSet<()>,
}

impl Stage {
    pub(crate) async fn start(
        churn: Churn,
        delay: Option<Duration>,
        connect_timeout: Span,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let a = nodes::node(folder.path(), "a", None).await?;
        let c = nodes::node(folder.path(), "c", Some(&a)).await?;
        let b = nodes::node(folder.path(), "b", Some(&a)).await?;
        let mut couriers = JoinSet::new();
        match delay {
            None => nodes::set_peers(&b, &[&a, &c]).await?,
            Some(delay) => {
                // Nobody but the courier brings anything to b.
                nodes::set_peers(&b, &[]).await?;
                for node in [&a, &c] {
                    let way = (node.client()?, b.client()?);
                    courier::start(&mut couriers, node.node(), way, delay);
                }
            }
        }
        let mapped = SidecarFlags {
            mapped_services: vec!["echo:4000".to_owned()],
            ip_range: Some("127.0.91.0/24".to_owned()),
            connect_timeout: Some(connect_timeout),
            ..SidecarFlags::default()
        };
        let consumer = nodes::sidecar(&b, "consumer", mapped, CancellationToken::new()).await?;
        let mut stage = Self {
            folder,
            echo: Backend::here(Manner::Echo)?,
            nodes: [a, b, c],
            consumer,
            moving: None,
            staying: None,
            moves: 0,
            couriers,
        };
        if churn == Churn::OneOfTwoMoves {
            stage.staying = Some(stage.provider("staying", 0).await?);
        }
        stage.moving = Some((stage.provider("moving-0", 0).await?, 0));
        stage.served().await?;
        Ok(stage)
    }

    /// Where the application connects.
    pub(crate) fn service(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::new(127, 0, 91, 1), 4000))
    }

    /// The provider that moves goes, and one comes at the other node.
    pub(crate) async fn move_one(&mut self) -> anyhow::Result<()> {
        let (old, at) = self.moving.take().context("a provider that moves")?;
        old.stop().await?;
        self.moves += 1;
        let to = 2 - at;
        let new = self.provider(&format!("moving-{}", self.moves), to).await?;
        self.moving = Some((new, to));
        Ok(())
    }

    async fn provider(&self, pod: &str, node: usize) -> anyhow::Result<RunningSidecar> {
        let published = SidecarFlags {
            published_services: vec![format!("echo:4000={}", self.echo.address())],
            ..SidecarFlags::default()
        };
        nodes::sidecar(&self.nodes[node], pod, published, CancellationToken::new()).await
    }

    /// Waits until the service answers at the consumer.
    async fn served(&self) -> anyhow::Result<()> {
        let answered = async {
            loop {
                let running = crate::application::connect_on(self.service());
                tokio::time::sleep(Duration::from_millis(200)).await;
                let seen = running.stop().await;
                if seen.failed() == 0 && seen.all() > 0 {
                    return;
                }
            }
        };
        timeout(SOON, answered)
            .await
            .context("the service is never there")
    }

    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.couriers.shutdown().await;
        let moving = self.moving.take().map(|(one, _)| one);
        for sidecar in moving.into_iter().chain(self.staying.take()) {
            sidecar.stop().await?;
        }
        self.consumer.stop().await?;
        for node in self.nodes {
            node.stop().await?;
        }
        drop(self.folder);
        Ok(())
    }
}
