//! The transports against real sockets, with our own client, with hyper and with raw QUIC.

mod hostile;
mod requests;
mod shutdown;
mod tcp;
mod unread;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use keel_certs::fixture::Fabric;
use keel_certs::{LiveIdentity, NodeName};
use keel_fabric::quic::{HostPort, QuicKeys};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{ApiServer, Limits, TransportMetrics};
use crate::client::{Client, ClientConfig};
use crate::http::{Body, BoxError, Caller, Handler, empty, full, read};

/// Nothing in a test takes this long unless it hangs.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future)
        .await
        .expect("a test step takes too long")
}

/// A served handler, which is stopped and joined by `stop`.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Arc<TransportMetrics>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: JoinSet<()>,
}

impl Served {
    pub(crate) fn start(live: &LiveIdentity, handler: Arc<dyn Handler>, limits: Limits) -> Self {
        Self::start_at("127.0.0.1:0", live, handler, limits)
    }

    pub(crate) fn start_at(
        listen: &str,
        live: &LiveIdentity,
        handler: Arc<dyn Handler>,
        limits: Limits,
    ) -> Self {
        let metrics = TransportMetrics::register(&mut Registry::default());
        let server = ApiServer::bind(
            &listen.parse().unwrap(),
            live,
            &QuicKeys::ephemeral(),
            handler,
            limits,
            metrics.clone(),
        )
        .unwrap();
        let address = server.local_addrs()[0];
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(stop.clone()));
        Self {
            address,
            metrics,
            stop,
            tasks,
        }
    }

    pub(crate) fn server(&self) -> HostPort {
        self.address.into()
    }

    pub(crate) fn client(&self, live: &LiveIdentity, expect: &str) -> Client {
        let config = ClientConfig {
            server: self.server(),
            expect: NodeName::new(expect).unwrap(),
            live: live.clone(),
        };
        Client::new(config).unwrap()
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        soon(self.tasks.join_next()).await.unwrap().unwrap();
    }
}

/// Echoes, counts, waits: what the transport tests ask for by path.
pub(crate) struct TestHandler {
    /// How many watches are running.
    pub(crate) watches: watch::Sender<usize>,
    /// How many `/slow` requests have begun.
    pub(crate) slow: watch::Sender<usize>,
    /// Lets `/slow` go on.
    pub(crate) go_on: CancellationToken,
}

impl TestHandler {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            watches: watch::Sender::new(0),
            slow: watch::Sender::new(0),
            go_on: CancellationToken::new(),
        })
    }

    pub(crate) async fn watches(&self, wanted: usize) {
        soon(
            self.watches
                .subscribe()
                .wait_for(|running| *running == wanted),
        )
        .await
        .unwrap();
    }
}

struct Running(watch::Sender<usize>);

impl Running {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|running| *running += 1);
        Self(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

impl Handler for TestHandler {
    fn handle(
        &self,
        request: http::Request<Body>,
        caller: Caller,
    ) -> BoxFuture<'static, http::Response<Body>> {
        let who = caller
            .identity
            .as_ref()
            .map_or("nobody".to_owned(), |identity| identity.subject.to_string());
        let (parts, body) = request.into_parts();
        match parts.uri.path() {
            "/who" => Box::pin(std::future::ready(http::Response::new(full(who)))),
            "/echo" => Box::pin(std::future::ready(http::Response::new(body))),
            "/store" => Box::pin(async {
                match read(body, 16 << 20).await {
                    Ok(bytes) => http::Response::new(full(bytes)),
                    Err(error) => http::Response::builder()
                        .status(400)
                        .body(full(error.to_string()))
                        .expect("valid"),
                }
            }),
            "/refuse" => Box::pin(std::future::ready(
                http::Response::builder()
                    .status(413)
                    .body(full("too much"))
                    .expect("valid"),
            )),
            "/broken" => Box::pin(async {
                let frames = [
                    Ok(Frame::data(Bytes::from_static(b"half"))),
                    Err::<_, BoxError>("disk on fire".into()),
                ];
                http::Response::new(
                    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync(),
                )
            }),
            "/slow" => {
                let (slow, go_on) = (self.slow.clone(), self.go_on.clone());
                Box::pin(async move {
                    slow.send_modify(|begun| *begun += 1);
                    go_on.cancelled().await;
                    http::Response::new(full("done"))
                })
            }
            "/watch" => {
                let running = Running::new(&self.watches);
                Box::pin(async move {
                    let (events, receiver) = mpsc::channel::<Result<Frame<Bytes>, BoxError>>(1);
                    events
                        .try_send(Ok(Frame::data(Bytes::from_static(b"first\n"))))
                        .expect("there is room");
                    let stream = futures_util::stream::unfold(
                        (receiver, events, running),
                        |(mut receiver, events, running)| async {
                            Some((receiver.recv().await?, (receiver, events, running)))
                        },
                    );
                    http::Response::new(StreamBody::new(stream).boxed_unsync())
                })
            }
            // A watch of which more comes than anybody reads.
            "/flood" => {
                let running = Running::new(&self.watches);
                let chunk = Bytes::from_static(&[b'x'; 64 << 10]);
                let stream = futures_util::stream::repeat_with(move || {
                    let _running = &running;
                    Ok::<_, BoxError>(Frame::data(chunk.clone()))
                });
                Box::pin(std::future::ready(http::Response::new(
                    StreamBody::new(stream).boxed_unsync(),
                )))
            }
            _ => Box::pin(std::future::ready(
                http::Response::builder()
                    .status(404)
                    .body(empty())
                    .expect("valid"),
            )),
        }
    }
}

pub(crate) fn get(path: &str) -> http::Request<Bytes> {
    http::Request::get(path).body(Bytes::new()).unwrap()
}

pub(crate) async fn text(answer: http::Response<Body>) -> String {
    let bytes = soon(read(answer.into_body(), 1 << 20)).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn fabric() -> (Fabric, LiveIdentity) {
    let fabric = Fabric::new();
    let live = fabric.node("a");
    (fabric, live)
}
