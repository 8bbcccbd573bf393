//! One request to a server that is not known yet.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, header};
use keel_fabric::quic::{Endpoint, HostPort, Profile};
use serde_json::Value;
use tokio::time::timeout;

use super::ClientError;
use super::connection::Connection;
use super::routers::BODY;
use crate::http::read;

/// Largest answer that is taken, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Posts `body` as JSON to `path` of `server` over HTTP/3, on a connection that ends with the call, and gives the answer's JSON.
///
/// `tls` decides whom to believe; its ALPN must be `h3`. Dropped, the call ends and the connection with it.
///
/// # Errors
/// [`ClientError::Status`] for every answer that is not a success.
pub async fn post(
    server: &HostPort,
    tls: Arc<rustls::ClientConfig>,
    path: &str,
    body: &Value,
) -> Result<Value, ClientError> {
    let endpoint =
        Endpoint::client(Profile::Control).map_err(|error| ClientError::Unreachable {
            server: server.clone(),
            why: error.to_string(),
        })?;
    let connection = Arc::new(Connection::open(&endpoint, server, tls).await?);
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(format!("https://{server}{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(Bytes::from(body.to_string()))
        .map_err(|error| ClientError::Request(error.to_string()))?;
    let (parts, answer) = connection.request(request).await?.into_parts();
    let bytes = timeout(BODY, read(answer, MAX_ANSWER))
        .await
        .map_err(|_| ClientError::Slow {
            server: server.clone(),
            seconds: BODY.as_secs(),
        })?
        .map_err(|error| ClientError::Interrupted {
            server: server.clone(),
            why: error.to_string(),
        })?;
    endpoint.close(h3::error::Code::H3_NO_ERROR.value(), b"");
    if !parts.status.is_success() {
        return Err(ClientError::answer(parts.status, &bytes));
    }
    serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer(error.to_string()))
}
