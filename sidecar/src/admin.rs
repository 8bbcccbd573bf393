//! `/metrics`, `/healthz` and `/readyz` over HTTP/1.1, on loopback by default. Read only; used by every part.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections at a time: some probes and scrapers; others wait in the backlog.
const MAX_CONNECTIONS: usize = 32;

/// Time for a request's header.
const HEADER_TIME: Duration = Duration::from_secs(5);

/// Time for a connection altogether, so that idle ones make room; scrapers connect again.
const CONNECTION_TIME: Duration = Duration::from_secs(120);

/// What readiness waits for: everything that took a guard and has not dropped it.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    /// How many guards each name has. A short map touch, never held across an await.
    waiting: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// While it lives, readiness waits for it.
#[derive(Debug)]
pub struct NotReady {
    name: &'static str,
    ready: Ready,
}

impl Ready {
    /// Makes readiness wait for `name` until the guard is dropped.
    #[must_use]
    pub fn wait_for(&self, name: &'static str) -> NotReady {
        *self
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name)
            .or_default() += 1;
        NotReady {
            name,
            ready: self.clone(),
        }
    }

    /// What is waited for; ready if empty.
    pub fn missing(&self) -> Vec<&'static str> {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .copied()
            .collect()
    }
}

impl Drop for NotReady {
    fn drop(&mut self) {
        let mut waiting = self
            .ready
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(self.name);
            }
        }
    }
}

/// The listener of these pages, bound.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    pages: Arc<Pages>,
}

#[derive(Debug)]
struct Pages {
    registry: Arc<Registry>,
    ready: Ready,
}

impl Admin {
    /// Listens on `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// Of the socket.
    pub async fn bind(
        address: SocketAddr,
        registry: Arc<Registry>,
        ready: Ready,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            pages: Arc::new(Pages { registry, ready }),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; requests in work are cut then.
    pub async fn run(self, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = accept(&self.listener, &permits) => match accepted {
                    Ok((stream, permit)) => {
                        connections.spawn(serve(stream, self.pages.clone(), permit));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a connection for metrics failed");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }
}

/// The next connection, once there is room. Cancel safe: a permit without a connection is given back.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = permits
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn serve(stream: TcpStream, pages: Arc<Pages>, permit: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&request)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .serve_connection(TokioIo::new(stream), service);
    // What a scraper does wrong, or that it went away, concerns nobody else.
    if let Ok(Err(error)) = timeout(CONNECTION_TIME, connection).await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
    drop(permit);
}

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return page(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET is possible here\n".to_owned(),
            );
        }
        match request.uri().path() {
            "/healthz" => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/readyz" => {
                let missing = self.ready.missing();
                if missing.is_empty() {
                    page(StatusCode::OK, TEXT, "ok\n".to_owned())
                } else {
                    page(
                        StatusCode::SERVICE_UNAVAILABLE,
                        TEXT,
                        format!("waiting for {}\n", missing.join(", ")),
                    )
                }
            }
            "/metrics" => {
                let mut text = String::new();
                match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
                    Ok(()) => page(StatusCode::OK, OPEN_METRICS, text),
                    Err(error) => page(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        TEXT,
                        format!("{error}\n"),
                    ),
                }
            }
            _ => page(
                StatusCode::NOT_FOUND,
                TEXT,
                "there are /metrics, /healthz and /readyz\n".to_owned(),
            ),
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn page(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::metrics::SidecarMetrics;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .await
            .unwrap();
        let mut text = String::new();
        timeout(Duration::from_secs(5), stream.read_to_string(&mut text))
            .await
            .unwrap()
            .unwrap();
        text
    }

    #[tokio::test]
    async fn readiness_waits_for_every_guard_and_health_for_none() {
        let mut registry = Registry::default();
        let metrics = SidecarMetrics::register(&mut registry);
        metrics.connections_accepted.inc();
        let ready = Ready::default();
        let admin = Admin::bind(
            "127.0.0.1:0".parse().unwrap(),
            Arc::new(registry),
            ready.clone(),
        )
        .await
        .unwrap();
        let address = admin.local_addr();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(admin.run(stop.clone()));

        let (first, second) = (ready.wait_for("identity"), ready.wait_for("routers"));
        let text = get(address, "/readyz").await;
        assert!(
            text.starts_with("HTTP/1.1 503") && text.contains("identity, routers"),
            "{text}"
        );
        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        drop((first, second));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let text = get(address, "/metrics").await;
        assert!(
            text.contains("keel_sidecar_connections_accepted_total 1") && text.contains("# EOF"),
            "{text}"
        );
        assert!(get(address, "/x").await.starts_with("HTTP/1.1 404"));
        stop.cancel();
        tasks.join_all().await;
    }
}
