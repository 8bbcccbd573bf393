//! One TLS connection over TCP: HTTP/2 or HTTP/1.1, by ALPN or by the first bytes.

use std::error::Error;
use std::future::Future;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::adapter::MAX_FIELD_SECTION;
use super::body::{Ending, Timed};
use super::stall::{Stall, Watched};
use super::unread::lend;
use super::{Common, Limits, TransportMetrics, expiry};
use crate::http::{Body, Caller, Remote};

/// Silence after which an HTTP/2 peer is asked whether it is still there; it gets as long again to answer.
const ALIVE: Duration = Duration::from_secs(10);
/// Requests that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 1024;

/// Does the TLS handshake, then serves requests until the peer closes, `stop` is requested or the peer's certificate ends.
pub(super) async fn serve(
    tcp: TcpStream,
    tls: TlsAcceptor,
    common: Common,
    alt_svc: HeaderValue,
    stop: CancellationToken,
) {
    let (limits, metrics) = (common.limits, common.metrics.clone());
    let Ok(address) = tcp.peer_addr() else { return };
    let remote = Remote::Tcp(address);
    // Small answers and events leave at once; without it they are only slower.
    let _ = tcp.set_nodelay(true);
    // A process that is stopped keeps its kernel saying that there is no room: HTTP/1.1 would wait for ever.
    let _ = SockRef::from(&tcp).set_tcp_user_timeout(Some(limits.unread));
    let stream = match timeout(limits.handshake, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%remote, %error, "TLS handshake failed"),
        Err(_) => {
            metrics.limit_hit("handshake_time");
            return debug!(%remote, "TLS handshake not done in time");
        }
    };
    let (identity, expires) = match peer(&stream) {
        Ok(peer) => peer,
        Err(error) => return debug!(%remote, %error, "client certificate names nobody"),
    };
    let Some(_place) = common.admit(identity.as_ref()) else {
        return debug!(%remote, "too many connections without a certificate: one more was turned away");
    };
    let handler = common.handler;
    let caller = Caller { identity, remote };
    let ending = stop.child_token();
    let service = service_fn(|request: http::Request<Incoming>| {
        let (head, body) = request.into_parts();
        let body = Timed::new(body.map_err(Into::into).boxed_unsync(), limits.body);
        let (body, rest) = lend(Body::new(body));
        let request = http::Request::from_parts(head, Body::new(body));
        let answer = handler.handle(request, caller.clone());
        let (ending, alt_svc) = (ending.clone(), alt_svc.clone());
        async move {
            let mut answer = answer.await.map(|body| {
                let body = Body::new(Ending::new(body, ending));
                match Stall::of_this_stream() {
                    Some(stall) => Body::new(Watched::new(body, stall)),
                    None => body,
                }
            });
            rest.drain().await;
            answer
                .headers_mut()
                .entry(http::header::ALT_SVC)
                .or_insert(alt_svc);
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let tasks = Tasks {
        running: Arc::default(),
        unread: limits.unread,
        metrics: metrics.clone(),
    };
    let builder = builder(tasks.clone(), limits);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut deadline = None;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    if is_timeout(error.as_ref()) {
                        metrics.limit_hit("unread");
                    }
                    debug!(%remote, %error, "connection ended");
                }
                break;
            }
            () = ending.cancelled(), if deadline.is_none() => {
                deadline = Some(Instant::now() + limits.drain);
                connection.as_mut().graceful_shutdown();
            }
            () = sleep_until(expires), if deadline.is_none() => {
                debug!(%remote, "the client's certificate has ended, so its connection ends");
                ending.cancel();
            }
            () = sleep_until(deadline.unwrap_or(expires)), if deadline.is_some() => {
                metrics.limit_hit("drain_time");
                break;
            }
        }
    }
    tasks.end().await;
}

fn builder(tasks: Tasks, limits: Limits) -> auto::Builder<Tasks> {
    let mut builder = auto::Builder::new(tasks);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .max_buf_size(MAX_FIELD_SECTION as usize)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(ALIVE)
        .keep_alive_timeout(ALIVE)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_FIELD_SECTION as u32);
    builder
}

fn peer(
    stream: &TlsStream<TcpStream>,
) -> Result<(Option<keel_certs::Identity>, Instant), keel_certs::IdentityError> {
    match stream.get_ref().1.peer_certificates() {
        None | Some([]) => Ok((None, expiry(None))),
        Some(certificates) => {
            let peer = keel_certs::peer_identity(certificates)?;
            Ok((Some(peer.identity), expiry(Some(peer.not_after))))
        }
    }
}

/// Whether the kernel gave the peer up, which did not take what was sent.
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return error.kind() == ErrorKind::TimedOut;
        }
        next = error.source();
    }
    false
}

/// The tasks that HTTP/2 starts for its streams; they end with their connection, or with a client that does not read.
#[derive(Clone)]
struct Tasks {
    running: Arc<Mutex<JoinSet<()>>>,
    unread: Duration,
    metrics: Arc<TransportMetrics>,
}

impl Tasks {
    async fn end(&self) {
        let mut running =
            std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        running.shutdown().await;
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let (unread, metrics) = (self.unread, self.metrics.clone());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running.spawn(async move {
            // hyper resets the stream whose task ends before its answer.
            if !Stall::watch(unread, task).await {
                metrics.limit_hit("unread");
            }
        });
    }
}
