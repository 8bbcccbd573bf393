//! One HTTP/3 connection of a client, shared by everything that runs over it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h3::client::SendRequest;
use h3::error::Code;
use http_body_util::BodyExt;
use keel_fabric::quic::{Endpoint, HostPort};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::ClientError;
use crate::http::Body;
use crate::transport::adapter::{Budgets, H3Connection, MAX_FIELD_SECTION, Opener, Side};
use crate::transport::body::{Reader, Streamed};

/// How long the resolution of a name, the connection to one address and the start of HTTP/3 on it may take, each.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the header of an answer may take.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
/// Bytes of a request's body that are handed to QUIC at a time.
const PIECE: usize = 64 * 1024;

/// A connection that lives as long as somebody holds it: the client, or an answer that is still read.
pub(super) struct Connection {
    server: HostPort,
    send: SendRequest<Opener, Bytes>,
    budgets: Budgets,
    quic: keel_fabric::quic::Connection,
    gone: CancellationToken,
    /// Polls the control streams; ends with the connection, aborted when the last holder goes.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Connects to the first address of `server` that answers.
    pub(super) async fn open(
        endpoint: &Endpoint,
        server: &HostPort,
        tls: Arc<rustls::ClientConfig>,
    ) -> Result<Self, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable {
            server: server.clone(),
            why,
        };
        let addresses = timeout(CONNECT, server.resolve())
            .await
            .map_err(|_| {
                unreachable(format!(
                    "its name was not resolved within {} s",
                    CONNECT.as_secs()
                ))
            })?
            .map_err(|error| unreachable(error.to_string()))?;
        let mut failures = Vec::new();
        for address in addresses {
            match timeout(
                CONNECT,
                endpoint.connect(address, server.host(), tls.clone()),
            )
            .await
            {
                Ok(Ok(quic)) => return Self::start(server.clone(), quic).await,
                Ok(Err(error)) => failures.push(format!("{address}: {error}")),
                Err(_) => failures.push(format!(
                    "{address}: no answer within {} s",
                    CONNECT.as_secs()
                )),
            }
        }
        Err(unreachable(failures.join("; ")))
    }

    async fn start(
        server: HostPort,
        quic: keel_fabric::quic::Connection,
    ) -> Result<Self, ClientError> {
        let adapter = H3Connection::new(quic.clone(), Side::Client);
        let budgets = adapter.budgets();
        let mut builder = h3::client::builder();
        builder.max_field_section_size(MAX_FIELD_SECTION);
        // The streams that it opens need the peer's leave, and all callers wait for this connection.
        let started = timeout(CONNECT, builder.build::<_, _, Bytes>(adapter)).await;
        let why = match started {
            Ok(Ok(started)) => Ok(started),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "HTTP/3 did not start within {} s",
                CONNECT.as_secs()
            )),
        };
        let (mut connection, send) = why.map_err(|why| ClientError::Unreachable {
            server: server.clone(),
            why,
        })?;
        let gone = CancellationToken::new();
        let guard = gone.clone().drop_guard();
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _guard = guard;
            let ended = connection.wait_idle().await;
            tracing::debug!(%ended, "connection to the APIServer ended");
        });
        Ok(Self {
            server,
            send,
            budgets,
            quic,
            gone,
            _driver: driver,
        })
    }

    /// Whether the connection has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_cancelled() || self.quic.close_reason().is_some()
    }

    /// Sends a request and waits for the header of the answer. Dropped, it cancels the request.
    pub(super) async fn request(
        self: Arc<Self>,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Body>, Failed> {
        let server = self.server.clone();
        match timeout(ANSWER, self.exchange(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(Failed::Sent(ClientError::Slow {
                server,
                seconds: ANSWER.as_secs(),
            })),
        }
    }

    async fn exchange(
        self: Arc<Self>,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Body>, Failed> {
        let cut = |error: h3::error::StreamError| {
            let rejected = matches!(&error, h3::error::StreamError::RemoteTerminate { code, .. } if *code == Code::H3_REQUEST_REJECTED);
            let error = ClientError::Interrupted {
                server: self.server.clone(),
                why: error.to_string(),
            };
            if rejected {
                Failed::NotSent(error)
            } else {
                Failed::Sent(error)
            }
        };
        let (parts, mut body) = request.into_parts();
        let is_head = parts.method == http::Method::HEAD;
        // A clone of the sender goes along: the connection ends with the last one.
        let mut stream = self
            .send
            .clone()
            .send_request(http::Request::from_parts(parts, ()))
            .await
            .map_err(|error| {
                let closing = matches!(error, h3::error::StreamError::RemoteClosing { .. });
                let error = ClientError::Interrupted {
                    server: self.server.clone(),
                    why: error.to_string(),
                };
                if closing || self.is_gone() {
                    Failed::NotSent(error)
                } else {
                    Failed::Sent(error)
                }
            })?;
        let budget = self.budgets.of(stream.id());
        let mut sent = Ok(());
        while sent.is_ok() && !body.is_empty() {
            sent = stream.send_data(body.split_to(body.len().min(PIECE))).await;
        }
        if sent.is_ok() {
            sent = stream.finish().await;
        }
        // A server that answers early wants no more of the request, so the answer counts, not the failed sending.
        let answer = stream
            .recv_response()
            .await
            .map_err(|error| cut(sent.err().unwrap_or(error)))?;
        if let Some(budget) = &budget {
            budget.header_complete();
        }
        let (_send, recv) = stream.split();
        // The length in the answer to a HEAD is that of a GET.
        let nothing = http::HeaderMap::new();
        let headers = if is_head { &nothing } else { answer.headers() };
        let (body, _) = Streamed::new(Reader::new(recv, budget, headers));
        Ok(answer.map(|()| {
            Held {
                body,
                _connection: self,
            }
            .boxed_unsync()
        }))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.quic.close(Code::H3_NO_ERROR.value(), b"");
    }
}

/// Why a request got no answer, and whether the server may have acted on it.
pub(super) enum Failed {
    /// The server has not processed it: it may be sent again, whatever it is.
    NotSent(ClientError),
    /// Unknown.
    Sent(ClientError),
}

impl From<Failed> for ClientError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::NotSent(error) | Failed::Sent(error) => error,
        }
    }
}

/// An answer's body that keeps its connection.
struct Held<B> {
    body: B,
    _connection: Arc<Connection>,
}

impl<B: http_body::Body + Unpin> http_body::Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
