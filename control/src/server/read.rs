//! Reading objects: one, all, or from now on.

use std::time::SystemTime;

use bytes::{BufMut, BytesMut};
use http::header::{ACCEPT, HeaderMap};
use http::{Response, StatusCode};
use keel_certs::Identity;
use serde_json::{Value, json};

use super::path::{Collection, Named};
use super::query::{Continue, Include, Match, Options};
use super::secret::Sight;
use super::table::table;
use super::{Inner, ok, past, reply, store_status, watch};
use crate::api::kind::About;
use crate::api::{Revision, Status};
use crate::http::Body;
use crate::store::Object;

/// What a list says beside its objects.
struct ListMeta {
    revision: Revision,
    /// Where the next page begins, and how many objects it and those behind it have, if that is known.
    rest: Option<(Continue, Option<usize>)>,
}

impl Inner {
    pub(super) async fn get(
        &self,
        identity: &Identity,
        named: &Named,
        headers: &HeaderMap,
        mut options: Options,
    ) -> Result<Response<Body>, Status> {
        if options.watch {
            options.selector.name(&named.name);
            return self
                .watch(identity, &named.collection(), headers, options)
                .await;
        }
        self.reach(&options).await?;
        let about = &named.kind.about;
        let found = self
            .store
            .get(&named.key())
            .await
            .map_err(|error| store_status(&error))?;
        let Some(object) = found else {
            return Err(Status::not_found(about, &named.name));
        };
        let object = shown(about, object, Sight::of(identity));
        match wants_table(headers) {
            false => Ok(ok(object.data)),
            true => {
                let meta = ListMeta {
                    revision: object.revision,
                    rest: None,
                };
                Ok(rows(about, &[parse(&object)], &meta, options.include))
            }
        }
    }

    pub(super) async fn list(
        &self,
        identity: &Identity,
        collection: &Collection,
        headers: &HeaderMap,
        mut options: Options,
    ) -> Result<Response<Body>, Status> {
        if options.watch {
            return self.watch(identity, collection, headers, options).await;
        }
        self.reach(&options).await?;
        let about = &collection.kind.about;
        options.selector.check(about)?;
        options.selector.namespace(collection.namespace.as_deref());
        let (objects, meta) = self.page(about, &options).await?;
        let sight = Sight::of(identity);
        let objects: Vec<Object> = objects
            .into_iter()
            .map(|object| shown(about, object, sight))
            .collect();
        if wants_table(headers) {
            let values: Vec<Value> = objects.iter().map(parse).collect();
            return Ok(rows(about, &values, &meta, options.include));
        }
        // Objects are stored as they are sent, so a list is put together without reading them.
        let size: usize = objects.iter().map(|object| object.data.len() + 1).sum();
        let mut list = BytesMut::with_capacity(size + 256);
        let head = format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
            about.kind,
            about.api_version(),
            meta.json()
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

    /// The objects that are asked for, as far as one answer goes.
    async fn page(
        &self,
        about: &About,
        options: &Options,
    ) -> Result<(Vec<Object>, ListMeta), Status> {
        let at = match (&options.from, options.revision_match) {
            (Some(from), _) => Some(from.revision),
            (None, Some(Match::Exact)) => options.revision,
            (None, _) => None,
        };
        let state = past::state(&self.store, about.resource, at).await;
        let (mut objects, revision) = state.map_err(|status| match &options.from {
            Some(_) if status.code == 410 => Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
                 continue parameter.",
            ),
            _ => status,
        })?;
        if !options.selector.is_everything() {
            objects.retain(|object| options.selector.matches(&parse(object)));
        }
        let mut meta = ListMeta {
            revision,
            rest: None,
        };
        let limit = options.limit.unwrap_or(usize::MAX);
        if options.from.is_none() && objects.len() <= limit {
            return Ok((objects, meta));
        }
        let mut entries = past::entries(objects);
        if let Some(from) = &options.from {
            entries.drain(..entries.partition_point(|(name, _)| *name <= from.after));
        }
        if entries.len() > limit
            && let Some((after, _)) = limit.checked_sub(1).and_then(|last| entries.get(last))
        {
            let next = Continue {
                revision,
                after: after.clone(),
            };
            let behind = entries.len() - limit;
            // As in Kubernetes, which does not count what it has not selected yet.
            let behind = options.selector.is_everything().then_some(behind);
            meta.rest = Some((next, behind));
            entries.truncate(limit);
        }
        Ok((
            entries.into_iter().map(|(_, object)| object).collect(),
            meta,
        ))
    }

    async fn watch(
        &self,
        identity: &Identity,
        collection: &Collection,
        headers: &HeaderMap,
        mut options: Options,
    ) -> Result<Response<Body>, Status> {
        let admitted = self.watches.admit(identity)?;
        options.selector.check(&collection.kind.about)?;
        options.selector.namespace(collection.namespace.as_deref());
        let request = watch::Request {
            kind: collection.kind,
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

impl ListMeta {
    fn json(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if let Some((next, behind)) = &self.rest {
            meta["continue"] = next.to_string().into();
            if let Some(behind) = behind {
                meta["remainingItemCount"] = (*behind).into();
            }
        }
        meta
    }
}

fn rows(about: &About, objects: &[Value], meta: &ListMeta, include: Include) -> Response<Body> {
    let mut rows = table(about, objects, None, include, true, SystemTime::now());
    rows["metadata"] = meta.json();
    reply::json(StatusCode::OK, &rows)
}

fn shown(about: &About, object: Object, sight: Sight) -> Object {
    Object {
        data: sight.show(about, &object.data),
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
