//! Responses.

use std::collections::VecDeque;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, RETRY_AFTER};
use http::{Method, Response, StatusCode};
use serde::Serialize;

use crate::api::answer::shown;
use crate::api::{Reason, Status};
use crate::http::{Body, empty, full, pieces};

pub(super) const JSON: &str = "application/json";
/// Bytes of all warnings of an answer, as Kubernetes has it.
const MAX_WARNINGS: usize = 4096;

/// A response with these bytes of JSON.
pub(super) fn bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    json_body(code, full(bytes))
}

/// A response with these pieces of one JSON text.
pub(super) fn in_pieces(code: StatusCode, text: VecDeque<Bytes>) -> Response<Body> {
    json_body(code, pieces(text))
}

fn json_body(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// A response with this value as JSON.
pub(super) fn json(code: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(encoded) => bytes(code, encoded),
        // Our own types have string keys and finite numbers only; a body is still better than a panic.
        Err(_) => bytes(StatusCode::INTERNAL_SERVER_ERROR, Bytes::from_static(b"{}")),
    }
}

/// A response with a `Status`, and its code. When to come again is said where clients look for it, too.
pub(super) fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, status);
    let details = status.details.as_ref();
    if let Some(seconds) = details.and_then(|details| details.retry_after_seconds) {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// The response with a tag of its content: clients that show the tag again are told so in a few bytes.
pub(super) fn tagged(mut response: Response<Body>, tag: &str) -> Response<Body> {
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{tag}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// A tag of these bytes.
pub(super) fn tag(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    data_encoding::HEXUPPER.encode(&digest.as_ref()[..16])
}

/// The response, or 304 without a body if the client has what bears the response's tag.
pub(super) fn unless_known(response: Response<Body>, headers: &HeaderMap) -> Response<Body> {
    let Some(tag) = response.headers().get(ETAG) else {
        return response;
    };
    let known = headers
        .get(IF_NONE_MATCH)
        .and_then(|known| known.to_str().ok())
        .is_some_and(|known| {
            known
                .split(',')
                .any(|one| one.trim().as_bytes() == tag.as_bytes())
        });
    if !known {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    parts.status = StatusCode::NOT_MODIFIED;
    Response::from_parts(parts, empty())
}

/// Adds warnings, which kubectl prints; no more of them than a client's limit for a header can take.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    let mut room = MAX_WARNINGS;
    for warning in warnings {
        let text: String = warning
            .chars()
            .take(300)
            // A header is ASCII; a quoted string escapes quotes and backslashes.
            .flat_map(|char| match char {
                '"' | '\\' => vec!['\\', char],
                ' '..='~' => vec![char],
                _ => vec!['?'],
            })
            .collect();
        let Some(left) = room.checked_sub(text.len()) else {
            return;
        };
        room = left;
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append("warning", value);
        }
    }
}

/// The path does not take the method, but these.
pub(super) fn method_not_allowed(method: &Method, allowed: &[Method]) -> Response<Body> {
    let message = format!(
        "the server does not allow the method {} on the requested resource",
        shown(method.as_str(), 100)
    );
    let mut response = status(&Status::failure(Reason::MethodNotAllowed, message));
    let allowed: Vec<&str> = allowed.iter().map(Method::as_str).collect();
    if let Ok(value) = HeaderValue::from_str(&allowed.join(", ")) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// There is no such path.
pub(super) fn no_such_path() -> Status {
    Status::failure(
        Reason::NotFound,
        "the server could not find the requested resource",
    )
}
