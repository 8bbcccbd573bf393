//! Lists: read from the store in pages of one revision, and put together in pieces as they are sent.
//!
//! An answer holds each object once, encoded, and beside it one page of the store, however many objects there are.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Response, StatusCode};
use keel_certs::Identity;
use serde_json::{Value, json};

use super::form::{Form, metadata, metadata_list};
use super::path::Collection;
use super::query::{Continue, Match, Options};
use super::read::parse;
use super::secret::Sight;
use super::table::{definitions, row};
use super::watch::events_status;
use super::{Inner, reply, store_status};
use crate::api::kind::About;
use crate::api::{Revision, Status};
use crate::http::Body;
use crate::store::{EventsError, Page};

/// Objects that one look at the store takes at most; as many as kubectl asks for.
const PAGE: usize = 500;

impl Inner {
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
        let form = Form::asked(headers, options.include)?;
        self.reach(&options).await?;
        options.narrow(collection)?;
        let about = &collection.kind.about;
        let mut list = List::new(about, Sight::of(identity), form);
        let add =
            |objects: Vec<(String, Bytes)>| list.add(objects.iter().map(|(_, object)| object));
        let selected = self.select(about, &options, add).await?;
        let metadata = self.list_metadata(about, &options, selected).await?;
        Ok(list.finish(&metadata))
    }

    /// Gives the objects that are asked for to `take`, page by page with the names that they have in the store, as far as one answer
    /// goes.
    pub(super) async fn select(
        &self,
        about: &About,
        options: &Options,
        mut take: impl FnMut(Vec<(String, Bytes)>),
    ) -> Result<Selected, Status> {
        let selector = (!options.selector.is_everything()).then_some(&options.selector);
        let mut at = match (&options.from, options.revision_match) {
            (Some(from), _) => Some(from.revision),
            (None, Some(Match::Exact)) => options.revision,
            // Who pages at a revision means that one, and has since before there was a word for it.
            (None, None) if options.limit.is_some() => {
                options.revision.filter(|revision| revision.0 > 0)
            }
            (None, _) => None,
        };
        let mut after = match &options.from {
            Some(from) => from.after.clone(),
            None => String::new(),
        };
        let mut left = options.limit.unwrap_or(usize::MAX);
        loop {
            // Who selects may have to look at many objects to find a few.
            let max = if selector.is_some() {
                PAGE
            } else {
                left.min(PAGE)
            };
            let Page {
                objects,
                revision,
                more,
            } = self
                .store
                .page(about.kept(), at, &after, max)
                .await
                .map_err(|error| page_status(&error, options))?;
            at = Some(revision);
            let seen = objects.len();
            let mut used = 0;
            let mut found = Vec::new();
            for (name, object) in objects {
                if left == 0 {
                    break;
                }
                used += 1;
                after.clone_from(&name);
                if selector.is_none_or(|selector| selector.matches(&parse(&object))) {
                    left -= 1;
                    found.push((name, object));
                }
            }
            take(found);
            let rest = more || used < seen;
            if !rest || left == 0 {
                return Ok(Selected {
                    revision,
                    rest: rest.then_some(after),
                });
            }
        }
    }

    /// What a list says of itself.
    pub(super) async fn list_metadata(
        &self,
        about: &About,
        options: &Options,
        selected: Selected,
    ) -> Result<Value, Status> {
        let Selected { revision, rest } = selected;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        let Some(after) = rest else {
            return Ok(metadata);
        };
        // As in Kubernetes, which does not count what it has not selected yet.
        if options.selector.is_everything() {
            let behind = self.store.behind(about.kept(), revision, &after).await;
            let behind = behind.map_err(|error| store_status(&error))?;
            metadata["remainingItemCount"] = behind.into();
        }
        metadata["continue"] = Continue { revision, after }.to_string().into();
        Ok(metadata)
    }
}

/// What one answer goes over.
pub(super) struct Selected {
    /// The state that was read.
    revision: Revision,
    /// Behind which name more may come, if there is more.
    rest: Option<String>,
}

fn page_status(error: &EventsError, options: &Options) -> Status {
    match error {
        EventsError::Compacted { .. } if options.from.is_some() => Status::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the \
             continue parameter.",
        ),
        error => events_status(error),
    }
}

/// A list on its way out.
pub(super) struct List {
    about: &'static About,
    sight: Sight,
    form: Form,
    /// Of when the ages in a Table are.
    now: SystemTime,
    /// The objects, encoded, with the commas between them.
    pieces: VecDeque<Bytes>,
}

impl List {
    pub(super) fn new(about: &'static About, sight: Sight, form: Form) -> Self {
        Self {
            about,
            sight,
            form,
            now: SystemTime::now(),
            pieces: VecDeque::new(),
        }
    }

    /// Puts objects behind those that are in it.
    pub(super) fn add<'a>(&mut self, objects: impl Iterator<Item = &'a Bytes>) {
        let mut piece = Vec::new();
        for object in objects {
            self.push(&mut piece, object);
        }
        if !piece.is_empty() {
            piece.shrink_to_fit();
            self.pieces.push_back(piece.into());
        }
    }

    /// Encodes an object behind those in the piece.
    fn push(&self, piece: &mut Vec<u8>, object: &Bytes) {
        if !(piece.is_empty() && self.pieces.is_empty()) {
            piece.push(b',');
        }
        let object = self.sight.show(self.about, object);
        let shown = match self.form {
            // Objects are stored as they are sent, so a list is put together without reading them.
            Form::Whole => return piece.extend_from_slice(&object),
            Form::Metadata => metadata(&parse(&object)),
            Form::Table(include) => row(self.about, &parse(&object), include, self.now),
        };
        piece.extend_from_slice(shown.to_string().as_bytes());
    }

    pub(super) fn finish(mut self, about_it: &Value) -> Response<Body> {
        let head = match self.form {
            Form::Metadata => metadata_list(about_it),
            Form::Whole => format!(
                "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{about_it},\"items\":[",
                self.about.kind,
                self.about.api_version(),
            ),
            Form::Table(_) => format!(
                "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{about_it},\"columnDefinitions\":{},\"rows\":[",
                definitions(self.about),
            ),
        };
        self.pieces.push_front(head.into());
        self.pieces.push_back(Bytes::from_static(b"]}"));
        reply::in_pieces(StatusCode::OK, self.pieces)
    }
}
