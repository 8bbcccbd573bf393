//! Reading objects: one, or from now on.

use std::time::SystemTime;

use http::header::HeaderMap;
use http::{Response, StatusCode};
use keel_certs::Identity;
use serde_json::Value;

use super::form::{Form, metadata};
use super::path::{Collection, Named};
use super::query::Options;
use super::secret::Sight;
use super::table::table;
use super::{Inner, ok, reply, store_status, watch};
use crate::api::Status;
use crate::http::Body;

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
        let form = Form::asked(headers, options.include)?;
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
        let data = Sight::of(identity).show(about, &object.data);
        Ok(match form {
            Form::Metadata => reply::json(StatusCode::OK, &metadata(&parse(&data))),
            Form::Table(include) => {
                let rows = table(
                    about,
                    &[parse(&data)],
                    Some(&object.revision.to_string()),
                    include,
                    true,
                    SystemTime::now(),
                );
                reply::json(StatusCode::OK, &rows)
            }
            Form::Whole => ok(data),
        })
    }

    pub(super) async fn watch(
        &self,
        identity: &Identity,
        collection: &Collection,
        headers: &HeaderMap,
        mut options: Options,
    ) -> Result<Response<Body>, Status> {
        let admitted = self.watches.admit(identity)?;
        options.narrow(collection)?;
        let request = watch::Request {
            kind: collection.kind,
            selector: options.selector,
            // 0 is "any state", which is the current one here.
            after: options.revision.filter(|revision| revision.0 > 0),
            initial_events: options.initial_events == Some(true),
            only_new: options.initial_events == Some(false),
            bookmarks: options.bookmarks,
            timeout: options.timeout,
            form: Form::asked(headers, options.include)?,
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
    pub(super) async fn reach(&self, options: &Options) -> Result<(), Status> {
        match options.revision {
            Some(revision) => watch::reach(&mut self.store.revision(), revision).await,
            None => Ok(()),
        }
    }
}

/// Reads a stored object. What is stored was encoded here; if it cannot be read, it is shown as nothing.
pub(super) fn parse(object: &[u8]) -> Value {
    serde_json::from_slice(object).unwrap_or_default()
}
