//! Writing routers: create, replace, patch, delete, and the status subresource.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use keel_certs::{Identity, NodeName};
use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::info;

use super::access::{Action, Grant};
use super::change::{self, Birth, Outcome, Part, Preconditions, StatusRule, Written};
use super::patch::Patch;
use super::query::Options;
use super::secret::Sight;
use super::{Inner, key, reply, store_status};
use crate::api::decode::{self, Format, invalid_field};
use crate::api::{PLURAL, Reason, Revision, Status, Time};
use crate::http::{Body, ReadError, read};
use crate::store::Change;

/// Largest body, as Kubernetes has it: 3 MiB.
const MAX_BODY: usize = 3 << 20;
impl Inner {
    pub(super) async fn create_router(
        &self,
        identity: &Identity,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        self.check(identity, Action::Create(None), "create", PLURAL, None)?;
        let format = format(&request)?;
        let decoded = decode::router(
            decode::parse(&body(request).await?, format)?,
            options.validation,
        )?;
        let name = new_name(&decoded.object)?;
        let grant = self.check(
            identity,
            Action::Create(Some(&name)),
            "create",
            PLURAL,
            Some(&name),
        )?;
        let spec = decoded.object.get("spec").and_then(Value::as_object);
        let given = |field: &str| {
            let value = decoded
                .object
                .get("metadata")
                .and_then(|meta| meta.get(field));
            value
                .and_then(Value::as_array)
                .is_some_and(|items| !items.is_empty())
        };
        // Finalizers would keep its Router from being deleted, and those who may take them away are others.
        if grant == Grant::EmptySpec
            && (spec.is_some_and(|spec| !spec.is_empty())
                || given("finalizers")
                || given("ownerReferences"))
        {
            let message = format!(
                "routers.edge.example.com {name:?} is forbidden: a node creates its Router with an empty spec only, and without \
                 finalizers and ownerReferences"
            );
            return Err(Status::router(Reason::Forbidden, &name, message));
        }
        let (birth, dry_run, named) = (birth(), options.dry_run, name.clone());
        let audit = Some(Audit::new("create", identity));
        let mut written = self
            .decide(&name, audit, move |current, revision| {
                change::verdict(
                    change::create(current, revision, &named, decoded.object, &birth),
                    dry_run,
                )
            })
            .await?;
        written.warnings = decoded.warnings;
        Ok(respond(written, Sight::of(identity)))
    }

    pub(super) async fn write_router(
        &self,
        identity: &Identity,
        name: &str,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        let verb = match *request.method() {
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            ref method => return Err(reply::method_not_allowed(method)),
        };
        self.check(identity, Action::Write, verb, PLURAL, Some(name))?;
        let audit = Some(Audit::new(verb, identity));
        let written = match verb {
            "delete" => return self.delete(name, audit, request, options).await,
            _ => self.update(name, Part::Main, None, audit, request, options),
        };
        Ok(respond(written.await?, Sight::of(identity)))
    }

    pub(super) async fn write_status(
        &self,
        identity: &Identity,
        name: &str,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        let verb = match *request.method() {
            Method::PUT => "update",
            Method::PATCH => "patch",
            ref method => return Err(reply::method_not_allowed(method)),
        };
        let grant = self.check(
            identity,
            Action::WriteStatus(name),
            verb,
            "routers/status",
            Some(name),
        )?;
        let (rule, birth) = match grant {
            Grant::Newer => {
                let latest = Revision::latest();
                (StatusRule::Newer { latest }, Some(birth()))
            }
            Grant::Stamped => {
                let highest = Revision::highest_raised();
                (StatusRule::Stamped { highest }, Some(birth()))
            }
            _ => (StatusRule::Plain, None),
        };
        if birth.is_some() {
            check_name(name)?;
        }
        // Nodes write statuses all day; a person who does so changes what everybody relies on.
        let audit = (rule == StatusRule::Plain).then(|| Audit::new(verb, identity));
        let part = Part::Status(rule);
        let written = self.update(name, part, birth, audit, request, options);
        Ok(respond(written.await?, Sight::of(identity)))
    }

