//! The built-in service that the quickstart publishes: a web server that says who it is.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Response, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections served at a time: it is a demonstration, not a web server.
const CONNECTIONS: usize = 64;

/// A web server on a free loopback port.
#[derive(Debug)]
pub(super) struct Web {
    listener: TcpListener,
    addr: SocketAddr,
    says: String,
}

impl Web {
    /// Binds a free port (always 1024 or more); every request is answered with `says`.
    pub(super) async fn bind(says: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("cannot listen for the built-in service")?;
        let addr = listener.local_addr()?;
        Ok(Self {
            listener,
            addr,
            says,
        })
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let body = Bytes::from(format!("{}\n", self.says));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS => {
                    // A client that is gone again is not the server's trouble.
                    let Ok((stream, _)) = accepted else { continue };
                    let body = body.clone();
                    connections.spawn(async move {
                        let service = service_fn(move |_| {
                            let response = Response::builder()
                                .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
                                .body(Full::new(body.clone()));
                            std::future::ready(Ok::<_, Infallible>(response.unwrap_or_default()))
                        });
                        let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            }
        }
        connections.shutdown().await;
    }
}
