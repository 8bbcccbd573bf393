//! Reading routers: one, all, or from now on.

use std::time::SystemTime;

use bytes::{BufMut, BytesMut};
use http::header::{ACCEPT, HeaderMap};
use http::{Response, StatusCode};
use keel_certs::Identity;
use serde_json::Value;

use super::query::{Include, Match, Options};
use super::secret::Sight;
use super::table::table;
use super::{Inner, RESOURCE, key, ok, reply, store_status, watch};
use crate::api::{API_VERSION, KIND, Revision, Status};
use crate::http::Body;
use crate::store::Object;

impl Inner {
    pub(super) async fn get_router(
        &self,
        identity: &Identity,
        name: &str,
        headers: &HeaderMap,
        mut options: Options,
    ) -> Result<Response<Body>, Status> {
        if options.watch {
            options.selector.name(name);
            return self.watch_routers(identity, headers, options).await;
        }
        self.reach(&options).await?;
        let found = self
            .store
            .get(&key(name))
            .await
            .map_err(|error| store_status(&error))?;
        let Some(object) = found else {
            return Err(Status::not_found(name));
        };
        let object = shown(object, Sight::of(identity));
        match wants_table(headers) {
            false => Ok(ok(object.data)),
            true => Ok(rows(&[parse(&object)], object.revision, options.include)),
        }
    }

    pub(super) async fn list_routers(
        &self,
        identity: &Identity,
        headers: &HeaderMap,
        options: Options,
    ) -> Result<Response<Body>, Status> {
        if options.watch {
            return self.watch_routers(identity, headers, options).await;
        }
        self.reach(&options).await?;
        let (mut objects, revision) = self
            .store
            .list(RESOURCE)
            .await
            .map_err(|error| store_status(&error))?;
        if options.revision_match == Some(Match::Exact) && options.revision != Some(revision) {
            let asked = options.revision.unwrap_or_default();
            return Err(Status::expired(format!(
                "The provided resource version {asked} is no longer kept; list without it"
            )));
        }
        if !options.selector.is_everything() {
            objects.retain(|object| options.selector.matches(&parse(object)));
        }
        let sight = Sight::of(identity);
        let objects: Vec<Object> = objects
            .into_iter()
            .map(|object| shown(object, sight))
            .collect();
        if wants_table(headers) {
            let values: Vec<Value> = objects.iter().map(parse).collect();
            return Ok(rows(&values, revision, options.include));
        }
        // Objects are stored as they are sent, so a list is put together without reading them.
        let mut list = BytesMut::with_capacity(
            objects
                .iter()
                .map(|object| object.data.len() + 1)
                .sum::<usize>()
                + 128,
        );
        let head = format!(
            "{{\"kind\":\"{KIND}List\",\"apiVersion\":\"{API_VERSION}\",\"metadata\":{{\"resourceVersion\":\"{revision}\"}},\"items\":["
        );
        list.put_slice(head.as_bytes());
        for (index, object) in objects.iter().enumerate() {
            if index > 0 {
                list.put_u8(b',');
            }
            list.put_slice(&object.data);
        }
        list.put_slice(b"]}");
        Ok(ok(list.freeze()))
    }

    async fn watch_routers(
        &self,
        identity: &Identity,
        headers: &HeaderMap,
        options: Options,
    ) -> Result<Response<Body>, Status> {
        let admitted = self.watches.admit(identity)?;
        let request = watch::Request {
            selector: options.selector,
            // 0 is "any state", which is the current one here.
            after: options.revision.filter(|revision| revision.0 > 0),
            initial_events: options.initial_events == Some(true),
            only_new: options.initial_events == Some(false),
            bookmarks: options.bookmarks,
            timeout: options.timeout,
            table: wants_table(headers).then_some(options.include),
            sight: Sight::of(identity),
        };
        let body = watch::start(self.store.clone(), &self.watches, admitted, request).await?;
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::OK;
        response
            .headers_mut()
            .insert("content-type", http::HeaderValue::from_static(reply::JSON));
        Ok(response)
    }

    /// Waits for the revision that a read must not be older than.
    async fn reach(&self, options: &Options) -> Result<(), Status> {
        match options.revision {
            Some(revision) => watch::reach(&mut self.store.revision(), revision).await,
            None => Ok(()),
        }
    }
}

fn rows(objects: &[Value], revision: Revision, include: Include) -> Response<Body> {
    let revision = revision.to_string();
    reply::json(
        StatusCode::OK,
        &table(objects, Some(&revision), include, true, SystemTime::now()),
    )
}

fn shown(object: Object, sight: Sight) -> Object {
    Object {
        data: sight.show(&object.data),
        ..object
    }
}

/// Reads a stored object. What is stored was encoded here; if it cannot be read, it is shown as nothing.
fn parse(object: &Object) -> Value {
    serde_json::from_slice(&object.data).unwrap_or_default()
}

/// Whether the client asks for a Table before plain JSON.
fn wants_table(headers: &HeaderMap) -> bool {
    let accepts = headers
        .get_all(ACCEPT)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let media = accepts
        .flat_map(|value| value.split(','))
        .map(|media| media.replace(' ', ""));
    for media in media {
        let mut parts = media.split(';');
        if !matches!(
            parts.next(),
            Some("application/json" | "*/*" | "application/*")
        ) {
            continue;
        }
        let parameters: Vec<&str> = parts.collect();
        let has = |parameter: &str| parameters.contains(&parameter);
        match (has("as=Table"), has("g=meta.k8s.io") && has("v=v1")) {
            (true, true) => return true,
            // Another version of Table, or another transformation: the client lists what else it takes.
            (true, false) => {}
            (false, _)
                if parameters
                    .iter()
                    .any(|parameter| parameter.starts_with("as=")) => {}
            (false, _) => return false,
        }
    }
    false
}