    async fn update(
        &self,
        name: &str,
        part: Part,
        birth: Option<Birth>,
        audit: Option<Audit>,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Written, Status> {
        let (dry_run, validation, named) = (options.dry_run, options.validation, name.to_owned());
        if *request.method() == Method::PATCH {
            let media = media_type(&request);
            let patch = Patch::parse(&media, &body(request).await?)?;
            self.decide(name, audit, move |current, revision| {
                let next = |held: &Map<String, Value>| patch.apply(&named, held, validation);
                change::verdict(
                    change::update(current, revision, &named, part, birth.as_ref(), next),
                    dry_run,
                )
            })
            .await
        } else {
            let format = format(&request)?;
            let decoded =
                decode::router(decode::parse(&body(request).await?, format)?, validation)?;
            self.decide(name, audit, move |current, revision| {
                let next = |_: &Map<String, Value>| Ok((decoded.object, decoded.warnings));
                change::verdict(
                    change::update(current, revision, &named, part, birth.as_ref(), next),
                    dry_run,
                )
            })
            .await
        }
    }

    async fn delete(
        &self,
        name: &str,
        audit: Option<Audit>,
        request: Request<Body>,
        options: &Options,
    ) -> Result<Response<Body>, Status> {
        let asked = delete_options(&body(request).await?)?;
        let dry_run = options.dry_run || asked.dry_run.iter().any(|value| value == "All");
        let preconditions = asked.preconditions.unwrap_or_default();
        let preconditions = Preconditions {
            uid: preconditions.uid,
            revision: preconditions.resource_version,
        };
        let (now, named) = (Time::now(), name.to_owned());
        let written = self
            .decide(name, audit, move |current, revision| {
                change::verdict(
                    change::delete(current, revision, &named, &preconditions, &now),
                    dry_run,
                )
            })
            .await?;
        if written.outcome != Outcome::Deleted {
            return Ok(respond(written, Sight::Everything));
        }
        let object: Value = serde_json::from_slice(&written.object).unwrap_or_default();
        let uid = object
            .pointer("/metadata/uid")
            .and_then(Value::as_str)
            .unwrap_or_default();
        Ok(reply::json(StatusCode::OK, &Status::deleted(name, uid)))
    }

    async fn decide<F>(
        &self,
        name: &str,
        audit: Option<Audit>,
        decide: F,
    ) -> Result<Written, Status>
    where
        F: FnOnce(Option<&crate::store::Object>, Revision) -> change::Verdict + Send + 'static,
    {
        let named = name.to_owned();
        let audited = move |current: Option<&crate::store::Object>, revision| {
            let verdict = decide(current, revision);
            if let Some(audit) = audit
                && !matches!(verdict.0, Change::Keep)
            {
                audit.log(&named, revision);
            }
            verdict
        };
        self.store
            .write(key(name), audited)
            .await
            .map_err(|error| store_status(&error))?
    }
}

/// Who writes, for the line in the log. It is written with the decision, in the store's task: a client that leaves meanwhile cannot
/// keep its write out of the log. A commit that fails after it is an error in the log too.
struct Audit {
    verb: &'static str,
    who: String,
}

impl Audit {
    fn new(verb: &'static str, identity: &Identity) -> Self {
        Self {
            verb,
            who: identity.to_string(),
        }
    }

    fn log(&self, router: &str, revision: Revision) {
        info!(verb = self.verb, router, who = self.who, %revision, "router written");
    }
}

fn respond(written: Written, sight: Sight) -> Response<Body> {
    let code = if written.outcome == Outcome::Created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut response = reply::bytes(code, sight.show(&written.object));
    reply::warn(&mut response, &written.warnings);
    response
}

fn birth() -> Birth {
    let mut bytes: [u8; 16] = rand::random();
    // Version 4, variant 1: a random UUID (RFC 9562 section 5.4).
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    let uid = format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    );
    Birth {
        uid,
        at: Time::now(),
    }
}

/// The name of an object to be created: the one given, or one made from `generateName`.
fn new_name(object: &Map<String, Value>) -> Result<String, Status> {
    let text = |key: &str| {
        object
            .get("metadata")
            .and_then(|meta| meta.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut name = text("name");
    if name.is_empty() {
        let prefix = text("generateName");
        if prefix.is_empty() {
            return Err(invalid_field(
                "",
                "metadata.name",
                "",
                "name or generateName is required",
            ));
        }
        let suffix: [u8; 5] = rand::random();
        // No vowels and nothing that looks alike, as Kubernetes does.
        let letters = b"bcdfghjklmnpqrstvwxz2456789";
        name = prefix
            .chars()
            .take(58)
            .chain(
                suffix
                    .iter()
                    .map(|byte| char::from(letters[usize::from(*byte) % letters.len()])),
            )
            .collect();
    }
    check_name(&name)?;
    Ok(name)
}

fn check_name(name: &str) -> Result<(), Status> {
    match name.parse::<NodeName>() {
        Ok(_) => Ok(()),
        Err(error) => {
            let shown: String = name.chars().take(100).collect();
            Err(invalid_field(
                &shown,
                "metadata.name",
                &shown,
                &format!("must be the name of a node: {error}"),
            ))
        }
    }
}

async fn body(request: Request<Body>) -> Result<Bytes, Status> {
    read(request.into_body(), MAX_BODY)
        .await
        .map_err(|error| match error {
            ReadError::TooLarge { limit } => Status::failure(
                Reason::RequestEntityTooLarge,
                format!("Request entity too large: limit is {limit}"),
            ),
            ReadError::Broken(error) => Status::failure(
                Reason::BadRequest,
                format!("the body could not be read: {error}"),
            ),
        })
}

/// The media type of the body without its parameters, in lower case.
fn media_type(request: &Request<Body>) -> String {
    let value = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

fn format(request: &Request<Body>) -> Result<Format, Status> {
    match media_type(request).as_str() {
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Format::Yaml),
        other => Err(unsupported(other, "application/json, application/yaml")),
    }
}

pub(super) fn unsupported(media: &str, accepted: &str) -> Status {
    let message = format!(
        "the body of the request was in an unknown format ({}) - accepted media types include: {accepted}",
        media.chars().take(100).collect::<String>()
    );
    Status::failure(Reason::UnsupportedMediaType, message)
}

/// Kubernetes' `DeleteOptions`, as far as they mean something here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeleteOptions {
    preconditions: Option<DeletePreconditions>,
    dry_run: Vec<String>,
    propagation_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeletePreconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

fn delete_options(bytes: &[u8]) -> Result<DeleteOptions, Status> {
    if bytes.is_empty() {
        return Ok(DeleteOptions::default());
    }
    let value = decode::parse(bytes, Format::Json)?.value;
    let options = DeleteOptions::deserialize(value).map_err(|error| {
        Status::failure(
            Reason::BadRequest,
            format!("these are no DeleteOptions: {error}"),
        )
    })?;
    match options.propagation_policy.as_deref() {
        // Nothing depends on a Router, so all three come to the same.
        None | Some("" | "Background" | "Foreground" | "Orphan") => Ok(options),
        Some(_) => {
            let message = "propagationPolicy: Unsupported value: supported values: \"Background\", \"Foreground\", \"Orphan\"";
            Err(Status::failure(Reason::Invalid, message))
        }
    }
}
