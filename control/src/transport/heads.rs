//! HEAD, for every transport.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response};
use http_body::Body as _;

use crate::http::{Body, Caller, Handler, empty};

/// Answers a HEAD as a GET, without the body (RFC 9110, section 9.3.2). Neither hyper over HTTP/2 nor h3 takes it away, and a client
/// that gets one calls that a protocol error.
pub(super) struct Heads(pub(super) Arc<dyn Handler>);

impl Handler for Heads {
    fn handle(&self, request: Request<Body>, caller: Caller) -> BoxFuture<'static, Response<Body>> {
        let is_head = *request.method() == Method::HEAD;
        let answer = self.0.handle(request, caller);
        if !is_head {
            return answer;
        }
        Box::pin(async {
            let mut answer = answer.await;
            let body = std::mem::replace(answer.body_mut(), empty());
            if let Some(length) = body.size_hint().exact() {
                answer
                    .headers_mut()
                    .entry(CONTENT_LENGTH)
                    .or_insert(length.into());
            }
            answer
        })
    }
}
