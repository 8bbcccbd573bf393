//! Deleting: one object, or all those of a collection that are selected.

use futures_util::{StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use keel_certs::Identity;
use serde::Deserialize;
use serde_json::{Value, json};

use super::change::{self, Outcome, Preconditions, Written};
use super::form::Form;
use super::list::List;
use super::path::{Collection, Named};
use super::query::Options;
use super::secret::Sight;
use super::write::{Audit, PROTOBUF, body, media_type, respond};
use super::{Inner, namespaces, reply};
use crate::api::decode::{self, Format};
use crate::api::protobuf::{Content, Field, Message};
use crate::api::validate::FieldError;
use crate::api::{Reason, Status, Time};
use crate::http::Body;

/// Objects of a collection that are deleted at a time: what the store takes in one batch.
const AT_ONCE: usize = 64;
/// What may become of that which a deleted object owns.
const POLICIES: [&str; 3] = ["Foreground", "Background", "Orphan"];

impl Inner {
    pub(super) async fn delete(
        &self,
        identity: &Identity,
        named: &Named,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        self.check(identity, "delete", named, "")?;
        let how = How::read(request, options).await?;
        let audit = Audit::new("delete", identity);
        let written = self.delete_one(named.clone(), audit, how).await?;
        let about = &named.kind.about;
        if written.outcome != Outcome::Deleted {
            return Ok(respond(about, written, Sight::Everything));
        }
        let object: Value = serde_json::from_slice(&written.object).unwrap_or_default();
        let uid = object
            .pointer("/metadata/uid")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let status = Status::deleted(about, &named.name, uid);
        Ok(reply::json(StatusCode::OK, &status))
    }

    /// Deletes what a list with the same options would show, each in a write of its own, and shows what is gone or, with finalizers,
    /// going. Ends with the first failure; what was deleted until then stays deleted.
    pub(super) async fn delete_collection(
        &self,
        identity: &Identity,
        collection: &Collection,
        request: Request<Body>,
        mut options: Options,
    ) -> Result<Response<Body>, Status> {
        self.check(identity, "deletecollection", &collection.named(""), "")?;
        let how = How::read(request, &options).await?;
        self.reach(&options).await?;
        options.narrow(collection)?;
        let about = &collection.kind.about;
        let mut names = Vec::new();
        let selected = self
            .select(about, &options, |objects| {
                names.extend(objects.into_iter().map(|(name, _)| name));
            })
            .await?;
        let deletions = names.into_iter().map(|key| {
            // In a namespace, the store's name has that in front.
            let name = key.rsplit('/').next().unwrap_or(&key);
            let audit = Audit::new("deletecollection", identity);
            self.delete_one(collection.named(name), audit, how.clone())
        });
        let mut list = List::new(about, Sight::of(identity), Form::Whole);
        let mut deleted = stream::iter(deletions).buffered(AT_ONCE);
        while let Some(written) = deleted.next().await {
            match written {
                Ok(written) => list.add(std::iter::once(&written.object)),
                // Somebody else was faster.
                Err(status) if status.reason == Some(Reason::NotFound) => {}
                Err(status) => return Err(status),
            }
        }
        let metadata = self.list_metadata(about, &options, selected).await?;
        Ok(list.finish(&metadata))
    }

    async fn delete_one(&self, named: Named, audit: Audit, how: How) -> Result<Written, Status> {
        namespaces::check_deletion(&named)?;
        let (now, subject) = (Time::now(), named.clone());
        self.decide(&named, Some(audit), move |current, revision| {
            let preconditions = &how.preconditions;
            change::verdict(
                current,
                change::delete(current, revision, &subject, preconditions, &now),
                how.dry_run,
            )
        })
        .await
    }
}

/// What a request says about how to delete.
#[derive(Clone)]
struct How {
    preconditions: Preconditions,
    dry_run: bool,
}

impl How {
    async fn read(request: Request<Body>, options: &Options) -> Result<Self, Status> {
        let format = match media_type(&request).as_str() {
            PROTOBUF => Format::Protobuf(DELETE_OPTIONS),
            // Whatever it is called: many clients send JSON by no name.
            _ => Format::Json,
        };
        let asked = DeleteOptions::read(&body(request).await?, format, options)?;
        let preconditions = asked.preconditions.unwrap_or_default();
        Ok(Self {
            preconditions: Preconditions {
                uid: preconditions.uid,
                revision: preconditions.resource_version,
            },
            dry_run: options.dry_run || !asked.dry_run.is_empty(),
        })
    }
}

/// Kubernetes' `DeleteOptions`, as far as they mean something here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeleteOptions {
    preconditions: Option<DeletePreconditions>,
    dry_run: Vec<String>,
    #[serde(rename = "gracePeriodSeconds")]
    _grace_period_seconds: Option<i64>,
    orphan_dependents: Option<bool>,
    propagation_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeletePreconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

const DELETE_OPTIONS: Message = &[
    Field(1, "gracePeriodSeconds", Content::Number),
    Field(
        2,
        "preconditions",
        Content::Message(&[
            Field(1, "uid", Content::Text),
            Field(2, "resourceVersion", Content::Text),
        ]),
    ),
    Field(3, "orphanDependents", Content::Bool),
    Field(4, "propagationPolicy", Content::Text),
    Field(5, "dryRun", Content::Texts),
];

impl DeleteOptions {
    /// Those of the body or, without one, of the query.
    fn read(body: &[u8], format: Format, query: &Options) -> Result<Self, Status> {
        let options = match body {
            [] => Self {
                orphan_dependents: query.orphan,
                propagation_policy: query.propagation.clone(),
                ..Self::default()
            },
            body => Self::parse(body, format)?,
        };
        match options.error() {
            None => Ok(options),
            Some(error) => Err(Status::invalid_options("DeleteOptions", &error)),
        }
    }

    fn parse(bytes: &[u8], format: Format) -> Result<Self, Status> {
        let value = decode::parse(bytes, format, "DeleteOptions")?.value;
        let bad = |why: String| {
            let message = format!("these are no DeleteOptions: {why}");
            Status::failure(Reason::BadRequest, message)
        };
        // An array would be read as the fields in their order.
        if !value.is_object() {
            return Err(bad("they must be an object".to_owned()));
        }
        Self::deserialize(value).map_err(|error| bad(error.to_string()))
    }

    fn error(&self) -> Option<FieldError> {
        let path = "propagationPolicy";
        match (&self.propagation_policy, self.orphan_dependents) {
            (Some(policy), Some(_)) => {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                return Some(FieldError::invalid(path.into(), policy, why));
            }
            // Nothing depends on a Router, so all three come to the same.
            (Some(policy), None) if !POLICIES.contains(&policy.as_str()) => {
                let supported = [&POLICIES[..], &["nil"]].concat();
                let policy = policy.as_str().into();
                return Some(FieldError::unsupported(path, &policy, &supported));
            }
            _ => {}
        }
        let unknown = self.dry_run.iter().any(|value| value != "All");
        unknown.then(|| FieldError::unsupported("dryRun", &json!(self.dry_run), &["All"]))
    }
}
